"""The one line that makes another machine a node: `slice node join HOST:PORT/<token_id>.<secret>.<pin>`.

Pure text. PORT is the cluster's `node_port`; joins are taken on the next one. The pin is the beginning of the hash of
the authority's public key: whoever has the line knows the right controller before trusting anybody. The secret has 256
bits, so that its SHA-256 is all that need be stored of it.
"""

import hashlib
import hmac
import re
from dataclasses import dataclass, field

from core.errors import Failure

COMMAND = "slice node join"
PIN_DIGITS = 32
"""Hexadecimal digits of SHA-256 in a line: 128 bits, which nobody finds a second key for."""

_HOST = r"\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?"
_LINE = re.compile(
    rf"(?:{COMMAND} )?(?P<host>{_HOST}):(?P<port>[0-9]{{1,5}})"
    rf"/(?P<token_id>[0-9a-z_]{{1,64}})\.(?P<secret>[A-Za-z0-9_-]{{43}})\.(?P<pin>[0-9a-f]{{{PIN_DIGITS}}})\Z"
)


@dataclass(frozen=True, kw_only=True)
class JoinLine:
    """Where to join, with what, and whom to believe; `host` has no brackets, `port` is the cluster's `node_port`."""

    host: str
    port: int
    token_id: str
    secret: str = field(repr=False)
    pin: str

    @property
    def join_port(self) -> int:
        """The port that takes joins."""
        return self.port + 1

    def text(self) -> str:
        """Return the line to paste."""
        return f"{COMMAND} {address(self.host, self.port)}/{self.token_id}.{self.secret}.{self.pin}"

    def is_pinned(self, authority_pin: str) -> bool:
        """Return whether an authority whose public key has this whole hash (`Authority.pin`) is the one that is meant.

        Whoever joins must ask before anything secret is sent.
        """
        return hmac.compare_digest(self.pin, authority_pin[:PIN_DIGITS])


def parse_line(text: str) -> JoinLine:
    """Return what a pasted line says; `slice node join` before it may be missing, and spaces and breaks around it.

    Raises:
        Failure: `node.join_line_invalid`; its message repeats nothing of the line, which holds a secret.
    """
    found = _LINE.match(" ".join(text.split()))
    if found is None:
        raise _invalid("this is no line of `slice node token create`")
    port = int(found["port"])
    if not 1 <= port < 65535:
        raise _invalid(f"the port of this line, {port}, is outside 1 to 65534")
    return JoinLine(
        host=found["host"].strip("[]"),
        port=port,
        token_id=found["token_id"],
        secret=found["secret"],
        pin=found["pin"],
    )


def address(host: str, port: int) -> str:
    """Return HOST:PORT, the host in brackets when it is an IPv6 number."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def secret_digest(secret: str) -> bytes:
    """Return the 32 bytes that are stored of a token's secret."""
    return hashlib.sha256(secret.encode()).digest()


def _invalid(why: str) -> Failure:
    return Failure(
        "node.join_line_invalid",
        why,
        hint="paste it whole: HOST:PORT/TOKEN.SECRET.PIN, as `slice node token create` printed it on the controller",
        param="LINE",
    )
