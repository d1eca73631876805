"""API keys of the front door: how they look, what is stored of them, how one is checked.

A key is `slice_<kid 12>_<secret 43>_<crc32 6>`: the kid is public and indexed, the secret is 256 random bits in
base62, and the checksum lets a door refuse a typo without a look-up. Stored and sent to doors is only
HMAC-SHA256(pepper, secret). Pure: entropy and pepper are arguments.
"""

import hashlib
import hmac
import re
import zlib
from dataclasses import dataclass

from core.ids import KeyId

_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_KEY = re.compile(r"^slice_([0-9a-z]{12})_([0-9A-Za-z]{43})_([0-9A-Za-z]{6})\Z")
ENTROPY_BYTES = 40
"""Bytes that `render_key` wants: 8 for the kid and 32 for the secret."""


@dataclass(frozen=True, kw_only=True)
class ParsedKey:
    """A key whose form and checksum are right; nothing is said yet about whether it is known."""

    kid: KeyId
    secret: str


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_BASE62[digit])
    return "".join(reversed(digits))


def _checksum(kid: str, secret: str) -> str:
    return _base62(zlib.crc32(f"{kid}_{secret}".encode()), 6)


def render_key(entropy: bytes) -> tuple[KeyId, str]:
    """Return the kid and the whole key made of `entropy` (exactly `ENTROPY_BYTES` bytes).

    Raises:
        ValueError: `entropy` has another length.
    """
    if len(entropy) != ENTROPY_BYTES:
        raise ValueError(f"a key needs {ENTROPY_BYTES} bytes of entropy")
    kid = _base62(int.from_bytes(entropy[:8], "big"), 12).lower()
    secret = _base62(int.from_bytes(entropy[8:], "big"), 43)
    return KeyId(kid), f"slice_{kid}_{secret}_{_checksum(kid, secret)}"


def parse_key(text: str) -> ParsedKey | None:
    """Return the parts of `text`, or None when it is no key of ours (wrong form or checksum)."""
    found = _KEY.match(text)
    if found is None or not hmac.compare_digest(_checksum(found[1], found[2]), found[3]):
        return None
    return ParsedKey(kid=KeyId(found[1]), secret=found[2])


def key_digest(pepper: bytes, secret: str) -> bytes:
    """Return the 32 bytes that are stored for a key's secret."""
    return hmac.new(pepper, secret.encode(), hashlib.sha256).digest()


def digests_match(stored: bytes, presented: bytes) -> bool:
    """Return whether two digests are equal, in time that does not depend on where they differ."""
    return hmac.compare_digest(stored, presented)


def engine_key(seed: bytes, replica_id: str) -> str:
    """Return the secret of one replica's engine: derived, so that no database ever stores it."""
    return hmac.new(seed, f"engine:{replica_id}".encode(), hashlib.sha256).hexdigest()
