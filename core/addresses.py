"""Addresses of programs on the same machine: which URLs are loopback, without asking any name server.

Pure. Called at every edge that takes the address of an engine that somebody else runs on a node.
"""

import ipaddress
from urllib.parse import urlsplit

from core.errors import Failure


def loopback_url(text: str) -> str:
    """Return `text`, an http URL of a loopback address, in its one form: `http://HOST:PORT`.

    Raises:
        Failure: `request.invalid_field` for anything else: what an engine tells over a network is nobody's to adopt.
    """
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError:
        raise _refused(text) from None
    is_bare = parts.path in ("", "/") and not (parts.query or parts.fragment or parts.username or parts.password)
    host = (parts.hostname or "").lower()
    if parts.scheme != "http" or not is_bare or not is_loopback(host) or not port:
        raise _refused(text)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Return whether `host` is `localhost` or a loopback number; any other name is not, whatever it resolves to."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refused(text: str) -> Failure:
    return Failure(
        "request.invalid_field",
        f"{text[:200]!r} is no address on the node itself",
        hint="write http://127.0.0.1:PORT; an engine on another machine is served with the engine 'openai'",
        param="url",
    )
