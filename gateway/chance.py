"""Chance as the door needs it: a Protocol for draws, and one source seeded by the operating system.

Comes in: nothing. Goes out: a `Chance` that is handed to whoever draws (balance, watch, door ids). Tests hand in a
seeded `random.Random`. No secret may be made of it.
"""

from collections.abc import Sequence
from random import Random  # noqa: TID251 - this is where the seeded source is made
from typing import Protocol, TypeVar

from core.infra.entropy import SystemEntropy

Item = TypeVar("Item")


class Chance(Protocol):
    """The draws that the door makes; `random.Random` satisfies it."""

    def random(self) -> float:
        """Return a number in [0, 1)."""

    def uniform(self, a: float, b: float) -> float:
        """Return a number between `a` and `b`."""

    def sample(self, population: Sequence[Item], k: int) -> list[Item]:
        """Return `k` different members of `population`."""

    def randbytes(self, n: int) -> bytes:
        """Return `n` bytes."""


def system_chance() -> Chance:
    """Return a source of its own seed."""
    return Random(SystemEntropy().token_bytes(16))  # noqa: S311 - draws replicas and delays, never secrets
