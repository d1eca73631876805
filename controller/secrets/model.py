"""The values of secrets: sealed as they stand in the table, and what may be shown of one."""

from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class SealedSecret:
    """One secret under AES-256-GCM; `nonce` is fresh with each value."""

    name: str
    nonce: bytes = field(repr=False)
    ciphertext: bytes = field(repr=False)
    created_at: datetime

    @property
    def mark(self) -> str:
        """Something that changes with the value and says nothing of it."""
        return self.nonce.hex()


@dataclass(frozen=True, kw_only=True)
class SecretFacts:
    """What may be shown: never the value, nor its length. `is_readable` says that this cluster's key file opens it."""

    name: str
    created_at: datetime
    used_by: tuple[str, ...]
    is_readable: bool
