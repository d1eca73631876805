"""Connections to the public network: checked addresses, TLS by the system's authorities, a proxy where there is one.

Comes in: an origin. Goes out: a connection to it. Called by `node_agent.files.http_get`. A proxy of the environment is
asked by CONNECT for https; it resolves names itself, by the operator's policy, and what we can resolve is checked
before.
"""

import base64
import contextlib
import os
import socket
import ssl
from collections.abc import Mapping, Sequence
from urllib.parse import SplitResult, unquote, urlsplit

from node_agent.files.halt import Halt
from node_agent.files.http_get import Bounds, Interrupted, deadline, unreachable
from node_agent.files.reach import Origin, Reach
from node_agent.files.store import Cancelled

_PROXY_HEAD_BYTES = 16 * 1024


class PublicLines:
    """Connects to what `reach` allows; `environment` is the installers' (proxies, certificates)."""

    def __init__(self, *, reach: Reach, environment: Mapping[str, str], bounds: Bounds) -> None:
        self._reach = reach
        self._environment = environment
        self._bounds = bounds
        self._context: ssl.SSLContext | None = None

    def line(self, origin: Origin, halt: Halt, stack: contextlib.ExitStack) -> socket.socket:
        """Return a connection to `origin`, see `node_agent.files.http_get.Lines`."""
        proxy = self._proxy_of(origin)
        if proxy is None:
            addresses = self._reach.addresses(origin)
            line = connected(addresses, origin.port, origin.host, self._bounds, halt, stack)
        else:
            self._reach.require_by_name(origin)
            line = self._through(proxy, origin, halt, stack)
        if origin.scheme == "http":
            return line
        return secured(line, self._tls(), origin.host, self._bounds, halt, stack)

    def _proxy_of(self, origin: Origin) -> SplitResult | None:
        if origin.scheme != "https" or self._reach.is_trusted(origin):
            return None
        names = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
        text = next((self._environment[name] for name in names if self._environment.get(name)), "")
        spared = self._environment.get("no_proxy") or self._environment.get("NO_PROXY") or ""
        if not text or is_spared(origin.host, spared):
            return None
        proxy = urlsplit(text if "://" in text else f"http://{text}")
        if proxy.scheme != "http" or not proxy.hostname:
            raise unreachable("the proxy of the environment is none that is spoken to by plain HTTP")
        return proxy

    def _through(self, proxy: SplitResult, origin: Origin, halt: Halt, stack: contextlib.ExitStack) -> socket.socket:
        host, port = proxy.hostname or "", proxy.port or 80
        addresses = [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        line = connected(addresses, port, host, self._bounds, halt, stack)
        place = f"{origin.host}:{origin.port}"
        lines = [f"CONNECT {place} HTTP/1.1", f"Host: {place}"]
        if proxy.username:
            secret = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
            lines.append(f"Proxy-Authorization: Basic {base64.b64encode(secret.encode()).decode()}")
        with deadline(line, self._bounds.answer_s):
            line.sendall("\r\n".join([*lines, "", ""]).encode())
            head = b""
            # Byte by byte: what follows the head belongs to the one behind the proxy.
            while not head.endswith(b"\r\n\r\n") and len(head) < _PROXY_HEAD_BYTES and (byte := line.recv(1)):
                head += byte
        if head.split(b" ")[1:2] != [b"200"]:
            raise Interrupted(unreachable(f"the proxy {host} does not lead to {origin.host}"))
        return line

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            places = [self._environment.get(name) for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")]
            bundle = next((place for place in places if place and os.path.isfile(place)), None)
            folder = self._environment.get("SSL_CERT_DIR")
            try:
                self._context = ssl.create_default_context(cafile=bundle, capath=folder if bundle is None else None)
            except OSError:
                raise unreachable(f"the certificates of {bundle or folder} cannot be read") from None
        return self._context


def connected(
    addresses: Sequence[str], port: int, host: str, bounds: Bounds, halt: Halt, stack: contextlib.ExitStack
) -> socket.socket:
    """Return a connection to the first of `addresses` that takes one; `host` is what it is called.

    Raises:
        Interrupted: none does.
        Cancelled: the halt was set.
    """
    for address in addresses:
        line = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        stack.callback(line.close)
        stack.enter_context(halt.lent(line))
        line.settimeout(bounds.connect_s)
        with contextlib.suppress(OSError):
            line.connect((address, port))
            line.settimeout(bounds.silence_s)
            return line
        if halt.is_set():
            raise Cancelled
    raise Interrupted(unreachable(f"{host} does not answer"))


def secured(
    line: socket.socket, context: ssl.SSLContext, host: str, bounds: Bounds, halt: Halt, stack: contextlib.ExitStack
) -> ssl.SSLSocket:
    """Return TLS over `line` to who can prove to be `host`.

    Raises:
        OSError: it cannot, or the line broke.
    """
    tls = context.wrap_socket(line, server_hostname=host, do_handshake_on_connect=False)
    stack.enter_context(halt.lent(tls))
    stack.callback(tls.close)
    with deadline(tls, bounds.answer_s):
        tls.do_handshake()
    return tls


def is_spared(host: str, spared: str) -> bool:
    """Return whether `no_proxy` spares a host: its name, a domain above it, or `*`; ports in it are not looked at."""
    words = (word.strip().lower().partition(":")[0].lstrip(".") for word in spared.split(","))
    return any(word and (word == "*" or host == word or host.endswith(f".{word}")) for word in words)
