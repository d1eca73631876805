"""The replica's machine: tables and properties, no process and no clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Failure
from core.states import REPLICA_TRANSITIONS, ReplicaState
from node_agent import lifecycle as life
from node_agent.replica import Bounds, Replica, RestartPolicy, step

NO_JITTER = 0.5
EVENTS: tuple[life.Happened, ...] = (
    life.Wanted(),
    life.FilesReady(),
    life.EngineReady(),
    life.PreparationFailed(failure=Failure("source.unreachable", "no network")),
    life.PreparationFailed(failure=Failure("source.digest_mismatch", "bad bytes")),
    life.Spawned(incarnation=1),
    life.Adopted(incarnation=7, age_s=5.0),
    life.ProbePassed(),
    life.ProbeFailed(reason="no answer"),
    life.Exited(exit_code=1),
    life.Exited(exit_code=1, is_port_taken=True),
    life.Exited(exit_signal=9, out_of_memory="host"),
    life.TimeCame(),
    life.StopAsked(),
    life.TreeGone(),
)


def led(*events: life.Happened, replica: Replica | None = None, now: float = 0.0) -> Replica:
    """Return the replica after `events`, all at `now`."""
    replica = replica or Replica()
    for event in events:
        replica = step(replica, event, now).replica
    return replica


STARTING = (life.Wanted(), life.FilesReady(), life.EngineReady(), life.Spawned(incarnation=1))
READY = (*STARTING, life.ProbePassed())


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ((), "assigned"),
        ((life.Wanted(),), "fetching"),
        ((life.Wanted(), life.FilesReady()), "installing"),
        (STARTING[:3], "installing"),
        (STARTING, "starting"),
        (READY, "ready"),
        ((life.Adopted(incarnation=3, age_s=9.0),), "starting"),
        ((*STARTING, life.ProbeFailed()), "starting"),
        ((*READY, *[life.ProbeFailed()] * 2), "ready"),
        ((*READY, *[life.ProbeFailed()] * 3), "unhealthy"),
        ((*READY, *[life.ProbeFailed()] * 3, life.ProbePassed()), "ready"),
        ((*READY, life.Exited(exit_code=0)), "backoff"),
        ((*READY, life.StopAsked()), "stopping"),
        ((*READY, life.StopAsked(), life.Exited(exit_signal=15)), "stopping"),
        ((*READY, life.StopAsked(), life.Exited(exit_signal=15), life.TreeGone()), "stopped"),
        ((life.Wanted(), life.StopAsked()), "stopped"),
        ((life.Wanted(), life.PreparationFailed(failure=Failure("format.refused", "x"))), "failed"),
        ((life.Wanted(), life.PreparationFailed(failure=Failure("disk.full", "x"))), "fetching"),
        ((*READY, life.Exited(exit_code=1), life.TreeGone()), "backoff"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_events_lead_to_the_states_of_the_table(events: tuple[life.Happened, ...], state: str) -> None:
    assert led(*events).state == state


def test_each_step_asks_for_the_next_deed() -> None:
    replica, asked = Replica(), []
    for event in (*STARTING, life.StopAsked()):
        done = step(replica, event, 0.0)
        replica = done.replica
        asked += [type(effect).__name__ for effect in done.effects]
    assert asked == ["FetchFiles", "InstallEngine", "Spawn", "Watch", "StopEngine"]


def test_the_pauses_double_until_the_loop_is_seen() -> None:
    replica, now, pauses = Replica(), 0.0, []
    for count in range(5):
        replica = led(*STARTING[count and 1 :], replica=replica, now=now)
        replica = step(replica, life.Exited(exit_code=1, chance=NO_JITTER), now).replica
        if replica.state is ReplicaState.CRASH_LOOP:
            break
        assert replica.wake_at is not None
        pauses.append(replica.wake_at - now)
        now = replica.wake_at
        done = step(replica, life.TimeCame(), now)
        assert done.effects == (life.FetchFiles(),)
        replica = done.replica
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    assert replica.state is ReplicaState.CRASH_LOOP
    assert replica.wake_at is None
    assert "5 times within 15 minutes" in replica.fault.message
    assert led(life.StopAsked(), replica=replica).state is ReplicaState.STOPPED


def test_ten_good_minutes_wash_earlier_deaths_away() -> None:
    replica = Replica(restarts_in_a_row=4, exits=(0.0, 1.0, 2.0, 3.0))
    replica = led(*READY, replica=replica, now=10.0)
    replica = led(life.ProbePassed(), replica=replica, now=611.0)
    assert (replica.restarts_in_a_row, replica.exits) == (0, ())
    replica = led(life.Exited(exit_code=1, chance=NO_JITTER), replica=replica, now=612.0)
    assert (replica.state, replica.wake_at) == (ReplicaState.BACKOFF, 613.0)


def test_deaths_far_apart_are_no_loop() -> None:
    replica = Replica(exits=(0.0, 1.0, 2.0, 3.0))
    replica = led(*STARTING, replica=replica, now=950.0)
    assert led(life.Exited(exit_code=1), replica=replica, now=950.0).state is ReplicaState.BACKOFF


def test_a_taken_port_is_tried_elsewhere_at_once_and_counts_as_no_death() -> None:
    replica = led(*STARTING, now=5.0)
    for _ in range(3):
        replica = led(life.Exited(exit_code=1, is_port_taken=True), replica=replica, now=5.0)
        assert (replica.state, replica.wake_at, replica.exits) == (ReplicaState.BACKOFF, 5.0, ())
        replica = led(life.TimeCame(), *STARTING[1:], replica=replica, now=5.0)
    replica = led(life.Exited(exit_code=1, is_port_taken=True), replica=replica, now=5.0)
    assert replica.exits == (5.0,)


def test_a_start_that_takes_too_long_is_ended_and_said_so() -> None:
    replica = led(*STARTING, replica=Replica(bounds=Bounds(start_timeout_s=30)))
    assert step(replica, life.ProbeFailed(), 29.0).effects == ()
    done = step(replica, life.ProbeFailed(), 31.0)
    assert done.effects == (life.EndEngine(),)
    assert step(done.replica, life.ProbeFailed(), 32.0).effects == ()
    ended = led(life.Exited(exit_signal=9), replica=done.replica, now=33.0)
    assert (ended.state, ended.fault.code, ended.fault.exit_signal) == (ReplicaState.BACKOFF, "engine.start_timeout", 9)


def test_an_engine_that_never_answers_again_is_restarted() -> None:
    replica = led(*READY, *[life.ProbeFailed()] * 3)
    assert step(replica, life.ProbeFailed(), 119.0).effects == ()
    done = step(replica, life.ProbeFailed(), 121.0)
    assert done.effects == (life.EndEngine(),)
    assert led(life.Exited(exit_signal=9), replica=done.replica, now=122.0).fault.code == "engine.unresponsive"


def test_a_failed_preparation_is_tried_again_after_its_pause() -> None:
    failed = life.PreparationFailed(failure=Failure("source.unreachable", "no network"), chance=NO_JITTER)
    replica = led(life.Wanted(), failed)
    assert (replica.wake_at, replica.fault.code) == (1.0, "source.unreachable")
    assert step(replica, life.TimeCame(), 0.9).effects == ()
    assert step(replica, life.TimeCame(), 1.0).effects == (life.FetchFiles(),)


def test_the_first_probe_measures_the_load() -> None:
    replica = led(life.ProbePassed(), replica=led(*STARTING, now=10.0), now=12.5)
    assert replica.load_s == 2.5


@given(count=st.integers(0, 10_000), chance=st.floats(0, 1))
def test_a_pause_is_never_above_its_cap_and_jitter(count: int, chance: float) -> None:
    policy = RestartPolicy()
    assert 0.8 <= policy.delay_s(count, chance) <= 300.0 * 1.2


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.floats(0, 400)), max_size=60))
def test_no_sequence_of_events_leaves_the_table(happened: list[tuple[life.Happened, float]]) -> None:
    replica, now, engines = Replica(), 0.0, 0
    for event, later in happened:
        now += later
        if isinstance(event, life.Spawned | life.Adopted) and replica.state not in _UNSPAWNED:
            continue  # the owner spawns only when asked to
        done = step(replica, event, now)
        allowed = {after for (before, _), after in REPLICA_TRANSITIONS.items() if before is replica.state}
        # Backoff passes through assigned on its way to fetching, within one step.
        if replica.state is ReplicaState.BACKOFF:
            allowed.add(ReplicaState.FETCHING)
        assert done.replica.state in allowed | {replica.state}
        engines += sum(isinstance(effect, life.Watch) for effect in done.effects)
        replica = done.replica
        assert (replica.wake_at is not None) <= (replica.state in _WAITING)
        assert replica.state is not ReplicaState.BACKOFF or replica.wake_at is not None
        assert replica.state is not ReplicaState.CRASH_LOOP or len(replica.exits) >= replica.policy.loop_exits


_UNSPAWNED = (ReplicaState.ASSIGNED, ReplicaState.INSTALLING)
_WAITING = (ReplicaState.BACKOFF, ReplicaState.FETCHING, ReplicaState.INSTALLING)


@given(st.lists(st.sampled_from(EVENTS), max_size=30))
def test_a_stop_always_ends_in_stopped(happened: list[life.Happened]) -> None:
    replica = led(*happened)
    stopped = led(life.StopAsked(), life.Exited(exit_signal=15), life.TreeGone(), replica=replica)
    assert stopped.state is ReplicaState.STOPPED
    assert stopped.wake_at is None


# An engine that runs elsewhere

ELSEWHERE = Replica(bounds=Bounds(is_ours=False))
FOUND = (life.Wanted(), life.Spawned(incarnation=1))
UNWELL = life.ProbeFailed(reason="it answers 500")


def test_an_engine_elsewhere_is_neither_fetched_nor_installed() -> None:
    assert step(ELSEWHERE, life.Wanted(), 0.0).effects == (life.Spawn(incarnation=1),)


@pytest.mark.parametrize(
    ("events", "state"),
    [
        (FOUND, "starting"),
        ((*FOUND, life.ProbePassed()), "ready"),
        ((*FOUND, UNWELL, UNWELL), "starting"),
        ((*FOUND, UNWELL, UNWELL, UNWELL), "unhealthy"),
        ((*FOUND, life.ProbePassed(), UNWELL, UNWELL), "ready"),
        ((*FOUND, life.ProbePassed(), UNWELL, UNWELL, UNWELL), "unhealthy"),
        ((*FOUND, UNWELL, UNWELL, UNWELL, life.ProbePassed()), "ready"),
        ((*FOUND, life.StopAsked(), life.TreeGone()), "stopped"),
        ((life.Wanted(), EVENTS[4]), "failed"),
    ],
)
def test_an_engine_elsewhere_is_only_seen_well_or_unwell(events: tuple[life.Happened, ...], state: str) -> None:
    assert led(*events, replica=ELSEWHERE).state == state


def test_the_first_failed_probe_of_an_engine_elsewhere_is_told() -> None:
    assert "it answers 500" in led(*FOUND, UNWELL, replica=ELSEWHERE).fault.message


def test_a_preparation_that_may_work_later_is_made_again_elsewhere_too() -> None:
    waiting = led(life.Wanted(), EVENTS[3], replica=ELSEWHERE)
    assert waiting.wake_at is not None
    assert step(waiting, life.TimeCame(), waiting.wake_at).effects == (life.Spawn(incarnation=1),)


@given(st.lists(st.sampled_from([life.ProbePassed(), UNWELL, life.TimeCame()]), max_size=200), st.floats(0, 1e6))
def test_an_engine_elsewhere_is_never_ended_however_long_it_is_silent(events: list[life.Happened], gap: float) -> None:
    replica, now = led(*FOUND, replica=ELSEWHERE), 0.0
    for event in events:
        now += gap
        done = step(replica, event, now)
        assert not done.effects
        assert done.replica.ending_as is None
        replica = done.replica


@pytest.mark.parametrize(
    ("events", "whose", "words"),
    [(STARTING, "cgroup", "before it was ready: a memory limit"), (READY, "host", "serving: the machine ran out of")],
    ids=["a limit at the start", "the machine while serving"],
)
def test_an_engine_that_memory_ended_says_whose_memory(
    events: tuple[life.Happened, ...], whose: str, words: str
) -> None:
    fault = led(*events, life.Exited(exit_signal=9, out_of_memory=whose)).fault
    assert (fault.code, fault.exit_signal) == ("engine.out_of_memory", 9)
    assert words in fault.message


def test_an_engine_that_the_node_ended_is_told_of_by_that_reason_alone() -> None:
    silent = led(*READY, *[life.ProbeFailed()] * 3)
    ending = led(life.ProbeFailed(), replica=silent, now=500.0)
    fault = led(life.Exited(exit_signal=9, out_of_memory="host"), replica=ending, now=501.0).fault
    assert fault.code == "engine.unresponsive"
