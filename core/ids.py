"""Identifiers of the cluster's things: distinct types, so that a node's id never passes for a replica's.

Goes in: a prefix and a source of entropy. Comes out: `<prefix>_<20 base32 characters>`. Everyone uses these types;
nothing here reads a clock or a random source by itself.
"""

from typing import NewType, Protocol

ModelName = NewType("ModelName", str)
ModelId = NewType("ModelId", str)
VersionId = NewType("VersionId", str)
PullId = NewType("PullId", str)
DeploymentId = NewType("DeploymentId", str)
ReplicaId = NewType("ReplicaId", str)
NodeId = NewType("NodeId", str)
DeviceId = NewType("DeviceId", str)
KeyId = NewType("KeyId", str)
ProjectId = NewType("ProjectId", str)
Sha256 = NewType("Sha256", str)
"""Lower-case hexadecimal SHA-256 of a file's bytes, 64 characters, no prefix."""

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base32: no i, l, o, u, so ids survive being read aloud


class IdSource(Protocol):
    """Where fresh identifiers come from; the real one is `core.infra.entropy.SystemEntropy`."""

    def fresh(self, prefix: str) -> str:
        """Return a new identifier that starts with `prefix` and an underscore."""


def render_id(prefix: str, entropy: bytes) -> str:
    """Return `<prefix>_<20 characters>` made of the first 100 bits of `entropy` (at least 13 bytes).

    Raises:
        ValueError: fewer than 13 bytes were given.
    """
    if len(entropy) < 13:
        raise ValueError("an identifier needs at least 13 bytes of entropy")
    number = int.from_bytes(entropy[:13], "big") >> 4
    digits = []
    for _ in range(20):
        number, digit = divmod(number, 32)
        digits.append(_ALPHABET[digit])
    return f"{prefix}_{''.join(reversed(digits))}"
