"""Replicas that are to leave their node: a successor first, and never the last copy for nothing."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.ids import NodeId, ReplicaId
from core.states import Desired, NodeState, ReplicaState
from scheduler.plan import buckets, obstacle, plan
from scheduler.reconcile import Bucket
from tests.unit.pictures import NOW, applied, cpu, deployment, node, picture, replica, settled

S = ReplicaState


def leaving(name, on, state=S.READY, **more):
    return replica(name, on, state, is_leaving=True, **more)


def started(answer):
    return [
        (start.node_id.removeprefix("nod_"), (start.succeeds or "").removeprefix("rep_")) for start in answer.starts
    ]


def stopped(answer):
    return [stop.replica_id.removeprefix("rep_") for stop in answer.stops]


def stuck(answer):
    return {one.replica_id.removeprefix("rep_"): one.refusal for one in answer.stuck}


DRAINED = node("a", is_cordoned=True)


def test_a_leaving_replica_gets_a_successor_elsewhere_with_a_promise_of_its_own_and_serves_on():
    answer = plan(picture(DRAINED, node("b"), deployment(), leaving("x", "a")))
    assert started(answer) == [("b", "x")]
    assert answer.starts[0].promises == {"cpu": 100}
    assert not answer.stops
    assert not answer.refusals


@pytest.mark.parametrize("state", [S.ASSIGNED, S.STARTING, S.BACKOFF, S.UNHEALTHY])
def test_it_stays_until_its_successor_is_ready(state):
    things = [DRAINED, node("b"), deployment(), leaving("x", "a"), replica("y", "b", state, succeeds="rep_x")]
    assert plan(picture(*things)).is_empty
    assert not plan(picture(*things)).stuck


def test_it_goes_when_its_successor_is_ready():
    things = [DRAINED, node("b"), deployment(), leaving("x", "a"), replica("y", "b", succeeds="rep_x")]
    (stop,) = plan(picture(*things)).stops
    assert (stop.replica_id, stop.reason) == ("rep_x", "its successor is ready")


def test_it_goes_when_its_successor_is_ready_though_another_copy_is_not():
    things = [node("a"), node("b"), deployment(replicas=2), replica("z", "b", S.CRASH_LOOP)]
    answer = plan(picture(*things, leaving("x", "a"), replica("y", "b", succeeds="rep_x")))
    assert stopped(answer) == ["x"]


def test_a_successor_on_a_suspect_node_relieves_nobody():
    things = [DRAINED, node("b", state=NodeState.SUSPECT), deployment(), leaving("x", "a")]
    assert not plan(picture(*things, replica("y", "b", succeeds="rep_x"))).stops


def test_without_another_node_it_stays_and_says_so():
    answer = plan(picture(DRAINED, deployment(), leaving("x", "a")))
    assert answer.is_empty
    assert not answer.refusals, "the deployment has all its replicas"
    assert stuck(answer)["x"].code == "placement.no_node"
    assert stuck(answer)["x"].message == "there is no other node"


def test_without_room_elsewhere_it_stays_and_says_so():
    answer = plan(picture(DRAINED, node("b", cpu(free=50)), deployment(), leaving("x", "a")))
    assert answer.is_empty
    assert stuck(answer)["x"].code == "placement.insufficient_memory"
    assert "node b has too little room" in stuck(answer)["x"].message


def test_one_that_is_pinned_to_the_node_it_should_leave_stays_and_says_so():
    answer = plan(picture(DRAINED, node("b"), deployment(node_name="a"), leaving("x", "a")))
    assert answer.is_empty
    assert stuck(answer)["x"].message == "it may run on node a only"


def test_a_forced_drain_stops_what_nothing_can_take_the_place_of():
    forced = DRAINED._replace(is_drain_forced=True)
    answer = plan(picture(forced, node("b", cpu(free=150)), deployment("p"), deployment("q"), *both("a")))
    assert started(answer) == [("b", "p")], "what has a place still gets a successor first"
    assert stopped(answer) == ["q"]
    assert not answer.stuck


def both(on):
    return leaving("p", on, of="p"), leaving("q", on, of="q")


def test_a_drained_node_moves_all_it_can_and_the_rest_waits():
    snapshot = picture(DRAINED, node("b", cpu(free=250)), deployment(replicas=3), *three("a"))
    answer = plan(snapshot)
    assert started(answer) == [("b", "x"), ("b", "y")]
    assert list(stuck(answer)) == ["z"]
    later = plan(settled(applied(snapshot, answer)))
    assert stopped(later) == ["x", "y"]


def three(on):
    return leaving("x", on, age_s=90), leaving("y", on, age_s=80), leaving("z", on, age_s=70)


def test_what_is_missing_altogether_is_placed_before_successors():
    things = [DRAINED, node("b", cpu(free=150)), deployment(replicas=2), leaving("x", "a")]
    answer = plan(picture(*things))
    assert started(answer) == [("b", "")]
    assert list(stuck(answer)) == ["x"]


def test_a_deployment_with_nothing_alive_chooses_before_successors_of_another():
    things = [DRAINED, node("b", cpu(free=150)), deployment("p"), deployment("q"), leaving("x", "a", of="p")]
    answer = plan(picture(*things))
    assert [(start.deployment_id, start.succeeds) for start in answer.starts] == [("dep_q", None)]


def test_a_move_takes_its_target_and_no_better_node():
    target = leaving("x", "a", move_to="nod_c")
    answer = plan(picture(node("a"), node("b", file_digests=frozenset({"a" * 64})), node("c"), deployment(), target))
    assert started(answer) == [("c", "x")]


def test_a_move_to_a_node_that_cannot_take_it_waits_though_another_could():
    target = leaving("x", "a", move_to="nod_c")
    answer = plan(picture(node("a"), node("b"), node("c", is_cordoned=True), deployment(), target))
    assert answer.is_empty
    assert stuck(answer)["x"].message == "node c is cordoned"


THREE = [node("a"), node("b"), node("c"), deployment()]


@pytest.mark.parametrize(
    ("state", "restarts", "says"),
    [
        (S.FAILED, 0, "its successor on node c cannot run there"),
        (S.CRASH_LOOP, 4, "its successor on node c died too often"),
        (S.BACKOFF, 3, "its successor on node c died 4 times"),
        (S.BACKOFF, 2, ""),
        (S.STARTING, 9, ""),
        (S.READY, 9, ""),
    ],
)
def test_a_move_is_given_up_when_its_successor_cannot_run(state, restarts, says):
    successor = replica("y", "c", state, restarts=restarts, succeeds="rep_x")
    answer = plan(picture(*THREE, leaving("x", "a", move_to="nod_c"), successor))
    told = {one.replica_id: (one.successor, one.refusal.message) for one in answer.given_up}
    assert told == ({"rep_x": ("rep_y", f"the move was given up: {says}")} if says else {})
    assert not answer.starts
    assert not answer.stuck
    if says:
        assert answer.given_up[0].refusal.code == "replica.move_given_up"
        assert not answer.stops
        stays = replica("x", "a")
        assert stopped(plan(picture(*THREE, stays, successor))) == ["y"], "the next look, without the marks"


@pytest.mark.parametrize(("waited_s", "is_over"), [(599, False), (600, True)])
def test_a_move_for_which_there_is_no_place_is_given_up_after_ten_minutes(waited_s, is_over):
    nodes = [node("a"), node("c", is_cordoned=True), deployment()]
    since = NOW - timedelta(seconds=waited_s)
    answer = plan(picture(*nodes, leaving("x", "a", move_to="nod_c", move_since=since)))
    assert [one.refusal.message for one in answer.given_up] == (
        ["the move was given up: node c is cordoned"] if is_over else []
    )
    assert list(stuck(answer)) == ([] if is_over else ["x"])


def test_a_drain_is_never_given_up_nor_is_a_move_off_a_node_that_is_drained_by_force():
    crashing = replica("y", "c", S.CRASH_LOOP, restarts=4, succeeds="rep_x")
    long_ago = NOW - timedelta(hours=1)
    assert not plan(picture(*THREE, leaving("x", "a"), crashing)).given_up
    forced = node("a", is_cordoned=True, is_drain_forced=True)
    moving = leaving("x", "a", move_to="nod_c", move_since=long_ago)
    assert not plan(picture(forced, *THREE[1:], moving, crashing)).given_up


def test_a_successor_elsewhere_says_nothing_of_the_node_that_is_meant_now():
    elsewhere = replica("y", "b", S.CRASH_LOOP, restarts=4, succeeds="rep_x")
    answer = plan(picture(*THREE, leaving("x", "a", move_to="nod_c"), elsewhere))
    assert not answer.given_up


def test_a_second_move_drops_the_successor_of_the_first_that_does_not_serve_yet():
    things = [node("a"), node("b"), node("c"), deployment(), leaving("x", "a", move_to="nod_c")]
    answer = plan(picture(*things, replica("y", "b", S.STARTING, succeeds="rep_x")))
    assert stopped(answer) == ["y"]
    assert started(answer) == [("c", "x")]


def test_a_second_move_that_comes_after_the_first_is_done_changes_nothing():
    things = [node("a"), node("b"), node("c"), deployment(), leaving("x", "a", move_to="nod_c")]
    assert stopped(plan(picture(*things, replica("y", "b", succeeds="rep_x")))) == ["x"]


def test_one_that_no_longer_is_to_leave_stays_and_its_unready_successor_goes():
    things = [node("a"), node("b"), deployment(), replica("x", "a")]
    assert stopped(plan(picture(*things, replica("y", "b", S.STARTING, succeeds="rep_x")))) == ["y"]


@pytest.mark.parametrize("state", [S.FAILED, S.CRASH_LOOP])
def test_a_dead_replica_leaves_a_drained_node_at_once_and_is_tried_elsewhere(state):
    answer = plan(picture(DRAINED, node("b"), deployment(), leaving("x", "a", state)))
    assert stopped(answer) == ["x"]
    assert started(answer) == [("b", "")]


def test_a_dead_replica_that_moves_is_tried_where_it_moves_to():
    answer = plan(picture(node("a"), node("b"), node("c"), deployment(), leaving("x", "a", S.FAILED, move_to="nod_c")))
    assert not answer.stops
    assert started(answer) == [("c", "x")]


def test_a_successor_that_failed_twice_is_not_tried_again_and_the_old_one_stays():
    things = [DRAINED, *(node(name) for name in "bcd"), deployment(), leaving("x", "a")]
    failed = [replica(name, name, S.FAILED, succeeds="rep_x") for name in "bc"]
    answer = plan(picture(*things, *failed))
    assert answer.is_empty
    assert stuck(answer)["x"].message == "its successor has failed to run already, on b and c"


def test_scaling_down_takes_the_leaving_one_and_places_nothing():
    answer = plan(picture(DRAINED, node("b"), deployment(replicas=1), leaving("x", "a"), replica("y", "b")))
    assert stopped(answer) == ["x"]
    assert not answer.starts


def test_a_leaving_replica_is_never_stopped_to_make_room():
    things = [node("a", cpu(free=0)), node("b", cpu(free=0)), deployment(replicas=2)]
    assert plan(picture(*things, leaving("x", "a", move_to="nod_b"))).is_empty


def test_of_an_older_generation_the_leaving_one_goes_first():
    things = [DRAINED, node("b"), deployment(replicas=2, generation=2), replica("new", "b", generation=2)]
    answer = plan(picture(*things, leaving("x", "a", age_s=99), replica("y", "b")))
    assert stopped(answer) == ["x"]
    assert started(answer) == [("b", "")]


def test_a_leaving_replica_whose_node_is_lost_is_replaced_like_any_other():
    things = [node("a", state=NodeState.LOST, is_cordoned=True), node("b"), node("c"), deployment()]
    snapshot = picture(*things, leaving("x", "a", S.LOST))
    assert buckets(snapshot)[Bucket.LOST]
    assert started(plan(snapshot)) == [("b", "")]


def test_the_obstacle_to_a_move_is_told_in_the_words_of_placement():
    things = [
        node("a"),
        node("full", cpu(free=10)),
        node("shut", is_cordoned=True),
        node("bare", engines={}),
        node("ok"),
    ]
    snapshot = picture(*things, deployment(), replica("x", "a"))

    def said(name):
        found = obstacle(snapshot, ReplicaId("rep_x"), NodeId(f"nod_{name}"))
        return found.message if found else None

    assert "needs 100 B, 10 B of 1000 B of memory can be promised" in said("full")
    assert said("shut") == "node shut is cordoned"
    assert said("bare") == "node bare cannot run fake"
    assert said("ok") is None


# A drain as a whole: whatever the order of things, and whatever fails on the way

FATES = st.sampled_from([S.READY, S.READY, S.READY, S.STARTING, S.FAILED, S.CRASH_LOOP, S.BACKOFF])


def ready(snapshot):
    return [
        one
        for one in snapshot.replicas
        if one.state is S.READY and one.desired is Desired.RUN and is_up(snapshot, one.node_id)
    ]


def is_up(snapshot, node_id):
    return any(one.node_id == node_id and one.state is NodeState.READY for one in snapshot.nodes)


def left(snapshot):
    return [one for one in snapshot.replicas if one.node_id == "nod_a"]


def drained(snapshot):
    nodes = tuple(one._replace(is_cordoned=True) if one.node_id == "nod_a" else one for one in snapshot.nodes)
    replicas = tuple(replace(one, is_leaving=one.node_id == "nod_a") for one in snapshot.replicas)
    return replace(snapshot, nodes=nodes, replicas=replicas)


@given(st.data(), st.integers(1, 4), st.lists(st.sampled_from([0, 100, 250, 1000]), min_size=0, max_size=3))
def test_there_are_never_fewer_ready_copies_during_a_drain_than_before(data, want, rooms):
    others = [node(name, cpu(free=room)) for name, room in zip("bcd", rooms, strict=False)]
    places = ["a", *(one.name for one in others)]
    copies = [replica(str(number), data.draw(st.sampled_from(places)), age_s=number) for number in range(want)]
    snapshot = drained(picture(node("a"), *others, deployment(replicas=want), *copies))
    for _ in range(8):
        answer = plan(snapshot)
        snapshot = applied(snapshot, answer)
        assert len(ready(snapshot)) >= want
        fates = {one.replica_id: data.draw(FATES) for one in snapshot.replicas if one.state is not S.READY}
        snapshot = settled(snapshot, fates)


@given(st.integers(1, 4), st.integers(0, 4))
def test_with_room_elsewhere_a_drain_ends_with_an_empty_node_and_as_many_as_wanted(want, on_it):
    copies = [replica(str(number), "a" if number < on_it else "b") for number in range(want)]
    snapshot = drained(picture(node("a"), node("b"), node("c"), deployment(replicas=want), *copies))
    for _ in range(3):
        snapshot = settled(applied(snapshot, plan(snapshot)))
    assert not left(snapshot)
    assert len(ready(snapshot)) == want
    assert plan(snapshot).is_empty


@given(st.integers(1, 4))
def test_a_forced_drain_empties_the_node_though_nothing_can_be_placed(want):
    snapshot = drained(picture(node("a"), deployment(replicas=want), *(replica(str(n), "a") for n in range(want))))
    forced = replace(snapshot, nodes=tuple(one._replace(is_drain_forced=True) for one in snapshot.nodes))
    snapshot = settled(applied(forced, plan(forced)))
    assert not left(snapshot)
    assert plan(snapshot).is_empty
    assert plan(snapshot).refusals


@given(st.data(), st.integers(1, 3))
def test_ending_a_drain_at_any_moment_keeps_what_has_not_left_and_comes_to_rest(data, want):
    copies = [replica(str(number), "a", age_s=90 - number) for number in range(want)]
    snapshot = drained(picture(node("a"), node("b"), node("c"), deployment(replicas=want), *copies))
    for _ in range(data.draw(st.integers(0, 4))):
        snapshot = applied(snapshot, plan(snapshot))
        fates = {one.replica_id: data.draw(FATES) for one in snapshot.replicas if one.state is not S.READY}
        snapshot = settled(snapshot, fates)
    stayed = [one for one in left(snapshot) if one.desired is Desired.RUN]
    snapshot = replace(
        snapshot,
        nodes=tuple(one._replace(is_cordoned=False) for one in snapshot.nodes),
        replicas=tuple(replace(one, is_leaving=False) for one in snapshot.replicas),
    )
    assert len(ready(applied(snapshot, plan(snapshot)))) >= want
    for _ in range(5):
        snapshot = settled(applied(snapshot, plan(snapshot)))
    assert len(ready(snapshot)) == want
    assert {one.replica_id for one in stayed} <= {one.replica_id for one in snapshot.replicas}
    assert plan(snapshot).is_empty
