"""What a replica's runner asks of its engine, whatever the runtime; and what an engine is given to work with.

The runner decides by `node_agent.replica` and calls; the engine acts and tells what happened through `Seat.tell`.
Implemented by `process`, `container` and `external` beside this file.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from core.states import ReplicaState
from node_agent import lifecycle
from node_agent.replica import Bounds
from node_agent.surroundings import Surroundings
from protos.slice.node.v1 import node_pb2


@dataclass(frozen=True, kw_only=True)
class Seat:
    """One replica's place: its want and directory, the node around it, and the way back to its runner."""

    want: node_pb2.ReplicaWant
    directory: Path
    around: Surroundings
    tell: Callable[[lifecycle.Happened], None]
    state: Callable[[], ReplicaState]

    @property
    def log_path(self) -> Path:
        """The engine's log."""
        return self.directory / "engine.log"


@dataclass(frozen=True, kw_only=True)
class Whereabouts:
    """Where an engine is and what it weighs, for the replica's report; zeros and "" while there is none."""

    pid: int = 0
    host: str = ""
    port: int = 0
    base_url: str = ""
    memory_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Found:
    """What an earlier life of the node agent left: the last incarnation, and the engine if it lives."""

    incarnation: int = 0
    adopted: lifecycle.Adopted | None = None


class Engine(Protocol):
    """One replica's engine; only its runner calls it, one call at a time."""

    def bounds(self) -> Bounds:
        """Return the engine's deadlines."""

    def whereabouts(self) -> Whereabouts:
        """Return where it is now."""

    async def take_up(self) -> Found:
        """Adopt what lives, and sweep what a dead owner left.

        Raises:
            Failure: `shim.lost` when something lives that can be neither reached nor swept.
        """

    async def fetch(self) -> None:
        """Bring its files.

        Raises:
            Failure: from the store.
        """

    async def install(self) -> None:
        """Make its program, or its image, available.

        Raises:
            Failure: `engine.*`, `container.*`, `disk.full`.
        """

    async def until_memory_is_back(self) -> None:
        """Wait until the device memory that its last incarnation held is free again.

        Raises:
            Failure: `engine.memory_not_returned`.
        """

    async def spawn(self, incarnation: int) -> None:
        """Start it as `incarnation`.

        Raises:
            Failure: it could not be started.
        """

    def watch(self, tasks: asyncio.TaskGroup) -> None:
        """Begin to tell of probes, memory and its end."""

    async def end(self, grace_s: float) -> None:
        """End it; its `Exited` and `TreeGone` are told when nothing of it is left."""

    async def note_ready(self, load_s: float) -> None:
        """Write down that it became ready `load_s` seconds after its spawn, for the next node agent."""

    def renew_key(self, key: str) -> None:
        """Use `key` from now on, if the engine's key is not one of its spawn."""

    def clear(self) -> None:
        """Forget where it was; nothing of it is left."""
