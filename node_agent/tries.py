"""What a replica has tried so far, on disk: its exits, its back-off, its crash loop.

Comes in: the replica's machine. Goes out: `tries.json` beside the shim's record, 0600 and fsynced, and the machine as
it was, for the next node agent. Called by `node_agent.runner`. Without it each restart of the node agent would give an
engine that dies at once five more tries. Instants are the host's monotonic seconds, so that a reboot forgets them: it
is a cure that is worth trying.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from core.infra import cluster
from core.states import ReplicaState
from node_agent import shim_client
from node_agent.replica import NO_FAULT, Fault, Replica

_FILE = "tries.json"
_RESTING = frozenset({ReplicaState.BACKOFF, ReplicaState.CRASH_LOOP})
"""States in which nothing runs and nothing is prepared: what an earlier node agent decided stands."""


@dataclass(frozen=True, kw_only=True)
class Tries:
    """What outlives a node agent; `resting` is `backoff`, `crash_loop` or "", with its `wake_at` and why."""

    exits: tuple[float, ...] = ()
    restarts: int = 0
    restarts_in_a_row: int = 0
    resting: str = ""
    wake_at: float | None = None
    fault: Fault = NO_FAULT


def tries_of(machine: Replica) -> Tries:
    """Return what is to be kept of `machine`."""
    is_resting = machine.state in _RESTING
    return Tries(
        exits=machine.exits,
        restarts=machine.restarts,
        restarts_in_a_row=machine.restarts_in_a_row,
        resting=machine.state.value if is_resting else "",
        wake_at=machine.wake_at if is_resting else None,
        fault=machine.fault if is_resting else NO_FAULT,
    )


def with_counts(machine: Replica, tries: Tries) -> Replica:
    """Return `machine` with the counts of an earlier node agent: what it finds running is not new."""
    return replace(machine, exits=tries.exits, restarts=tries.restarts, restarts_in_a_row=tries.restarts_in_a_row)


def at_rest(machine: Replica, tries: Tries) -> Replica | None:
    """Return `machine` as it rested, or None when it did not; its wait goes on, it does not begin anew."""
    if not tries.resting:
        return None
    return replace(machine, state=ReplicaState(tries.resting), wake_at=tries.wake_at, fault=tries.fault)


def save(directory: Path, tries: Tries) -> None:
    """Write `tries` whole or not at all. Blocks.

    Raises:
        OSError: the disk does not take it.
    """
    cluster.write_private(directory / _FILE, json.dumps({"boot_id": shim_client.boot_id(), **asdict(tries)}) + "\n")


def load(directory: Path) -> Tries:
    """Return what `save` wrote in this boot; nothing tried when that is nothing, or cannot be read. Blocks."""
    try:
        values = json.loads((directory / _FILE).read_text())
        if values.pop("boot_id") != shim_client.boot_id():
            return Tries()
        fault = values.pop("fault")
        found = Tries(**values, fault=Fault(**{**fault, "log_tail": tuple(fault["log_tail"])}))
        if found.resting and ReplicaState(found.resting) not in _RESTING:
            return Tries()
        return replace(found, exits=tuple(float(at) for at in found.exits))
    except (OSError, ValueError, KeyError, TypeError):
        return Tries()
