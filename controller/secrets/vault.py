"""Seals and opens secrets with the key that lies outside the database; the only place where a value is in the clear.

Comes in: the cluster's 32-byte key, values to seal, rows to open. Goes out: rows, and values for the two messages that
carry them: `ReplicaWant.engine_key` and `Target.engine_key`. Nothing here logs, and no exception carries a value.
"""

from collections.abc import Iterable, Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from controller.secrets.model import SealedSecret
from core.errors import Failure

NONCE_BYTES = 12
"""NIST SP 800-38D, 8.2.2: a random nonce of 96 bits; a key seals far less than 2^32 of them."""
KEY_BYTES = 32


class Vault:
    """One cluster's key; remembers what the newest picture of the database held."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise Failure(
                "secret.unreadable",
                "the cluster's secret key is not 32 bytes long",
                hint="restore DATA/secrets/secret_key from a backup",
            )
        self._cipher = AESGCM(key)
        self._opened: dict[str, tuple[str, str]] = {}

    def seal(self, name: str, value: str, nonce: bytes) -> bytes:
        """Return the ciphertext of `value`, bound to `name`; `nonce` must be fresh."""
        return self._cipher.encrypt(nonce, value.encode(), _bound_to(name))

    def open(self, secret: SealedSecret) -> str:
        """Return the value.

        Raises:
            Failure: `secret.unreadable` when another key sealed it, or the row was changed.
        """
        try:
            return self._cipher.decrypt(secret.nonce, secret.ciphertext, _bound_to(secret.name)).decode()
        except (InvalidTag, ValueError):
            raise Failure(
                "secret.unreadable",
                f"the secret {secret.name!r} cannot be opened with this cluster's key file",
                hint="restore DATA/secrets/secret_key, or store the value again with `slice secret set`",
            ) from None

    def take(self, secrets: Iterable[SealedSecret]) -> tuple[Failure, ...]:
        """Open what is new or changed and forget what is gone; return a failure for each that cannot be opened."""
        opened: dict[str, tuple[str, str]] = {}
        faults = []
        for secret in secrets:
            known = self._opened.get(secret.name)
            if known is not None and known[0] == secret.mark:
                opened[secret.name] = known
                continue
            try:
                opened[secret.name] = (secret.mark, self.open(secret))
            except Failure as failure:
                faults.append(failure)
        self._opened = opened
        return tuple(faults)

    def values(self) -> Mapping[str, str]:
        """Return what could be opened, by name."""
        return {name: value for name, (_, value) in self._opened.items()}

    def value(self, name: str) -> str:
        """Return one secret's value, "" when there is none that can be opened."""
        return self._opened.get(name, ("", ""))[1]


def _bound_to(name: str) -> bytes:
    return b"slice-secret:" + name.encode()
