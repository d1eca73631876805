"""The real source of randomness: identifiers, keys and secrets."""

import secrets

from core.ids import render_id


class SystemEntropy:
    """Implements `core.ids.IdSource` on the operating system's generator."""

    def fresh(self, prefix: str) -> str:
        """Return a new identifier `<prefix>_<20 characters>`."""
        return render_id(prefix, secrets.token_bytes(13))

    def token_bytes(self, count: int) -> bytes:
        """Return `count` random bytes."""
        return secrets.token_bytes(count)

    def token_text(self) -> str:
        """Return a URL-safe secret of 256 bits."""
        return secrets.token_urlsafe(32)
