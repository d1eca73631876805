"""Who is calling: an Authorization header checked against the key table.

Comes in: the header, the keys, the pepper, an instant. Goes out: the key's entry, or a `Failure` of the 401 class.
Pure. It must not say why a key is wrong before its secret was proven, and nothing here may print a key.
"""

from collections.abc import Mapping

from core.apikeys import digests_match, key_digest, parse_key
from core.errors import Failure
from core.ids import KeyId
from gateway.table import KeyEntry

_NOBODY = bytes(32)


def caller(header: bytes | None, keys: Mapping[KeyId, KeyEntry], pepper: bytes, now_unix_s: float) -> KeyEntry:
    """Return the entry of the key in an `Authorization: Bearer` header.

    Raises:
        Failure: `auth.missing`, `auth.invalid`, `auth.key_revoked` or `auth.key_expired`.
    """
    scheme, _, text = (header or b"").strip().partition(b" ")
    if scheme.lower() != b"bearer" or not text.strip():
        raise Failure(
            "auth.missing", "You did not provide an API key", hint="send it as 'Authorization: Bearer slice_...'"
        )
    parsed = parse_key(text.strip().decode("ascii", "replace"))
    if parsed is None:
        raise Failure("auth.invalid", "Incorrect API key provided", hint="check that it was copied whole")
    entry = keys.get(parsed.kid)
    # An unknown kid costs the same time as a known one.
    is_proven = digests_match(entry.digest if entry else _NOBODY, key_digest(pepper, parsed.secret))
    if entry is None or not is_proven:
        raise Failure("auth.invalid", "Incorrect API key provided", hint="`slice key list` shows the known keys")
    if entry.is_revoked:
        raise Failure("auth.key_revoked", f"API key '{entry.kid}' has been revoked", hint="ask for a new one")
    if 0 < entry.expires_unix_s <= now_unix_s:
        raise Failure("auth.key_expired", f"API key '{entry.kid}' has expired", hint="ask for a new one")
    return entry
