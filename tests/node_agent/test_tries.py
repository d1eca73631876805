"""What is kept of a replica's tries, and what becomes of it in the next node agent."""

import json
from pathlib import Path

import pytest

from core.states import ReplicaState
from node_agent import tries
from node_agent.lifecycle import Exited
from node_agent.replica import Fault, Replica, RestartPolicy, step
from node_agent.tries import Tries

POLICY = RestartPolicy(loop_exits=3)


def after(exits: int) -> Replica:
    """Return a replica whose engine has died `exits` times, 10 s apart."""
    machine = Replica(policy=POLICY)
    for number in range(exits):
        running = Replica(**{**vars(machine), "state": ReplicaState.STARTING, "wake_at": None})
        machine = step(running, Exited(exit_code=3, log_tail=("why",)), 10.0 * number).replica
    return machine


@pytest.mark.parametrize("exits", [1, 2, 3])
def test_a_replica_at_rest_is_the_same_in_the_next_node_agent(tmp_path: Path, exits: int) -> None:
    machine = after(exits)
    tries.save(tmp_path, tries.tries_of(machine))
    kept = tries.load(tmp_path)
    assert kept == tries.tries_of(machine)
    again = tries.at_rest(tries.with_counts(Replica(policy=POLICY), kept), kept)
    assert again == machine
    assert (tmp_path / "tries.json").stat().st_mode & 0o777 == 0o600


def test_one_that_runs_keeps_its_counts_alone(tmp_path: Path) -> None:
    machine = Replica(**{**vars(after(2)), "state": ReplicaState.READY, "wake_at": None})
    tries.save(tmp_path, tries.tries_of(machine))
    kept = tries.load(tmp_path)
    assert (kept.resting, kept.wake_at, kept.fault) == ("", None, Fault())
    assert tries.at_rest(Replica(policy=POLICY), kept) is None
    assert tries.with_counts(Replica(policy=POLICY), kept).exits == (0.0, 10.0)


@pytest.mark.parametrize(
    "change",
    [
        {"boot_id": "another"},
        {"resting": "ready"},
        {"resting": "nonsense"},
        {"exits": "x"},
        {"fault": None},
        {"stranger": 1},
    ],
    ids=str,
)
def test_another_boot_or_a_damaged_file_counts_from_the_start(tmp_path: Path, change: dict[str, object]) -> None:
    tries.save(tmp_path, tries.tries_of(after(3)))
    file = tmp_path / "tries.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert tries.load(tmp_path) == Tries()


def test_no_file_counts_from_the_start(tmp_path: Path) -> None:
    assert tries.load(tmp_path / "nowhere") == Tries()
