"""Where an engine that is not ours may be: base URLs as values, and the addresses that nobody may be sent to.

Pure. Called by adapters (what an operator typed), the node agent (before a probe) and the front door (before a
connection). A name is only judged by its syntax here; what it resolves to is judged, address by address, by whoever
connects, who must then connect to that very address: a second look-up could give another one.
"""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from core import addresses
from core.errors import Failure

# Labels of 1 to 63 characters (RFC 1035, 2.3.4): the resolver raises UnicodeError for others.
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"^(?=.{{1,254}}\Z){_LABEL}(?:\.{_LABEL})*\.?\Z")
_PATH = re.compile(r"^[A-Za-z0-9._~!$&'()*+,;=:@%/-]*\Z")
_MAX_URL = 2000

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_network = ipaddress.ip_network

# Cloud providers answer there with the credentials of the machine that asks (AWS, GCP, Azure: 169.254.169.254; AWS
# over IPv6; Alibaba; Oracle Classic), and nothing routable is link-local, multicast or unspecified.
_REFUSED = tuple(
    _network(text)
    for text in (
        *("0.0.0.0/8", "169.254.0.0/16", "100.100.100.200/32", "192.0.0.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        *("::/128", "fe80::/10", "fec0::/10", "ff00::/8", "fd00:ec2::/32"),
    )
)
# RFC 1918, RFC 6598 (carrier-grade NAT, overlay networks), RFC 4193, and loopback.
_NEAR = tuple(
    _network(text)
    for text in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"),
        *("::1/128", "fc00::/7"),
    )
)
_NAT64 = _network("64:ff9b::/96")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """One server: `prefix` is the path below which its API lies, "" or beginning with a slash and ending without."""

    is_tls: bool
    host: str
    port: int
    prefix: str = ""

    @property
    def authority(self) -> str:
        """The value of the Host header: the port is left out when it is the scheme's own (RFC 9110, 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_tls else 80) else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The base URL in its one canonical form."""
        return f"{'https' if self.is_tls else 'http'}://{self.authority}{self.prefix}"


def parse_base_url(text: str) -> Origin:
    """Return the server that `text` names; a trailing slash and a trailing `/v1` are taken off.

    Raises:
        Failure: `engine.setting_invalid` for another scheme, credentials, a query, a malformed host, port or path, or
            an address that is refused.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
        host = parts.hostname or ""
    except ValueError:
        raise _invalid(text, "is no URL") from None
    if len(text) > _MAX_URL or any(not 0x20 < ord(one) < 0x7F for one in text):
        raise _invalid(text, "has characters that no URL has, or too many")
    if parts.scheme not in {"http", "https"}:
        raise _invalid(text, "is neither http nor https")
    if parts.username is not None or parts.password is not None:
        raise _invalid(
            text, "carries credentials", hint="store the key with `slice secret set NAME`, use --secret NAME"
        )
    if parts.query or parts.fragment or "?" in text or "#" in text:
        raise _invalid(text, "has a query or a fragment")
    prefix = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    if not _PATH.match(prefix) or {".", ".."} & set(prefix.split("/")) or "//" in prefix:
        raise _invalid(text, "has a malformed path")
    is_tls = parts.scheme == "https"
    address = address_of(host)
    if address is None and (not _HOST.match(host) or _looks_numeric(host)):
        raise _invalid(text, "names no host")
    if address is not None and (reason := address_fault(address, is_tls=is_tls)):
        raise _invalid(text, reason)
    if port == 0:
        raise _invalid(text, "has port 0")
    return Origin(is_tls=is_tls, host=host.rstrip("."), port=port or (443 if is_tls else 80), prefix=prefix)


def address_of(host: str) -> IpAddress | None:
    """Return `host` as an address, or None when it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def address_fault(address: IpAddress, *, is_tls: bool) -> str:
    """Return why nobody may be sent to `address`, or "" when they may.

    1. Link-local, metadata, multicast, reserved and unspecified addresses, however they are written: never.
    2. Without TLS only loopback and private networks: keys and prompts do not cross the internet in the clear.
    """
    plain = _embedded(address)
    if any(plain in network for network in _REFUSED):
        return "leads to a link-local, metadata or reserved address, which is refused"
    if not is_tls and not any(plain in network for network in _NEAR):
        return "is http to a public address: use https"
    return ""


def is_host(text: str) -> bool:
    """Return whether `text` is an address, or a name as a resolver takes it."""
    return address_of(text) is not None or (bool(_HOST.match(text)) and not _looks_numeric(text))


def is_carried(origin: Origin) -> bool:
    """Return whether a node's data plane leads to it: http on the node's own 127.0.0.1, where no other machine gets."""
    return not origin.is_tls and origin.host.lower() in ("127.0.0.1", "localhost")


def is_loopback(origin: Origin) -> bool:
    """Return whether the origin names the machine it is used on."""
    return addresses.is_loopback(origin.host.lower())


def _embedded(address: IpAddress) -> IpAddress:
    """Return the IPv4 address that an IPv6 one stands for (mapped, 6to4, Teredo, NAT64), else the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else address)


def _looks_numeric(host: str) -> bool:
    """Return whether a resolver could read `host` as an address in an old form: 2130706433, 0x7f.1, 127.1."""
    last = host.rstrip(".").rsplit(".", 1)[-1].lower()
    return last.isdigit() or last.startswith("0x")


def _invalid(text: str, fault: str, *, hint: str = "") -> Failure:
    shown = re.sub(r"//[^/@]*@", "//***@", text[:200])
    return Failure(
        "engine.setting_invalid",
        f"the base URL {shown!r} {fault}",
        hint=hint or "write https://HOST/PATH, or http:// for a loopback or private address",
        param="base_url",
    )
