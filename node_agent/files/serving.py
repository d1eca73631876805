"""Gives files of the store to other nodes: HTTP/1.1 on a unix socket of our own user.

Comes in: requests that the node's data plane lets through, which only other nodes' certificates reach. Goes out: bytes
of the store, by `sendfile`, from threads of this module's own: a copy of hours holds none of those that heartbeats are
made in. Started by `node_agent.agent`. One request a connection; what is in the store is whole, verified and never
changed, so an open file may be sent whatever happens to its name.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from core.errors import Failure
from core.ids import Sha256
from core.infra.logs import Log
from node_agent.files import asked
from node_agent.files.asked import Ask, Refusal
from node_agent.files.halt import Halt, cut
from node_agent.files.pace import Pace
from node_agent.files.store import FileStore

CONNECTIONS = 16
"""Requests that are served at once; more are told to come again: a disk and a line are not faster for a crowd."""
_HEAD_S = 10.0
_BUSY_S = 0.5
_SILENCE_S = 30.0  # a peer that takes nothing for so long has gone
_CHUNK_BYTES = 4 * 1024**2
_BACKLOG = 64
_BUSY = Refusal(status=503, reason="Service Unavailable")
_ABSENT = Refusal(status=404, reason="Not Found")


class FileServer:
    """Owns the socket, its threads and what they send."""

    def __init__(
        self,
        *,
        path: Path,
        store: FileStore,
        bytes_per_s: int,
        monotonic: Callable[[], float],
        log: Log,
        connections: int = CONNECTIONS,
    ) -> None:
        self._path = path
        self._store = store
        self._pace = Pace(bytes_per_s, monotonic)
        self._log = log
        self._free = threading.BoundedSemaphore(connections)
        self._pool = ThreadPoolExecutor(connections, thread_name_prefix="serve-file")
        self._listener: socket.socket | None = None
        self._accepting: threading.Thread | None = None
        self._halt = Halt()

    def start(self) -> None:
        """Listen; what a dead node agent left of the socket is replaced. Blocks a moment.

        Raises:
            Failure: `cluster.data_dir_unusable` when the socket cannot be made.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.unlink(missing_ok=True)
            os.fchmod(listener.fileno(), 0o600)  # before it has a name: Linux gives the name this mode
            listener.bind(str(self._path))
            self._path.chmod(0o600)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise Failure(
                "cluster.data_dir_unusable",
                f"the socket {self._path} of the file server cannot be made: {error.strerror or error}",
                hint="see `slice doctor`",
            ) from error
        self._listener = listener
        self._accepting = threading.Thread(target=self._accept, args=(listener,), name="serve-files", daemon=True)
        self._accepting.start()

    def stop(self) -> None:
        """End every answer and let the socket go. Blocks until the threads have left."""
        self._halt.set()
        if self._listener is not None:
            cut(self._listener)
            self._listener.close()
        if self._accepting is not None:
            self._accepting.join()
            self._path.unlink(missing_ok=True)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _accept(self, listener: socket.socket) -> None:
        while not self._halt.is_set():
            try:
                line, _ = listener.accept()
            except OSError as error:
                if self._halt.is_set():
                    return
                # Out of descriptors, or a peer that left at once: neither is the end of the server.
                self._log.warning("peer_not_accepted", error=error.strerror or str(error))
                self._halt.wait(0.1)
                continue
            if self._free.acquire(blocking=False):
                self._pool.submit(self._answer, line)
            else:
                with line, contextlib.suppress(OSError):
                    line.settimeout(_BUSY_S)
                    line.recv(asked.HEAD_BYTES)  # a socket closed over unread bytes loses the answer too
                    line.sendall(_head(_BUSY, "retry-after: 1\r\n"))

    def _answer(self, line: socket.socket) -> None:
        try:
            with line, self._halt.lent(line), contextlib.suppress(OSError):
                line.settimeout(_HEAD_S)
                self._serve(line, asked.ask_of(_head_of(line)))
        except Exception as error:  # noqa: BLE001 - the thread's outermost frame: its slot must come back
            self._log.error("peer_request_failed", error=repr(error), exc=error)
        finally:
            self._free.release()

    def _serve(self, line: socket.socket, ask: Ask | Refusal) -> None:
        line.settimeout(_SILENCE_S)
        stream = None if isinstance(ask, Refusal) else self._opened(ask.digest)
        if isinstance(ask, Refusal) or stream is None:
            line.sendall(_head(ask if isinstance(ask, Refusal) else _ABSENT))
            return
        with stream:
            size = os.fstat(stream.fileno()).st_size
            part = asked.part_of(ask, size)
            about = f"etag: {asked.etag_of(ask.digest)}\r\naccept-ranges: bytes\r\n"
            if part is None:
                refusal = Refusal(status=416, reason="Range Not Satisfiable")
                line.sendall(_head(refusal, f"{about}content-range: bytes */{size}\r\n"))
                return
            status = "200 OK"
            if asked.is_part(ask, part, size):
                status, about = "206 Partial Content", f"{about}content-range: bytes {part[0]}-{part[1] - 1}/{size}\r\n"
            about += f"content-type: application/octet-stream\r\ncontent-length: {part[1] - part[0]}\r\n"
            line.sendall(f"HTTP/1.1 {status}\r\n{about}connection: close\r\n\r\n".encode())
            if not ask.is_head:
                self._send(line, stream, *part)

    def _opened(self, digest: Sha256) -> BinaryIO | None:
        try:
            handle = os.open(self._store.path_of(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        return os.fdopen(handle, "rb")

    def _send(self, line: socket.socket, stream: BinaryIO, at: int, end: int) -> None:
        chunk = self._pace.chunk_bytes(_CHUNK_BYTES)
        while at < end and not self._halt.is_set():
            count = min(chunk, end - at)
            if (wait_s := self._pace.take(count)) and self._halt.wait(wait_s):
                return
            # Python's own: it waits for the peer within the socket's timeout, and sends from the page cache.
            sent = line.sendfile(stream, at, count)
            if not sent:
                return  # the disk lost it: the peer sees less than was announced
            at += sent


def _head_of(line: socket.socket) -> bytes:
    """Return the head of a request without its empty line; what is too long or cut off is no head."""
    head = b""
    while b"\r\n\r\n" not in head:
        if len(head) > asked.HEAD_BYTES or not (more := line.recv(asked.HEAD_BYTES)):
            return b""
        head += more
    return head.partition(b"\r\n\r\n")[0]


def _head(refusal: Refusal, more: str = "") -> bytes:
    allow = "allow: GET, HEAD\r\n" if refusal.status == 405 else ""
    return (
        f"HTTP/1.1 {refusal.status} {refusal.reason}\r\n{allow}{more}content-length: 0\r\nconnection: close\r\n\r\n"
    ).encode()
