"""The leases, the brake and their clock, without any process: tables, properties, and a machine driven at random."""

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from controller.fleet import brake as brakes
from controller.fleet import lease as machine
from controller.fleet.brake import Brake
from controller.fleet.lease import CloseStream, Ended, Heard, Knocked, Left, Opened, Stale, Timers
from controller.fleet.leases import Leases
from core.ids import NodeId
from core.states import NodeState

TIMERS = Timers(heartbeat_s=2.0)
A, B, C = NodeId("nod_a"), NodeId("nod_b"), NodeId("nod_c")


class Fleet:
    """Leases with a clock that moves in ticks, as the controller's does."""

    def __init__(self, *nodes: NodeId) -> None:
        self.now = 0.0
        self.leases = Leases(TIMERS, self.now)
        for node_id in nodes:
            self.leases.add(node_id, has_left=False)
        self.epochs = dict.fromkeys(nodes, 0)

    def dial(self, *nodes: NodeId) -> None:
        for node_id in nodes:
            self.epochs[node_id] = self.epochs.get(node_id, 0) + 1
            self.leases.happened(node_id, Opened(self.epochs[node_id]), self.now)

    def hear(self, *nodes: NodeId) -> None:
        for node_id in nodes:
            self.leases.happened(node_id, Heard(self.epochs[node_id]), self.now)

    def wait(self, seconds: float, *speaking: NodeId) -> None:
        """Let time pass in ticks of half a second while `speaking` nodes beat."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.5)
            self.hear(*speaking)
            self.leases.look(self.now)

    def states(self, *nodes: NodeId) -> list[str]:
        return [self.leases.state(node_id).value for node_id in nodes]


def test_a_node_of_a_former_reign_is_suspect_until_it_dials_and_lost_after_a_lease_and_the_time_to_dial() -> None:
    fleet = Fleet(A, *(NodeId(f"nod_{number}") for number in range(999)))
    fleet.wait(14.5)
    assert fleet.states(A) == ["suspect"]
    fleet.wait(1.0)
    assert fleet.states(A) == ["lost"]


def test_what_an_older_stream_says_keeps_nobody_alive() -> None:
    fleet = Fleet(A)
    fleet.dial(A)
    assert fleet.leases.happened(A, Opened(2), 0.0) == (CloseStream(1),)
    for _ in range(30):
        fleet.now += 0.5
        assert fleet.leases.happened(A, Heard(1), fleet.now) == (Stale(),)
        fleet.leases.look(fleet.now)
    assert fleet.states(A) == ["lost"]


def test_a_slower_hello_does_not_take_the_place_of_a_newer_one() -> None:
    fleet = Fleet(A)
    fleet.leases.happened(A, Opened(7), 0.0)
    assert fleet.leases.happened(A, Opened(6), 0.0) == (Stale(),)
    assert fleet.leases.lease(A).stream == 7


def test_the_end_of_a_stream_says_nothing_of_its_node() -> None:
    fleet = Fleet(A)
    fleet.dial(A)
    fleet.leases.happened(A, Ended(1), 0.0)
    assert fleet.states(A) == ["ready"]
    fleet.wait(6.0)
    assert fleet.states(A) == ["suspect"]


def test_a_suspended_controller_holds_nothing_against_anybody() -> None:
    fleet = Fleet(A)
    fleet.dial(A)
    fleet.now += 3600
    fleet.leases.look(fleet.now)
    assert fleet.states(A) == ["ready"]


def test_nothing_becomes_lost_without_a_database_and_all_have_a_lease_to_come_back_after_it() -> None:
    fleet = Fleet(A, B)
    fleet.dial(A, B)
    fleet.leases.storage_is(up=True, now=fleet.now)
    fleet.wait(2.0, A)
    fleet.leases.storage_is(up=False, now=fleet.now)
    fleet.wait(300.0, A)
    assert fleet.states(A, B) == ["ready", "suspect"]
    fleet.leases.storage_is(up=True, now=fleet.now)
    fleet.wait(10.5, A)
    assert fleet.states(B) == ["suspect"]
    fleet.wait(1.0, A)
    assert fleet.states(B) == ["lost"]


def test_who_was_found_lost_after_the_database_went_is_lost_no_more() -> None:
    fleet = Fleet(A, B)
    fleet.dial(A, B)
    fleet.wait(10.0, A)
    fleet.leases.storage_is(up=True, now=fleet.now)
    fleet.wait(2.0, A)
    assert fleet.states(B) == ["lost"]
    fleet.leases.storage_is(up=False, now=fleet.now)
    assert fleet.states(B) == ["suspect"]
    assert not fleet.leases.brake.lost


def test_who_was_lost_before_the_database_went_stays_lost() -> None:
    fleet = Fleet(A, B)
    fleet.dial(A, B)
    fleet.wait(12.0, A)
    fleet.leases.storage_is(up=True, now=fleet.now)
    fleet.leases.storage_is(up=False, now=fleet.now)
    fleet.wait(30.0, A)
    assert fleet.states(B) == ["lost"]


def test_a_node_that_knocks_without_a_database_is_not_lost_and_not_ready() -> None:
    fleet = Fleet(A)
    fleet.dial(A)
    fleet.leases.happened(A, Ended(1), 0.0)
    for _ in range(20):
        fleet.wait(2.0)
        fleet.leases.happened(A, Knocked(), fleet.now)
    assert fleet.states(A) == ["suspect"]


def test_a_node_that_comes_back_remembers_that_it_was_away() -> None:
    fleet = Fleet(A, B)
    fleet.dial(A, B)
    fleet.wait(12.0, B)
    fleet.dial(A)
    fleet.wait(3.0, A, B)
    assert fleet.leases.returned_s(A, fleet.now) == 3.0
    assert fleet.leases.returned_s(B, fleet.now) is None


def test_three_silences_within_ten_minutes_are_flapping_and_ten_quiet_minutes_end_it() -> None:
    fleet = Fleet(A, B)
    fleet.dial(A, B)
    for _ in range(3):
        assert not fleet.leases.is_flapping(A, fleet.now)
        fleet.wait(7.0, B)
        fleet.wait(1.0, A, B)
    assert fleet.leases.is_flapping(A, fleet.now)
    fleet.wait(600.0, A, B)
    assert not fleet.leases.is_flapping(A, fleet.now)


# The brake


def many(count: int) -> tuple[NodeId, ...]:
    return tuple(NodeId(f"nod_{number:04}") for number in range(count))


@pytest.mark.parametrize(
    ("total", "silent", "is_on"),
    [(10, 4, True), (10, 3, False), (3, 1, False), (3, 3, True), (2, 2, True), (1, 1, False), (6, 2, False)],
    ids=["over 30 per cent", "30 per cent is not more", "one of three", "all", "both", "the only one", "two are few"],
)
def test_the_brake_goes_on_when_many_go_silent_at_once(total: int, silent: int, is_on: bool) -> None:
    nodes = many(total)
    fleet = Fleet(*nodes)
    fleet.dial(*nodes)
    fleet.wait(20.0, *nodes[silent:])
    assert fleet.leases.brake.is_on is is_on
    assert bool(brakes.sentence(fleet.leases.brake, total)) is is_on
    assert (len(fleet.leases.brake.held) == silent) is is_on


def test_the_first_of_those_cut_off_together_is_not_replaced_because_it_was_the_first() -> None:
    nodes = many(10)
    fleet = Fleet(*nodes)
    fleet.dial(*nodes)
    for number in range(4):  # their last beats lie as far apart as a heartbeat is long
        fleet.wait(0.5, *nodes[number:])
    while not fleet.leases.brake.lost:
        fleet.wait(0.5, *nodes[4:])
        assert not fleet.leases.brake.released
    assert fleet.leases.brake.is_on


def test_lost_nodes_are_released_one_a_second() -> None:
    nodes = many(100)
    fleet = Fleet(*nodes)
    fleet.dial(*nodes)
    fleet.wait(11.0, *nodes[20:])
    before = len(fleet.leases.brake.released)
    fleet.wait(10.0, *nodes[20:])
    assert before <= 1
    assert len(fleet.leases.brake.released) == before + 10


def test_the_brake_ends_by_itself_when_enough_are_back_and_the_rest_is_replaced() -> None:
    nodes = many(10)
    fleet = Fleet(*nodes)
    fleet.dial(*nodes)
    fleet.wait(20.0, *nodes[4:])
    fleet.dial(*nodes[2:4])
    fleet.wait(5.0, *nodes[2:])
    assert not fleet.leases.brake.is_on
    assert fleet.leases.brake.released == frozenset(nodes[:2])


def test_an_operator_releases_the_brake_for_what_is_lost_and_for_nothing_else() -> None:
    nodes = many(10)
    fleet = Fleet(*nodes)
    fleet.dial(*nodes)
    fleet.wait(20.0, *nodes[4:])
    fleet.leases.release_brake()
    fleet.wait(5.0, *nodes[4:])
    assert fleet.leases.brake.released == frozenset(nodes[:4])
    fleet.wait(20.0, *nodes[8:])
    assert fleet.leases.brake.is_on
    assert fleet.leases.brake.held == frozenset(nodes[4:8])


def test_losses_an_hour_apart_are_not_mass_silence() -> None:
    nodes = many(10)
    fleet = Fleet(*nodes)
    fleet.dial(*nodes)
    for gone in range(1, 6):
        fleet.wait(100.0, *nodes[gone:])
        assert not fleet.leases.brake.is_on
    assert fleet.leases.brake.released == frozenset(nodes[:5])


def test_a_forgotten_node_does_not_count() -> None:
    fleet = Fleet(A, B)
    fleet.dial(A, B)
    fleet.wait(20.0, A)
    fleet.leases.forget(B)
    assert not fleet.leases.brake.lost
    assert list(fleet.leases) == [A]


@given(
    lost=st.integers(0, 12),
    silent=st.integers(0, 12),
    others=st.integers(0, 12),
    is_on=st.booleans(),
    ages=st.lists(st.floats(0.0, 200.0), min_size=12, max_size=12),
)
def test_the_same_instant_looked_at_twice_is_the_same_brake(
    lost: int, silent: int, others: int, is_on: bool, ages: list[float]
) -> None:
    now, names = 1000.0, [NodeId(f"nod_{number}") for number in range(lost)]
    brake = Brake(lost={name: now - age for name, age in zip(names, ages, strict=False)}, is_on=is_on and lost > 0)
    once = brakes.looked(brake, nodes=lost + silent + others, silent=silent, now=now)
    assert brakes.looked(once, nodes=lost + silent + others, silent=silent, now=now) == once


def test_an_empty_brake_says_nothing() -> None:
    assert brakes.sentence(Brake(), 3) == ""


# Whatever happens


class LeaseLife(RuleBasedStateMachine):
    """Drives three nodes through anything, and checks what must hold after each step."""

    @initialize(has_left=st.booleans())
    def begin(self, has_left: bool) -> None:
        self.now, self.awake = 50.0, 0.0
        self.leases = Leases(TIMERS, self.now)
        self.nodes = (A, B, C)
        for node_id in self.nodes:
            self.leases.add(node_id, has_left=has_left)
        self.epoch = 0
        self.streams: dict[NodeId, int] = {}
        self.alive_at: dict[NodeId, float] = dict.fromkeys(self.nodes, 0.0)
        self.is_up, self.up_again_at = True, 0.0
        self.was_lost: set[NodeId] = set()

    def _note(self, node_id: NodeId) -> None:
        self.alive_at[node_id] = self.awake

    @rule(node=st.sampled_from((A, B, C)))
    def opened(self, node: NodeId) -> None:
        if not self.is_up:
            self.leases.happened(node, Knocked(), self.now)
        else:
            self.epoch += 1
            effects = self.leases.happened(node, Opened(self.epoch), self.now)
            if node in self.streams:
                assert CloseStream(self.streams[node]) in effects
            self.streams[node] = self.epoch
            assert self.leases.state(node) is NodeState.READY
        self._note(node)

    @rule(node=st.sampled_from((A, B, C)))
    def heard(self, node: NodeId) -> None:
        if node in self.streams:
            assert Stale() not in self.leases.happened(node, Heard(self.streams[node]), self.now)
            assert self.leases.state(node) is NodeState.READY
            self._note(node)

    @rule(node=st.sampled_from((A, B, C)), back=st.integers(1, 5))
    def heard_by_an_older_stream(self, node: NodeId, back: int) -> None:
        epoch = self.streams.get(node, self.epoch + 1) - back
        before = self.leases.lease(node)
        if epoch > 0:
            assert self.leases.happened(node, Heard(epoch), self.now) == (Stale(),)
            assert self.leases.lease(node) == before

    @rule(node=st.sampled_from((A, B, C)))
    def left(self, node: NodeId) -> None:
        if node in self.streams:
            self.leases.happened(node, Left(self.streams[node]), self.now)
            assert self.leases.state(node) is NodeState.OFFLINE
            self._note(node)

    @rule(node=st.sampled_from((A, B, C)))
    def ended(self, node: NodeId) -> None:
        before = self.leases.state(node)
        self.leases.happened(node, Ended(self.streams.pop(node, 0)), self.now)
        assert self.leases.state(node) is before

    @rule(seconds=st.floats(0.05, 3.0))
    def passed(self, seconds: float) -> None:
        self.now += seconds
        self.awake += min(seconds, TIMERS.max_step_s)
        self.leases.look(self.now)

    @rule(seconds=st.floats(10.0, 1e6))
    def was_suspended(self, seconds: float) -> None:
        self.now += seconds
        self.awake += TIMERS.max_step_s
        self.leases.look(self.now)

    @rule()
    def clock_went_back(self) -> None:
        self.now -= 3600.0
        self.leases.look(self.now)

    @rule()
    def storage_went(self) -> None:
        self.leases.storage_is(up=False, now=self.now)
        self.is_up = False

    @precondition(lambda self: not self.is_up)
    @rule()
    def storage_came(self) -> None:
        self.leases.storage_is(up=True, now=self.now)
        self.is_up, self.up_again_at = True, self.awake

    @rule()
    def operator_released_the_brake(self) -> None:
        self.leases.release_brake()
        assert not self.leases.brake.is_on

    @invariant()
    def nobody_is_lost_before_a_whole_lease_of_silence(self) -> None:
        if not hasattr(self, "leases"):
            return
        for node_id in self.nodes:
            silent_s = self.awake - self.alive_at[node_id]
            if self.leases.state(node_id) is NodeState.LOST:
                assert silent_s >= TIMERS.lost_s - 1e-6
                if node_id not in self.was_lost:
                    assert self.is_up
                    assert self.awake - self.up_again_at >= TIMERS.lost_s - 1e-6
                self.was_lost.add(node_id)
            else:
                self.was_lost.discard(node_id)

    @invariant()
    def who_speaks_of_late_is_not_suspect_and_who_is_silent_is_not_ready(self) -> None:
        if not hasattr(self, "leases"):
            return
        for node_id in self.nodes:
            silent_s = self.awake - self.alive_at[node_id]
            if self.leases.state(node_id) is NodeState.READY:
                assert silent_s < TIMERS.suspect_s + TIMERS.max_step_s

    @invariant()
    def the_brake_knows_exactly_the_lost(self) -> None:
        if not hasattr(self, "leases"):
            return
        lost = {node_id for node_id in self.nodes if self.leases.state(node_id) is NodeState.LOST}
        assert set(self.leases.brake.lost) == lost
        assert self.leases.brake.released <= lost
        assert not (self.leases.brake.is_on and not lost)


TestLeaseLife = LeaseLife.TestCase
TestLeaseLife.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_the_machine_is_a_function_of_its_arguments() -> None:
    terms = machine.Terms(suspect_s=6.0, lost_s=11.0)
    lease = machine.Lease(state=NodeState.READY, heard_at=1.0, stream=3, newest=3)
    assert machine.step(lease, machine.Looked(), 12.0, terms) == machine.step(lease, machine.Looked(), 12.0, terms)
    assert machine.step(lease, machine.Looked(), 12.0, terms)[0].state is NodeState.LOST
