"""The controller's decisions without any process: leases, sessions, routes, doors, sentences, mirrors, life's end."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.contract import ModelFacts
from controller.deployments.choosing import chosen_adapter
from controller.deployments.mirror import lost, mirrored
from controller.deployments.model import Deployment, RefusalRow, Replica
from controller.deployments.waiting import Sight, Standing, standing
from controller.exchange import Observation, ReplicaReport
from controller.fleet import session
from controller.fleet.lease import AwakeClock, Timers, node_state
from controller.fleet.model import Ack, Heartbeat, NodeNow, Refuse
from controller.fleet.store import node_name
from controller.reconcile.lifecycle import has_drained, is_gone
from controller.routes.doors import DOOR_LEASE_S, Doors
from controller.routes.model import DoorReport, RoutableAlias, RoutableDeployment, RoutableReplica
from controller.routes.table import table
from core.errors import Failure
from core.ids import NodeId, ReplicaId
from core.states import Desired, NodeState, ReplicaState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TIMERS = Timers(heartbeat_s=2.0)
REPLICA = ReplicaId("rep_1")


def replica(**fields: Any) -> Replica:
    values: dict[str, Any] = {
        "replica_id": REPLICA,
        "deployment_id": "dep_1",
        "version_id": "ver_1",
        "version": 1,
        "spec_generation": 1,
        "node_id": "nod_1",
        "engine": "fake",
        "engine_version": "1",
        "settings": {},
        "promises": {"cpu": 1},
        "state": "ready",
        "desired": "run",
        "incarnation": 1,
        "restarts": 0,
        "pid": 1,
        "host": "127.0.0.1",
        "port": 1,
        "load_s": 0.1,
        "code": "",
        "message": "",
        "log_tail": [],
        "created_at": NOW,
        "state_since": NOW,
        "drain_since": None,
    }
    return Replica(**{**values, **fields})


def deployment(**fields: Any) -> Deployment:
    values: dict[str, Any] = {
        "deployment_id": "dep_1",
        "name": "m",
        "version_id": "ver_1",
        "model": "m",
        "version": 1,
        "engine": "fake",
        "engine_version": "1",
        "settings": {},
        "replicas": 1,
        "generation": 1,
        "spec_generation": 1,
        "footprint": {},
        "requires": [],
        "is_enabled": True,
        "disabled_answer": "unavailable",
        "is_deleting": False,
        "created_at": NOW,
        "updated_at": NOW,
    }
    return Deployment(**{**values, **fields})


def node(**fields: Any) -> NodeNow:
    values: dict[str, Any] = {
        "node_id": NodeId("nod_1"),
        "name": "box",
        "state": NodeState.READY,
        "silent_s": 0.5,
        "is_heard": True,
        "is_connected": True,
        "devices": (),
        "disk_free_bytes": 0,
        "applied_generation": 3,
        "sent_generation": 3,
        "session_epoch": 1,
        "observation": None,
        "observed_version": 1,
    }
    return NodeNow(**{**values, **fields})


@pytest.mark.parametrize(
    ("silent_s", "is_heard", "has_left", "expected"),
    [
        (0.0, True, False, NodeState.READY),
        (5.9, True, False, NodeState.READY),
        (6.0, True, False, NodeState.SUSPECT),
        (10.9, True, False, NodeState.SUSPECT),
        (11.0, True, False, NodeState.LOST),
        (0.0, False, False, NodeState.SUSPECT),
        (10.9, False, False, NodeState.SUSPECT),
        (11.0, False, False, NodeState.LOST),
        (99.0, True, True, NodeState.OFFLINE),
    ],
)
def test_a_lease_passes_from_ready_over_suspect_to_lost(
    silent_s: float, is_heard: bool, has_left: bool, expected: NodeState
) -> None:
    assert node_state(silent_s, TIMERS, is_heard=is_heard, has_left=has_left) is expected


@given(st.lists(st.floats(min_value=-5, max_value=1000), max_size=30))
def test_time_asleep_is_never_held_against_a_node(gaps: list[float]) -> None:
    now, clock = 100.0, AwakeClock(100.0, max_step_s=2.0)
    before = 0.0
    for gap in gaps:
        now += gap
        awake = clock.read(now)
        assert before <= awake <= before + 2.0
        before = awake


@given(st.lists(st.integers(min_value=0, max_value=20), max_size=20))
def test_only_growing_heartbeats_are_acknowledged(numbers: list[int]) -> None:
    state, highest = session.SessionState(), 0
    for number in numbers:
        beat = Heartbeat(sequence=number, applied_generation=0, devices=(), disk_free_bytes=0)
        state, effects = session.step(state, beat)
        if number > highest:
            highest = number
            assert Ack(sequence=number) in effects
        else:
            assert isinstance(effects[0], Refuse)
        assert state.last_sequence == highest


def routable(name: str, state: NodeState, *, is_past: bool = False) -> RoutableReplica:
    return RoutableReplica(
        replica_id=ReplicaId(name),
        incarnation=1,
        host="h",
        port=1,
        node_state=state,
        is_silent_past_lease=is_past,
        version=1,
    )


@pytest.mark.parametrize(
    ("replicas", "expected"),
    [
        ([routable("a", NodeState.READY), routable("b", NodeState.SUSPECT)], ["a"]),
        ([routable("b", NodeState.SUSPECT), routable("a", NodeState.SUSPECT)], ["a", "b"]),
        ([routable("a", NodeState.OFFLINE)], ["a"]),
        ([routable("a", NodeState.LOST, is_past=True), routable("b", NodeState.SUSPECT)], ["b"]),
        ([routable("a", NodeState.LOST, is_past=True)], []),
    ],
    ids=["suspect yields to ready", "suspect alone serves", "offline may serve", "lost never", "only lost"],
)
def test_new_requests_go_where_they_may_be_answered(replicas: list[RoutableReplica], expected: list[str]) -> None:
    made = table([routable_deployment("m", replicas)], [], [], engine_seed=b"s")
    assert [target.replica_id for target in made.routes[0].targets] == expected
    assert bool(made.routes[0].waiting) is not bool(expected)


def routable_deployment(name: str, replicas: list[RoutableReplica], model: str = "m") -> RoutableDeployment:
    return RoutableDeployment(
        name=name,
        model=model,
        engine="fake",
        endpoints=("chat",),
        replicas=tuple(replicas),
        waiting="",
        created_at=NOW,
        version=1,
    )


def test_an_alias_stands_for_the_models_own_deployment_and_never_hides_one() -> None:
    deployments = [routable_deployment("other", []), routable_deployment("m", [])]
    aliases = [
        RoutableAlias(name=name, model=model) for name, model in (("chat", "m"), ("other", "m"), ("none", "gone"))
    ]
    made = table(deployments, aliases, [], engine_seed=b"s")
    assert {route.public_name: route.deployment for route in made.routes} == {
        "chat": "m",
        "m": "m",
        "none": "",
        "other": "other",
    }


def test_a_replica_is_drained_when_every_living_door_has_let_go() -> None:
    doors = Doors(0.0)
    doors.unrouted(frozenset({REPLICA}), 7)
    assert not doors.is_drained(REPLICA, 1.0), "doors may still be on their way back"
    assert doors.is_drained(REPLICA, DOOR_LEASE_S + 1), "there is no door at all"
    doors.report(DoorReport(door_id="a", applied_version=6), 20.0)
    assert not doors.is_drained(REPLICA, 20.0)
    doors.report(DoorReport(door_id="a", applied_version=7, loads={REPLICA: 1}), 20.0)
    assert not doors.is_drained(REPLICA, 20.0)
    assert doors.report(DoorReport(door_id="a", applied_version=7, loads={REPLICA: 0}), 20.0), "worth a wake-up"
    assert doors.is_drained(REPLICA, 20.0)
    doors.report(DoorReport(door_id="b", applied_version=1), 25.0)
    assert not doors.is_drained(REPLICA, 25.0)
    assert doors.expire(25.0 + DOOR_LEASE_S + 1)
    assert doors.is_drained(REPLICA, 40.0)
    doors.unrouted(frozenset({REPLICA}), 9)
    doors.report(DoorReport(door_id="c", applied_version=7), 41.0)
    assert doors.is_drained(REPLICA, 41.0), "it left at 7; later versions do not matter"


@pytest.mark.parametrize(
    ("state", "fields", "expected"),
    [
        ("fetching", {"fetched_share": 0.4}, ("starting", "node box is fetching the model: 40%")),
        ("fetching", {}, ("starting", "node box is fetching the model")),
        ("installing", {}, ("starting", "node box is installing fake 1")),
        ("starting", {}, ("starting", "fake is starting on node box")),
        ("assigned", {}, ("starting", "node box has been asked to start fake")),
        ("backoff", {"retry_in_s": 4.0}, ("waiting", "the engine on node box died: why; it is started again in 4s")),
        ("crash_loop", {}, ("failed", "the engine on node box died too often: why")),
        ("failed", {}, ("failed", "it cannot run on node box: why")),
        (
            "ready",
            {"node_state": NodeState.SUSPECT, "silent_s": 9.3},
            ("waiting", "node box has not been heard of for 9s"),
        ),
        ("ready", {"node_state": NodeState.OFFLINE}, ("waiting", "node box is offline: its node agent was stopped")),
        ("ready", {}, ("ready", "")),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_deployment_says_in_one_sentence_why_it_is_not_ready(
    state: str, fields: dict[str, Any], expected: tuple[str, str]
) -> None:
    message = "why" if state in ("backoff", "crash_loop", "failed") else ""
    sight = Sight(
        **{
            "replica": replica(state=state, message=message),
            "node_name": "box",
            "node_state": NodeState.READY,
            **fields,
        }
    )
    found = standing(deployment(), [sight], None)
    assert (found.state, found.waiting) == expected


def test_a_deployment_without_replicas_tells_of_its_refusal() -> None:
    refusal = RefusalRow(deployment_id="dep_1", code="c", message="no room", hint="", nodes=[], cured_by=[])
    assert standing(deployment(), [], refusal).waiting == "no room"
    assert standing(deployment(replicas=0), [], None).state == "stopped"
    assert standing(deployment(is_deleting=True), [], None).state == "stopped"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"is_deleting": True}, "it is being deleted; 1 replica still to stop; "),
        ({"is_enabled": False}, "it is disabled; 1 replica still to stop; "),
        ({"replicas": 0}, "it is scaled to 0 replicas; 1 replica still to stop; "),
    ],
    ids=["deleted", "disabled", "scaled"],
)
def test_an_ending_that_waits_for_a_silent_node_says_which_and_what_cures_it(
    changes: dict[str, Any], sentence: str
) -> None:
    def found(state: NodeState) -> Standing:
        sight = Sight(replica=replica(state="lost", desired="stop"), node_name="far", node_state=state)
        return standing(deployment(**changes), [sight], None)

    for state in (NodeState.LOST, NodeState.OFFLINE):
        block = found(state).block
        assert block is not None
        assert (block.code, block.nodes) == ("replica.node_silent", ("far",))
        assert "`slice node forget far`" in block.hint
        assert found(state).waiting == sentence + block.message
    for state in (NodeState.READY, NodeState.SUSPECT):
        assert found(state).block is None, "it may end any moment"


def test_a_living_deployment_tells_of_what_it_cannot_get_rid_of() -> None:
    serving = Sight(replica=replica(state="ready"), node_name="box", node_state=NodeState.READY)
    old = Sight(replica=replica(state="lost", desired="stop"), node_name="far", node_state=NodeState.LOST)
    replaced = Sight(replica=replica(state="lost"), node_name="far", node_state=NodeState.LOST)
    found = standing(deployment(), [serving, old], None)
    assert (found.state, found.waiting, found.block is not None) == ("ready", "", True)
    assert standing(deployment(), [serving, replaced], None).block is None, "it is wanted again when its node returns"


@pytest.mark.parametrize(
    ("reason", "node_state", "expected"),
    [
        ("has not been heard of for 11s", NodeState.SUSPECT, "node box has not been heard of for 13s"),
        ("said goodbye 11s ago", NodeState.OFFLINE, "node box is offline: its node agent was stopped"),
        ("is cordoned", NodeState.SUSPECT, "node box has not been heard of for 13s; node box is cordoned"),
        ("said goodbye 11s ago", NodeState.READY, "fake is starting on node box; node box said goodbye 11s ago"),
    ],
)
def test_a_silent_node_is_told_of_once(reason: str, node_state: NodeState, expected: str) -> None:
    refusal = RefusalRow(
        deployment_id="dep_1",
        code="placement.no_node",
        message=f"node box {reason}",
        hint="",
        nodes=[{"node": "box", "reason": reason}],
        cured_by=[],
    )
    sight = Sight(replica=replica(state="starting"), node_name="box", node_state=node_state, silent_s=13.2)
    assert standing(deployment(), [sight], refusal).waiting == expected


def test_a_report_is_mirrored_once_and_ready_needs_an_address() -> None:
    row = replica(state="starting", host="", port=0)
    report = ReplicaReport(replica_id=REPLICA, incarnation=1, state=ReplicaState.READY)
    change = mirrored(row, report, is_applied=True)
    assert change is not None
    assert change.state is ReplicaState.STARTING
    same = ReplicaReport(
        replica_id=REPLICA, incarnation=1, state=ReplicaState.READY, pid=1, host="127.0.0.1", port=1, load_s=0.1
    )
    assert mirrored(replica(), same, is_applied=True) is None


@pytest.mark.parametrize(
    ("row", "is_applied", "begins_again"),
    [
        (replica(), True, True),
        (replica(), False, False),
        (replica(state="assigned"), True, False),
        (replica(desired="stop", drain_since=NOW), True, False),
    ],
    ids=["forgotten", "not yet known", "never begun", "to stop"],
)
def test_a_replica_that_its_node_does_not_report_begins_again_only_when_it_was_known(
    row: Replica, is_applied: bool, begins_again: bool
) -> None:
    change = mirrored(row, None, is_applied=is_applied)
    assert (change is not None and change.state is ReplicaState.ASSIGNED) is begins_again


def test_a_failed_replica_of_a_lost_node_stays_failed() -> None:
    assert lost(replica(state="failed"), "box") is None
    change = lost(replica(), "box")
    assert change is not None
    assert change.state is ReplicaState.LOST


@pytest.mark.parametrize(
    ("row", "where", "is_let_go", "expected"),
    [
        (replica(), node(), False, False),
        (replica(), node(), True, True),
        (replica(state="starting"), node(), False, True),
        (replica(), node(state=NodeState.LOST), False, True),
        (replica(), node(state=NodeState.OFFLINE, silent_s=1.0), False, False),
        (replica(drain_since=NOW - timedelta(seconds=31)), node(), False, True),
        (replica(), None, False, True),
    ],
    ids=["busy", "let go", "never served", "lost", "just offline", "timeout", "no node"],
)
def test_a_draining_replica_is_stopped_when_nobody_can_use_it(
    row: Replica, where: NodeNow | None, is_let_go: bool, expected: bool
) -> None:
    drained = has_drained(row, where, now=NOW, lost_s=11, timeout=timedelta(seconds=30), is_drained=lambda _: is_let_go)
    assert drained is expected


@pytest.mark.parametrize(
    ("state", "reported", "applied", "expected"),
    [
        ("stopped", True, 0, True),
        ("stopping", True, 9, False),
        ("ready", False, 2, False),
        ("ready", False, 3, True),
    ],
    ids=["tree gone", "still reported", "not applied yet", "no longer reported"],
)
def test_a_stopped_replica_is_forgotten_only_when_its_node_says_so(
    state: str, reported: bool, applied: int, expected: bool
) -> None:
    reports = (ReplicaReport(replica_id=REPLICA, incarnation=1, state=ReplicaState(state)),) if reported else ()
    seen = Observation(node_id=NodeId("nod_1"), applied_generation=applied, replicas=reports, files=())
    row = replica(state=state, desired=Desired.STOP.value, drain_since=NOW)
    assert is_gone(row, node(observation=seen), generation=3, lost_s=11) is expected


def facts(model_format: str) -> ModelFacts:
    return ModelFacts(format=model_format, size_bytes=1)


def test_the_engine_is_chosen_by_the_models_format_and_drills_never_by_accident() -> None:
    assert chosen_adapter(None, facts("gguf")).name == "llamacpp"
    assert chosen_adapter(None, facts("safetensors")).name == "vllm"
    assert chosen_adapter(None, facts("")).name == "fake"
    with pytest.raises(Failure) as caught:
        chosen_adapter(None, facts("onnx"))
    assert caught.value.code == "engine.format_unsupported"


@given(st.text(max_size=100))
def test_every_node_gets_a_name_that_may_be_typed(text: str) -> None:
    from core.names import NAME_PATTERN

    assert NAME_PATTERN.match(node_name(text))
