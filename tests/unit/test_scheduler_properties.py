"""What holds for every snapshot: room is never oversold, plans are idempotent, order does not matter."""

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from core.devices import DeviceKind
from core.errors import CODES
from core.ids import NodeId, ReplicaId
from core.states import Desired, NodeState, ReplicaState
from scheduler.feasible import Candidate
from scheduler.footprint import Ledger
from scheduler.plan import buckets, plan
from scheduler.rank import FILES_POINTS, FIT_POINTS, GPU_POINTS, SPREAD_POINTS, Standing
from scheduler.reconcile import sorting
from tests.unit.pictures import CPU, applied, cpu, deployment, gpu, node, picture, replica, settled

NODES = ["a", "b", "c", "d"]
DEPLOYMENTS = ["p", "q", "r"]

amounts = st.sampled_from([0, 50, 100, 150, 400, 1000])
engines = st.sampled_from(
    [{}, {"fake": frozenset({DeviceKind.CPU})}, {"fake": frozenset({DeviceKind.CPU, DeviceKind.NVIDIA})}]
)


@st.composite
def nodes(draw, name):
    devices = [cpu(free=draw(amounts))] + ([gpu(free=draw(amounts))] if draw(st.booleans()) else [])
    return node(
        name,
        *devices,
        state=draw(st.sampled_from([NodeState.READY, NodeState.READY, *NodeState])),
        is_cordoned=(is_cordoned := draw(st.sampled_from([False, False, True]))),
        is_drain_forced=is_cordoned and draw(st.sampled_from([False, False, True])),
        silent_s=draw(st.sampled_from([0.0, 9.0, 60.0])),
        engines=draw(engines),
        is_held=draw(st.booleans()),
        is_flapping=draw(st.booleans()),
        returned_s=draw(st.sampled_from([None, 3.0, 100.0])),
    )


@st.composite
def deployments(draw, name):
    return deployment(
        name,
        replicas=draw(st.integers(0, 4)),
        need=draw(st.sampled_from([None, 0, 50, 100, 300])),
        generation=draw(st.integers(1, 3)),
        is_deleting=draw(st.sampled_from([False, False, True])),
    )


@st.composite
def replicas(draw, number):
    return replica(
        str(number),
        draw(st.sampled_from([*NODES, "gone"])),
        draw(st.sampled_from(list(ReplicaState))),
        of=draw(st.sampled_from([*DEPLOYMENTS, "gone"])),
        age_s=draw(st.sampled_from([1.0, 5.0, 50.0])),
        promise=draw(st.sampled_from([0, 50, 100, 300])),
        measured=draw(amounts),
        generation=draw(st.integers(1, 3)),
        desired=draw(st.sampled_from([Desired.RUN, Desired.RUN, Desired.STOP, Desired.DRAIN])),
        is_leaving=(is_leaving := draw(st.sampled_from([False, False, True]))),
        move_to=NodeId(f"nod_{draw(st.sampled_from([*NODES, 'gone']))}")
        if is_leaving and draw(st.booleans())
        else None,
        succeeds=ReplicaId(f"rep_{draw(st.integers(0, 7))}") if draw(st.sampled_from([False, False, True])) else None,
    )


@st.composite
def snapshots(draw):
    things = [draw(nodes(name)) for name in draw(st.lists(st.sampled_from(NODES), unique=True))]
    things += [draw(deployments(name)) for name in draw(st.lists(st.sampled_from(DEPLOYMENTS), unique=True))]
    things += [draw(replicas(number)) for number in range(draw(st.integers(0, 8)))]
    return picture(*things, reserve=draw(st.sampled_from([0, 100])))


@given(snapshots())
def test_applying_a_plan_and_planning_again_changes_nothing(snapshot):
    assert plan(applied(snapshot, plan(snapshot))).is_empty


@given(snapshots())
def test_no_device_is_promised_more_than_is_free(snapshot):
    ledger = Ledger(snapshot)
    promised: Counter = Counter()
    for start in plan(snapshot).starts:
        for device_id, count in start.promises.items():
            promised[start.node_id, device_id] += count
    for one in snapshot.nodes:
        for device in one.devices:
            room = ledger.promisable_bytes(one, device)
            assert 0 <= room <= min(device.free_bytes, device.total_bytes)
            assert promised[one.node_id, device.device_id] <= room


@given(snapshots())
def test_only_ready_uncordoned_nodes_with_the_engine_get_replicas(snapshot):
    known = {one.node_id: one for one in snapshot.nodes}
    for start in plan(snapshot).starts:
        one = known[start.node_id]
        assert one.state is NodeState.READY
        assert not one.is_cordoned
        assert "fake" in one.engines


@given(snapshots())
def test_every_replica_is_in_exactly_one_bucket(snapshot):
    counts = Counter(one.replica_id for members in buckets(snapshot).values() for one in members)
    assert counts == Counter(one.replica_id for one in snapshot.replicas)


@given(snapshots(), st.randoms(use_true_random=False))
def test_the_order_of_the_snapshot_does_not_matter(snapshot, shuffler):
    def shuffled(things):
        mixed = list(things)
        shuffler.shuffle(mixed)
        return tuple(mixed)

    mixed = replace(
        snapshot,
        nodes=shuffled(snapshot.nodes),
        deployments=shuffled(snapshot.deployments),
        replicas=shuffled(snapshot.replicas),
    )
    assert plan(mixed) == plan(snapshot)


@given(snapshots())
def test_what_was_told_to_go_is_never_told_again_and_nothing_is_stopped_twice(snapshot):
    stops = [stop.replica_id for stop in plan(snapshot).stops]
    assert len(stops) == len(set(stops))
    running = {one.replica_id for one in snapshot.replicas if one.desired is Desired.RUN}
    assert set(stops) <= running


@given(snapshots())
def test_never_more_is_started_than_is_wanted_and_refusals_have_known_codes(snapshot):
    answer = plan(snapshot)
    wants = {one.deployment_id: 0 if one.is_deleting else one.replicas for one in snapshot.deployments}
    started = Counter(start.deployment_id for start in answer.starts)
    assert all(count <= wants[deployment_id] for deployment_id, count in started.items())
    for refusal in answer.refusals:
        assert refusal.code in CODES
        assert refusal.message
        assert wants[refusal.deployment_id] > started[refusal.deployment_id]


@settings(max_examples=60)
@given(snapshots())
def test_a_cluster_that_does_as_it_is_told_comes_to_rest(snapshot):
    for _ in range(12):
        answer = plan(snapshot)
        if answer.is_empty:
            break
        snapshot = settled(applied(snapshot, answer))
    assert plan(snapshot).is_empty


@given(st.integers(1, 6), st.integers(0, 8))
def test_a_cluster_with_room_ends_with_as_many_as_wanted(want, present):
    things = [node("a"), node("b"), deployment("p", replicas=want, need=1)]
    things += [replica(str(number), "ab"[number % 2], of="p", promise=1) for number in range(present)]
    snapshot = picture(*things)
    for _ in range(4):
        snapshot = settled(applied(snapshot, plan(snapshot)))
    ready = [one for one in snapshot.replicas if one.state is ReplicaState.READY]
    assert len(ready) == want
    assert all(CPU in one.promises for one in ready)


def weighed_anew(candidates, neighbours):
    """The best of `candidates` for a deployment without files, found by weighing every one of them."""

    def is_gpu(one):
        return one.device.kind is not DeviceKind.CPU

    def rank(one):
        counts = [neighbours.get(other.node.node_id, 0) for other in candidates if is_gpu(other) is is_gpu(one)]
        points = FILES_POINTS + FIT_POINTS * (1.0 - min(1.0, one.left_bytes / one.device.total_bytes))
        points += GPU_POINTS if is_gpu(one) else 0.0
        points += SPREAD_POINTS if neighbours.get(one.node.node_id, 0) <= min(counts) else 0.0
        return one.node.is_flapping, -round(points, 6), one.node.node_id, one.device.device_id

    return min(candidates, key=rank)


@given(st.data())
def test_a_standing_that_is_kept_gives_the_place_that_weighing_all_anew_gives(data):
    places = {
        name: [
            node(name, cpu(total=1000), is_flapping=data.draw(st.sampled_from([False, False, True]))),
            cpu(total=1000),
        ]
        + ([gpu(total=1000)] if data.draw(st.booleans()) else [])
        for name in NODES
    }

    def with_room(name):
        owner, *devices = places[name]
        rooms = st.sampled_from([None, 0, 100, 150, 1000])
        found = ((device, data.draw(rooms)) for device in devices)
        return [Candidate(node=owner, device=one, left_bytes=room) for one, room in found if room is not None]

    now = {name: with_room(name) for name in NODES}
    standing = Standing([one for found in now.values() for one in found], deployment("p", need=50))
    for _ in range(4):
        counts = {name: data.draw(st.integers(0, 3)) for name in NODES}
        neighbours = {places[name][0].node_id: count for name, count in counts.items() if count}
        every = [one for found in now.values() for one in found]
        assert bool(standing) == bool(every)
        if every:
            assert standing.best(neighbours).candidate == weighed_anew(every, neighbours)
        name = data.draw(st.sampled_from(NODES))
        now[name] = with_room(name)
        standing.renew(places[name][0].node_id, now[name])


@given(snapshots())
def test_a_deployment_of_which_all_is_well_is_sorted_as_any_other(snapshot):
    """One more replica that has ended changes no verdict but its own, and makes the sorting go the long way."""
    at = {one.node_id: one for one in snapshot.nodes}
    for drawn in snapshot.deployments:
        own = [one for one in snapshot.replicas if one.deployment_id == drawn.deployment_id]
        owner = replace(drawn, is_deleting=False, replicas=len(own))
        well = [
            replace(one, generation=owner.generation, state=ReplicaState.READY, desired=Desired.RUN, is_leaving=False)
            for one in own
        ]
        if not well:
            continue
        ended = replace(well[0], replica_id=ReplicaId("zz"), state=ReplicaState.STOPPED)
        short, long = (sorting(owner, found, at, snapshot.now) for found in (well, [*well, ended]))
        assert short.verdicts == tuple(one for one in long.verdicts if one.replica is not ended)
        assert (short.missing, short.failed_on) == (long.missing, long.failed_on)
