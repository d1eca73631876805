"""The node's range of engine ports: which one the next engine gets.

Comes in: the range, and ports that adopted engines hold. Goes out: a port that nobody listens on now. Called by
`node_agent.runner`, from one event loop. An engine may still lose its port to a stranger before it binds; its restart
gets another one.
"""

import socket

from core.errors import Failure

HOST = "127.0.0.1"
"""The only address engines listen on."""


def is_free(host: str, port: int) -> bool:
    """Return whether the exact address can be bound now; a port in TIME_WAIT counts as free, as engines reuse it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


class Ports:
    """Hands out ports of one range, each to one replica at a time."""

    def __init__(self, ports: range) -> None:
        self._ports = ports
        self._taken: set[int] = set()
        self._next = 0

    def take(self) -> int:
        """Return a free port, the longest unused first, so that a late packet meets no new engine.

        Raises:
            Failure: `engine.no_free_port`.
        """
        count = len(self._ports)
        for step in range(count):
            port = self._ports[(self._next + step) % count]
            if port not in self._taken and is_free(HOST, port):
                self._next = (self._next + step + 1) % count
                self._taken.add(port)
                return port
        raise Failure(
            "engine.no_free_port",
            f"no port of {self._ports.start} to {self._ports.stop - 1} is free for another engine",
            hint="stop a deployment, or find who listens there with `ss -ltnp`",
        )

    def claim(self, port: int) -> None:
        """Note that an adopted engine holds `port`."""
        self._taken.add(port)

    def give_back(self, port: int) -> None:
        """Note that nothing of ours holds `port` any more."""
        self._taken.discard(port)
