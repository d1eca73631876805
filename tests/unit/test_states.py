"""The replica's table of transitions: total where it must be, and no way out of the end."""

import pytest

from core.states import (
    OCCUPYING,
    REPLICA_TRANSITIONS,
    SERVING,
    STAGE_MOVES,
    TARGET,
    Event,
    ReplicaState,
    Stage,
    next_replica_state,
    stage_path,
)

AT_REST = set(ReplicaState) - set(TARGET)


def reachable(start: ReplicaState) -> set[ReplicaState]:
    found, open_states = {start}, [start]
    while open_states:
        state = open_states.pop()
        for (before, _), after in REPLICA_TRANSITIONS.items():
            if before is state and after not in found:
                found.add(after)
                open_states.append(after)
    return found


def test_a_stopped_replica_never_moves_again():
    assert all(next_replica_state(ReplicaState.STOPPED, event) is None for event in Event)


def test_only_the_controller_says_lost():
    assert ReplicaState.LOST not in REPLICA_TRANSITIONS.values()
    assert not [before for before, _ in REPLICA_TRANSITIONS if before is ReplicaState.LOST]


@pytest.mark.parametrize("state", sorted(set(ReplicaState) - {ReplicaState.STOPPED, ReplicaState.LOST}))
def test_every_living_state_can_be_stopped(state):
    assert ReplicaState.STOPPED in reachable(state)


@pytest.mark.parametrize("state", sorted(set(ReplicaState) - {ReplicaState.LOST}))
def test_every_state_is_reached_from_the_beginning(state):
    assert state in reachable(ReplicaState.ASSIGNED)


@pytest.mark.parametrize("state", sorted(TARGET))
def test_a_moving_state_can_reach_its_target(state):
    assert TARGET[state] in reachable(state)
    assert TARGET[state] in AT_REST


def test_a_replica_is_told_to_stop_only_once():
    assert next_replica_state(ReplicaState.STOPPING, Event.STOP_ASKED) is None


def test_a_passed_probe_alone_makes_ready():
    makers = {event for (_, event), after in REPLICA_TRANSITIONS.items() if after is ReplicaState.READY}
    assert makers == {Event.PROBE_PASSED}


def test_what_serves_occupies_and_what_gave_up_does_not():
    assert SERVING <= OCCUPYING
    assert not OCCUPYING & {ReplicaState.STOPPED, ReplicaState.FAILED, ReplicaState.CRASH_LOOP}


def test_states_whose_engine_may_live_occupy():
    with_process = {ReplicaState.STARTING, ReplicaState.READY, ReplicaState.UNHEALTHY, ReplicaState.STOPPING}
    assert with_process | {ReplicaState.LOST} <= OCCUPYING


def test_production_is_entered_from_staging_alone_and_retirement_left_to_the_start_alone():
    assert [stage for stage in Stage if Stage.PRODUCTION in STAGE_MOVES[stage]] == [Stage.STAGING]
    assert STAGE_MOVES[Stage.RETIRED] == {Stage.CANDIDATE}
    assert all(Stage.RETIRED in STAGE_MOVES[stage] for stage in Stage if stage is not Stage.RETIRED)


@pytest.mark.parametrize("start", list(Stage))
@pytest.mark.parametrize("end", list(Stage))
def test_the_way_from_stage_to_stage_is_made_of_allowed_moves(start, end):
    here = start
    for there in stage_path(start, end):
        assert there in STAGE_MOVES[here]
        here = there
    assert here is end
