"""Who listens where on this host: used before `up` takes a port, and by `doctor`."""

import socket
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, kw_only=True)
class Listener:
    """One listening TCP socket; `pid` is None when it belongs to a process we may not look into."""

    address: str
    port: int
    pid: int | None
    name: str


def listeners() -> list[Listener]:
    """Return every listening TCP socket of this host's network namespace."""
    found = []
    for item in psutil.net_connections(kind="tcp"):
        if item.status != psutil.CONN_LISTEN or not item.laddr:
            continue
        found.append(Listener(address=item.laddr.ip, port=item.laddr.port, pid=item.pid, name=_process_name(item.pid)))
    return found


def holder(port: int) -> str:
    """Return who listens on `port` in words, e.g. `python3 (pid 4711)`."""
    for item in listeners():
        if item.port == port:
            return f"{item.name} (pid {item.pid})" if item.pid else "a process of another user"
    return "another process"


def can_bind(host: str, port: int) -> bool:
    """Return whether a server could listen on exactly this address now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As every server does; without it a port in TIME_WAIT would look taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def _process_name(pid: int | None) -> str:
    if pid is None:
        return "unknown"
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return "unknown"
