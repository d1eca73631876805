"""The word to end, for threads that wait for the network.

Called by `node_agent.files.pulls`, which says it, and by what works in threads, which looks at it between two chunks.
"""

import contextlib
import socket
import threading
from collections.abc import Iterator


class Halt(threading.Event):
    """An event that, once set, also ends every wait on a socket that was lent to it."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()

    def set(self) -> None:
        """Say the word; whoever reads from or connects a lent socket gets an `OSError` or an end at once."""
        super().set()
        with self._lock:
            for lent in self._sockets:
                cut(lent)

    @contextlib.contextmanager
    def lent(self, one: socket.socket) -> Iterator[None]:
        """Lend a socket for the length of a `with` block."""
        with self._lock:
            self._sockets.add(one)
        try:
            if self.is_set():
                cut(one)
            yield
        finally:
            with self._lock:
                self._sockets.discard(one)


def cut(one: socket.socket) -> None:
    """End both directions of a socket; whoever waits for it wakes."""
    with contextlib.suppress(OSError):  # not connected any more
        # The plain socket's method: TLS's own forgets its state under the thread that reads.
        socket.socket.shutdown(one, socket.SHUT_RDWR)
