"""Where the node agent may connect to when a source, or a redirect, names a host: public addresses, and what an
operator configured.

Comes in: URLs. Goes out: the addresses that were checked, which is what gets connected to, so that a name cannot lead
elsewhere between the look and the call. Called by `node_agent.files.http_get`. A name that leads to one address that
is not public is refused whole, always with the same words: they must not tell what lies in the operator's network.
"""

import ipaddress
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from core.errors import Failure

_PORTS = {"https": 443, "http": 80}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SITE_LOCAL = ipaddress.ip_network("fec0::/10")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Scheme, lower-case host and port: what a credential belongs to."""

    scheme: str
    host: str
    port: int


def origin_of(url: str) -> Origin:
    """Return the origin of an http or https URL.

    Raises:
        Failure: `source.not_allowed` for another scheme, for credentials in the URL, or for what is no URL.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _no_address() from None
    if parts.scheme not in _PORTS or not parts.hostname or parts.username is not None or not parts.hostname.isascii():
        raise _no_address()
    return Origin(scheme=parts.scheme, host=parts.hostname.rstrip("."), port=port or _PORTS[parts.scheme])


def origins_from_text(text: str) -> tuple[Origin, ...]:
    """Return the origins of a setting: `HOST`, `HOST:PORT` (https both) or `http://HOST:PORT`, with commas between.

    Raises:
        Failure: `settings.invalid`.
    """
    found = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        try:
            found.append(origin_of(word if "://" in word else f"https://{word}"))
        except Failure:
            raise Failure(
                "settings.invalid",
                f"{word[:200]!r} names no host to trust",
                hint="write HOST, HOST:PORT or http://HOST:PORT, with commas between several",
                param="source_hosts",
            ) from None
    return tuple(found)


def is_public(address: str) -> bool:
    """Return whether an IP address belongs to the public network; an IPv4 address inside an IPv6 one counts too."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in _NAT64:
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if any(one is not None and not is_public(str(one)) for one in inner):
            return False
        if ip.ipv4_mapped is not None or ip in _NAT64:
            return True
        if ip in _SITE_LOCAL:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def resolved(host: str, port: int) -> Sequence[str]:
    """Return the addresses that the system gives for a name. Blocks."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class Reach:
    """Knows the trusted origins; `resolve` gives a name's addresses."""

    def __init__(
        self, *, trusted: Iterable[Origin] = (), resolve: Callable[[str, int], Sequence[str]] = resolved
    ) -> None:
        self._trusted = frozenset(trusted)
        self._resolve = resolve

    def url_of(self, host: str, path: str) -> str:
        """Return the URL of `path` on `host[:port]`: https, unless the operator configured the host as plain http."""
        name, _, port = host.partition(":")
        plain = Origin(scheme="http", host=name, port=int(port or _PORTS["http"]))
        return f"{'http' if plain in self._trusted else 'https'}://{host}/{path}"

    def is_trusted(self, origin: Origin) -> bool:
        """Return whether an operator configured this origin."""
        return origin in self._trusted

    def addresses(self, origin: Origin) -> Sequence[str]:
        """Return the addresses to connect to. Blocks while the name is resolved.

        1. A trusted origin: whatever its name leads to.
        2. Anything else: only https, and only when every address is public.

        Raises:
            Failure: `source.not_allowed`, `source.unreachable`.
        """
        is_trusted = origin in self._trusted
        if not is_trusted and origin.scheme != "https":
            raise _no_address()
        try:
            found = self._resolve(origin.host, origin.port)
        except (OSError, UnicodeError):
            raise unresolved(origin.host) from None
        if not is_trusted and not all(is_public(address) for address in found):
            raise _no_address()
        return found

    def require_by_name(self, origin: Origin) -> None:
        """Check an origin that a proxy will resolve: what we can resolve ourselves must be public all the same.

        Raises:
            Failure: `source.not_allowed`.
        """
        try:
            self.addresses(origin)
        except Failure as failure:
            if failure.code != "source.unreachable":
                raise


def unresolved(host: str) -> Failure:
    """Return the failure of a name that leads nowhere, now."""
    return Failure("source.unreachable", f"the name {host[:200]} cannot be resolved", hint="check the name and the DNS")


def _no_address() -> Failure:
    return Failure(
        "source.not_allowed",
        "the source leads to an address that is not public, or not over https",
        hint="if the host is yours, name it in the setting source_hosts",
    )
