"""Identity's values: API keys and join tokens as they are stored, what was just made, and who wants to join."""

from collections.abc import Mapping
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


@dataclass(frozen=True, kw_only=True)
class JoinToken:
    """What lets one machine join, once; `digest` is SHA-256 of its secret, `node_name` the only name or "".

    `used_key` is SHA-256 of the public key that was certified with it.
    """

    token_id: str
    digest: bytes = field(repr=False)
    labels: Mapping[str, str]
    node_name: str
    is_approving: bool
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    used_at: datetime | None
    used_by_node: str
    used_key: bytes | None

    def state(self, now: datetime) -> str:
        """Return `used`, `revoked`, `expired` or `usable`."""
        if self.used_at is not None:
            return "used"
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if now >= self.expires_at else "usable"


@dataclass(frozen=True, kw_only=True)
class MintedToken:
    """A fresh token together with the line to paste, which exists nowhere else."""

    token: JoinToken
    line: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class JoinWish:
    """What a machine says that wants to join; `address` is where it calls from."""

    protocol_min: int
    protocol_max: int
    token_id: str
    secret: str = field(repr=False)
    csr_pem: str
    node_id: str
    node_name: str
    machine_id: str
    agent_version: str
    address: str


@dataclass(frozen=True, kw_only=True)
class Joined:
    """What a machine gets that has joined."""

    node_name: str
    is_approved: bool
    cluster_id: str
    certificate_pem: str
    authority_pem: str
