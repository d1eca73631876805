"""Identity's values: API keys as they are stored, and a key that was just minted."""

from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """One key of the front door; `digest` is HMAC-SHA256(pepper, secret), 32 bytes."""

    kid: str
    name: str
    project: str
    digest: bytes = field(repr=False)
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class MintedKey:
    """A fresh key together with its text, which exists nowhere else."""

    key: ApiKey
    text: str = field(repr=False)
