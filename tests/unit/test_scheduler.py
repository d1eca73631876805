"""The scheduler's decisions, one picture at a time."""

from dataclasses import replace
from datetime import timedelta

import pytest

from core.devices import DeviceKind
from core.ids import DeviceId, NodeId
from core.states import Desired, NodeState, ReplicaState
from scheduler.plan import buckets, plan
from scheduler.reconcile import Bucket
from tests.unit.pictures import (
    CPU,
    CPU_ONLY,
    FILE,
    NOW,
    applied,
    cpu,
    deployment,
    gpu,
    node,
    picture,
    replica,
    settled,
)

S = ReplicaState


def started_on(answer):
    return [start.node_id.removeprefix("nod_") for start in answer.starts]


def stopped(answer):
    return [stop.replica_id.removeprefix("rep_") for stop in answer.stops]


def refused(answer):
    (refusal,) = answer.refusals
    return refusal


# Placing


def test_a_wanted_replica_starts_with_its_whole_footprint_promised():
    (start,) = plan(picture(node("a"), deployment())).starts
    assert (start.node_id, start.generation, start.promises) == ("nod_a", 1, {CPU: 100})
    assert "node a scores" in start.reason


def test_a_gpu_is_preferred_when_the_engine_can_use_both():
    answer = plan(picture(node("a", cpu(), gpu()), deployment()))
    assert answer.starts[0].promises == {DeviceId("gpu0"): 100}


def test_an_engine_for_the_cpu_only_leaves_the_gpu_alone():
    answer = plan(picture(node("a", cpu(), gpu()), deployment(engine="llamacpp")))
    assert answer.starts[0].promises == {CPU: 100}


def test_a_full_gpu_gives_way_to_the_cpu():
    answer = plan(picture(node("a", cpu(), gpu(free=50)), deployment()))
    assert answer.starts[0].promises == {CPU: 100}


def test_a_node_that_has_the_files_is_preferred():
    answer = plan(picture(node("a"), node("b", file_digests=frozenset({FILE})), deployment()))
    assert started_on(answer) == ["b"]


def test_replicas_of_one_deployment_spread_over_nodes_even_to_one_without_the_files():
    nodes = [node("a", file_digests=frozenset({FILE})), node("b"), node("c")]
    assert sorted(started_on(plan(picture(*nodes, deployment(replicas=3))))) == ["a", "b", "c"]


def test_a_second_replica_on_a_node_comes_only_after_every_node_has_one():
    answer = plan(picture(node("a"), node("b"), deployment(replicas=4)))
    assert sorted(started_on(answer)) == ["a", "a", "b", "b"]


def test_the_device_with_the_least_room_left_is_the_best_fit():
    answer = plan(picture(node("a", gpu("big", free=1000), gpu("small", free=120)), deployment()))
    assert answer.starts[0].promises == {DeviceId("small"): 100}


def test_equal_nodes_are_chosen_by_their_id():
    assert started_on(plan(picture(node("b"), node("a"), deployment()))) == ["a"]


def test_two_deployments_do_not_get_the_same_bytes():
    answer = plan(picture(node("a", cpu(free=150)), deployment("one"), deployment("two")))
    assert [start.deployment_id for start in answer.starts] == ["dep_one"]
    assert refused(answer).deployment_id == "dep_two"


def test_a_deployment_with_nothing_alive_chooses_before_one_that_wants_one_more():
    things = [deployment("a", replicas=2), deployment("b"), replica("a1", "n", of="a")]
    answer = plan(picture(node("n", cpu(free=150)), *things))
    assert [start.deployment_id for start in answer.starts] == ["dep_b"]


# Memory


def test_memory_promised_but_not_used_yet_is_not_promised_again():
    busy = replica("x", "a", S.STARTING, of="other", promise=950)
    answer = plan(picture(node("a"), deployment("other"), busy, deployment()))
    assert refused(answer).code == "placement.insufficient_memory"


def test_memory_that_is_promised_and_used_counts_once():
    busy = replica("x", "a", of="other", promise=500, measured=500)
    answer = plan(picture(node("a", cpu(free=150)), deployment("other"), busy, deployment()))
    assert started_on(answer) == ["a"]


def test_a_replica_that_outgrew_its_promise_frees_nothing():
    busy = replica("x", "a", of="other", promise=100, measured=800)
    answer = plan(picture(node("a", cpu(free=90)), deployment("other"), busy, deployment()))
    assert refused(answer).code == "placement.insufficient_memory"


def test_the_reserve_of_main_memory_is_never_promised():
    assert plan(picture(node("a"), deployment(need=900), reserve=101)).refusals
    assert plan(picture(node("a"), deployment(need=900), reserve=100)).starts


def test_the_reserve_does_not_concern_gpus():
    assert plan(picture(node("a", gpu()), deployment(need=1000), reserve=500)).starts


def test_a_device_that_claims_more_free_than_total_is_not_believed():
    assert plan(picture(node("a", cpu(free=5000, total=99)), deployment())).refusals


@pytest.mark.parametrize("state", [S.FAILED, S.CRASH_LOOP, S.STOPPED])
def test_a_replica_that_gave_up_holds_no_promise(state):
    dead = replica("x", "a", state, of="other", promise=1000)
    answer = plan(picture(node("a"), deployment("other"), dead, deployment("z")))
    assert "dep_z" in [start.deployment_id for start in answer.starts]


# Refusals


def test_without_any_machine_the_refusal_says_so():
    refusal = refused(plan(picture(deployment())))
    assert (refusal.code, refusal.message) == ("placement.no_node", "no machine has joined yet")
    assert "node_ready" in refusal.cured_by


def test_a_silent_only_node_is_named_with_its_silence():
    answer = plan(picture(node("box", state=NodeState.SUSPECT), deployment()))
    assert refused(answer).code == "placement.no_node"
    assert refused(answer).message == "node box has not been heard of for 9s"


def test_a_node_that_said_goodbye_is_named_so():
    answer = plan(picture(node("box", state=NodeState.OFFLINE), deployment()))
    assert refused(answer).message == "node box said goodbye 9s ago"


def test_a_cordoned_only_node_is_named():
    answer = plan(picture(node("box", is_cordoned=True), deployment()))
    assert refused(answer).message == "node box is cordoned"
    assert "node_uncordoned" in refused(answer).cured_by


def test_a_node_that_waits_for_its_approval_gets_no_replica_and_is_named():
    answer = plan(picture(node("box", is_approved=False), deployment()))
    assert refused(answer).message == "node box waits for `slice node approve`"
    assert "slice node approve" in refused(answer).hint
    assert "node_approved" in refused(answer).cured_by
    assert "node_uncordoned" not in refused(answer).cured_by


def test_of_a_cordoned_node_and_one_that_waits_the_cordon_is_the_shorter_way():
    answer = plan(picture(node("a", is_approved=False), node("b", is_cordoned=True), deployment()))
    assert refused(answer).message == "node b is cordoned"


def test_an_engine_that_no_node_has_is_refused_with_each_node_s_reason():
    nodes = [node("a", engines={}, engine_reasons={"fake": "no Linux"}), node("b", engines={})]
    refusal = refused(plan(picture(*nodes, deployment())))
    assert refusal.code == "placement.engine_unusable"
    assert [(one.name, one.reason) for one in refusal.nodes] == [
        ("a", "cannot run fake: no Linux"),
        ("b", "cannot run fake"),
    ]


def test_an_engine_without_its_kind_of_device_is_refused():
    nodes = [node("a", cpu(), engines={"fake": frozenset({DeviceKind.NVIDIA})})]
    assert refused(plan(picture(*nodes, deployment()))).message == "node a has no nvidia device for fake"


def test_too_little_memory_is_refused_with_the_numbers():
    refusal = refused(plan(picture(node("a", cpu(free=60)), deployment())))
    assert refusal.code == "placement.insufficient_memory"
    assert refusal.message == "node a has too little room: it needs 100 B, 60 B of 1000 B of memory can be promised"
    assert "memory_freed" in refusal.cured_by


def test_the_refusal_speaks_of_the_nodes_that_came_furthest():
    nodes = [node("a", state=NodeState.SUSPECT), node("b", engines={}), node("c", cpu(free=1))]
    refusal = refused(plan(picture(*nodes, deployment())))
    assert refusal.code == "placement.insufficient_memory"
    assert "node c" in refusal.message
    assert [one.name for one in refusal.nodes] == ["a", "b", "c"]


def test_an_unknown_footprint_is_refused_and_never_zero():
    assert refused(plan(picture(node("a"), deployment(need=None)))).code == "placement.footprint_unknown"


def test_a_partly_placed_deployment_says_how_many_have_a_place():
    answer = plan(picture(node("a", cpu(free=250)), deployment(replicas=3)))
    assert len(answer.starts) == 2
    assert refused(answer).message.startswith("2 of 3 replicas have a place: ")


def test_many_short_nodes_are_summed_up():
    nodes = [node(f"n{number}", cpu(free=1)) for number in range(6)]
    assert refused(plan(picture(*nodes, deployment()))).message.endswith("; and 3 more nodes")


@pytest.mark.parametrize("state", [NodeState.SUSPECT, NodeState.LOST, NodeState.OFFLINE])
def test_a_node_that_is_not_ready_gets_no_replica(state):
    assert started_on(plan(picture(node("a", state=state), node("b"), deployment(replicas=2)))) == ["b", "b"]


# Scaling and stopping


def test_what_is_as_wanted_is_left_alone():
    answer = plan(picture(node("a"), deployment(), replica("x", "a")))
    assert answer.is_empty
    assert not answer.refusals


@pytest.mark.parametrize(
    "state", [S.ASSIGNED, S.FETCHING, S.INSTALLING, S.STARTING, S.BACKOFF, S.UNHEALTHY, S.CRASH_LOOP]
)
def test_a_replica_on_its_way_or_in_trouble_is_not_doubled(state):
    assert plan(picture(node("a"), node("b"), deployment(), replica("x", "a", state))).is_empty


def test_scale_down_stops_those_not_ready_first_then_the_youngest():
    replicas = [
        replica("old", "a", age_s=90),
        replica("young", "a", age_s=10),
        replica("starting", "a", S.STARTING, age_s=99),
        replica("hopeless", "a", S.CRASH_LOOP, age_s=99),
    ]
    assert stopped(plan(picture(node("a"), deployment(replicas=2), *replicas))) == ["hopeless", "starting"]
    assert stopped(plan(picture(node("a"), deployment(replicas=1), *replicas))) == ["hopeless", "starting", "young"]


def test_scale_down_stops_a_hopeless_replica_before_one_that_may_become_ready():
    replicas = [replica("hopeless", "a", S.CRASH_LOOP, age_s=99), replica("starting", "a", S.STARTING, age_s=1)]
    assert stopped(plan(picture(node("a"), deployment(), *replicas))) == ["hopeless"]


@pytest.mark.parametrize("want", [{"is_deleting": True}, {"replicas": 0}], ids=["deleting", "zero"])
def test_nothing_wanted_stops_all_even_on_silent_nodes(want):
    nodes = [node("a"), node("b", state=NodeState.LOST)]
    answer = plan(picture(*nodes, deployment(**want), replica("x", "a"), replica("y", "b", S.LOST)))
    assert stopped(answer) == ["x", "y"]
    assert not answer.starts


def test_a_replica_that_was_told_to_go_is_not_told_again():
    going = replica("x", "a", S.STOPPING, desired=Desired.STOP)
    assert plan(picture(node("a"), deployment(replicas=0), going)).is_empty


def test_a_replica_whose_deployment_is_gone_is_stopped():
    assert stopped(plan(picture(node("a"), replica("x", "a", of="gone")))) == ["x"]


def test_a_replica_whose_node_is_not_in_the_picture_is_replaced_but_never_stopped():
    answer = plan(picture(node("a"), deployment(), replica("x", "gone")))
    assert (stopped(answer), started_on(answer)) == ([], ["a"])


def test_a_wanted_replica_that_ended_is_started_anew():
    answer = plan(picture(node("a"), deployment(), replica("x", "a", S.STOPPED)))
    assert (stopped(answer), started_on(answer)) == (["x"], ["a"])


# Failures


def test_a_failed_replica_is_tried_once_on_another_node():
    before = picture(node("a"), node("b"), node("c"), deployment(), replica("x", "a", S.FAILED))
    answer = plan(before)
    assert started_on(answer) == ["b"]
    after = applied(before, answer)
    again = replace(after, replicas=tuple(replace(one, state=S.FAILED) for one in after.replicas))
    assert plan(again).is_empty
    assert not plan(again).refusals


def test_a_failed_replica_is_not_tried_again_on_its_node():
    answer = plan(picture(node("a"), deployment(), replica("x", "a", S.FAILED)))
    assert answer.is_empty
    assert not answer.refusals


def test_a_failed_replica_is_cleared_away_when_its_successor_is_ready():
    answer = plan(picture(node("a"), node("b"), deployment(), replica("x", "a", S.FAILED), replica("y", "b")))
    assert stopped(answer) == ["x"]


def test_a_failed_replica_stays_while_its_successor_starts():
    starting = replica("y", "b", S.STARTING)
    assert plan(picture(node("a"), node("b"), deployment(), replica("x", "a", S.FAILED), starting)).is_empty


def test_a_new_generation_may_try_the_node_again():
    failed = replica("x", "a", S.FAILED)
    answer = plan(picture(node("a"), deployment(generation=2), failed))
    assert (started_on(answer), stopped(answer)) == (["a"], ["x"])


# Rolling to a new generation


def test_a_new_generation_starts_before_the_old_one_stops():
    before = picture(node("a"), deployment(generation=2), replica("x", "a"))
    answer = plan(before)
    assert (started_on(answer), stopped(answer)) == (["a"], [])
    assert answer.starts[0].generation == 2
    assert stopped(plan(settled(applied(before, answer)))) == ["x"]


def test_without_room_for_both_the_old_one_stops_first_and_the_new_one_waits():
    before = picture(node("a", cpu(free=10)), deployment(generation=2), replica("x", "a"))
    answer = plan(before)
    assert (started_on(answer), stopped(answer)) == ([], ["x"])
    assert refused(answer).code == "placement.insufficient_memory"
    freed = replace(settled(applied(before, answer)), nodes=(node("a", cpu(free=110)),))
    assert started_on(plan(freed)) == ["a"]


def test_the_old_one_serves_on_when_stopping_it_would_not_make_enough_room():
    answer = plan(picture(node("a", cpu(free=10)), deployment(generation=2, need=500), replica("x", "a")))
    assert answer.is_empty
    assert answer.refusals


def test_no_second_old_one_stops_while_the_first_is_on_its_way_out():
    going = replica("x", "a", S.STOPPING, desired=Desired.STOP)
    answer = plan(picture(node("a", cpu(free=10)), deployment(generation=2, replicas=2), going, replica("y", "a")))
    assert answer.is_empty


def test_an_old_one_is_not_stopped_for_an_engine_that_cannot_run():
    nodes = [node("a", cpu(free=10), engines={"llamacpp": CPU_ONLY})]
    assert plan(picture(*nodes, deployment(generation=2), replica("x", "a"))).is_empty


def test_an_old_one_that_never_served_stops_at_once():
    answer = plan(picture(node("a"), deployment(generation=2), replica("x", "a", S.STARTING)))
    assert (started_on(answer), stopped(answer)) == (["a"], ["x"])


def test_of_several_old_ones_as_many_stay_as_new_ones_lack():
    olds = [replica(name, "a") for name in "xyz"]
    new = replica("n", "a", generation=2)
    moving = [replica(name, "a", S.STARTING, generation=2) for name in "pq"]
    answer = plan(picture(node("a"), deployment(generation=2, replicas=3), *olds, new, *moving))
    assert len(answer.stops) == 1
    assert not answer.starts


# Silent nodes


def test_a_suspect_node_s_replica_is_not_moved():
    assert plan(picture(node("a", state=NodeState.SUSPECT), node("b"), deployment(), replica("x", "a"))).is_empty


def test_a_lost_replica_is_replaced_and_its_promise_kept():
    before = picture(node("a", state=NodeState.LOST), node("b"), deployment(), replica("x", "a", S.LOST))
    answer = plan(before)
    assert (started_on(answer), stopped(answer)) == (["b"], [])
    assert buckets(before)[Bucket.LOST] == before.replicas
    assert plan(applied(before, answer)).is_empty


def test_when_a_lost_node_returns_the_older_ready_replica_stays():
    replicas = [replica("old", "a", age_s=500), replica("new", "b", age_s=5)]
    assert stopped(plan(picture(node("a"), node("b"), deployment(), *replicas))) == ["new"]


def test_when_a_lost_node_returns_after_its_replacement_serves_the_original_goes():
    replicas = [replica("old", "a", age_s=500), replica("new", "b", age_s=50)]
    nodes = [node("a", returned_s=10.0), node("b")]
    assert stopped(plan(picture(*nodes, deployment(), *replicas))) == ["old"]


def test_when_a_lost_node_returns_before_its_replacement_serves_the_replacement_goes():
    replicas = [replica("old", "a", age_s=500), replica("new", "b", S.STARTING, age_s=50)]
    nodes = [node("a", returned_s=10.0), node("b")]
    assert stopped(plan(picture(*nodes, deployment(), *replicas))) == ["new"]


def test_what_was_placed_on_a_node_after_its_return_counts_as_any_other():
    replicas = [replica("old", "a", age_s=500), replica("new", "b", age_s=50)]
    nodes = [node("a", returned_s=900.0), node("b")]
    assert stopped(plan(picture(*nodes, deployment(), *replicas))) == ["new"]


def test_when_a_lost_node_returns_with_a_replica_that_does_not_serve_the_ready_one_stays():
    replicas = [replica("old", "a", S.BACKOFF, age_s=500), replica("new", "b", age_s=5)]
    assert stopped(plan(picture(node("a"), node("b"), deployment(), *replicas))) == ["old"]


def test_a_node_that_said_goodbye_is_given_time_to_come_back():
    away = node("a", state=NodeState.OFFLINE, silent_s=12.0)
    answer = plan(picture(away, node("b"), deployment(), replica("x", "a")))
    assert answer.is_empty
    assert answer.wake_at == NOW + timedelta(seconds=18)
    gone = node("a", state=NodeState.OFFLINE, silent_s=30.0)
    later = plan(picture(gone, node("b"), deployment(), replica("x", "a")))
    assert started_on(later) == ["b"]
    assert later.wake_at is None


def lost_cluster(lost: int, ready: int, *, is_held: bool):
    nodes = [node(f"l{number}", state=NodeState.LOST, is_held=is_held) for number in range(lost)]
    nodes += [node(f"r{number}") for number in range(ready)]
    return [*nodes, *(replica(f"x{number}", f"l{number}", S.LOST) for number in range(lost))]


def test_what_is_lost_with_a_held_node_is_not_replaced_and_a_note_says_so():
    answer = plan(picture(*lost_cluster(3, 6, is_held=True), deployment(replicas=3)))
    assert answer.is_empty
    assert answer.notes == ("3 replicas on 3 lost nodes are not replaced yet",)


def test_what_is_lost_with_a_node_that_is_not_held_is_replaced():
    answer = plan(picture(*lost_cluster(3, 6, is_held=False), deployment(replicas=3)))
    assert len(answer.starts) == 3
    assert not answer.notes


def test_of_two_lost_nodes_only_the_held_one_is_left_alone():
    lost = [node("h", state=NodeState.LOST, is_held=True), node("l", state=NodeState.LOST)]
    replicas = [replica("x", "h", S.LOST), replica("y", "l", S.LOST)]
    assert len(plan(picture(*lost, node("r"), deployment(replicas=2), *replicas)).starts) == 1


def test_a_node_that_flaps_takes_a_replica_only_when_no_other_can():
    shaky = node("a", gpu(), is_flapping=True)
    assert started_on(plan(picture(shaky, node("b"), deployment()))) == ["b"]
    assert started_on(plan(picture(shaky, deployment()))) == ["a"]


def test_the_brake_does_not_hold_back_what_was_never_placed():
    answer = plan(picture(*lost_cluster(3, 3, is_held=True), deployment(replicas=3), deployment("fresh")))
    assert [start.deployment_id for start in answer.starts] == ["dep_fresh"]


def test_a_reading_from_before_an_engine_loaded_gives_its_bytes_to_nobody_else():
    loaded = replica("x", "a", of="other", promise=600, measured=600)
    answer = plan(picture(node("a", cpu(free=1000)), deployment("other"), loaded, deployment(need=500)))
    assert refused(answer).code == "placement.insufficient_memory"


def test_a_promise_on_a_node_is_that_node_s_alone():
    busy = replica("x", "a", S.STARTING, of="other", promise=1000)
    answer = plan(picture(node("a"), node("b"), deployment("other"), busy, deployment()))
    assert answer.starts[0].node_id == NodeId("nod_b")


# Engines that run elsewhere, in containers, or on one node only


def test_an_external_replica_needs_no_engine_no_gpu_and_no_memory():
    full = node("a", cpu(free=0), gpu(free=0), engines={})
    planned = plan(picture(full, deployment(engine="openai", need=0, is_external=True)))
    (start,) = planned.starts
    assert start.promises == {DeviceId("cpu"): 0}


def test_a_pinned_deployment_goes_to_its_node_alone():
    nodes = [node("a", cpu(free=5000, total=5000)), node("b")]
    (start,) = plan(picture(*nodes, deployment(node_name="b"))).starts
    assert start.node_id == "nod_b"


def test_a_pinned_deployment_whose_node_has_not_joined_is_refused_by_that_name():
    (refused,) = plan(picture(node("a"), node("b"), deployment(node_name="gone"))).refusals
    assert refused.code == "placement.no_node"
    assert "node gone" in refused.message


def test_a_pinned_deployment_s_refusal_is_about_its_node_and_no_other():
    nodes = [node("a", cpu(free=5000, total=5000)), node("b", cpu(free=10))]
    (refused,) = plan(picture(*nodes, deployment(node_name="b"))).refusals
    assert refused.code == "placement.insufficient_memory"
    assert "node b" in refused.message
    assert "node a" not in refused.message


def test_a_container_needs_a_node_that_runs_containers_and_not_the_engine_there():
    bare = node("a", engines={}, container_fault="it has neither podman nor docker")
    (refused,) = plan(picture(bare, deployment(is_contained=True))).refusals
    assert "neither podman nor docker" in refused.message
    assert plan(picture(node("b", engines={}), deployment(is_contained=True))).starts
