"""A node's store and pulls without the rest of a node agent, and tiny models to bring."""

import hashlib
import io
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from core.infra.clock import SystemClock
from core.infra.logs import Log
from core.infra.tasks import TaskGuard
from node_agent.files import wiring
from node_agent.files.http_get import Bounds
from node_agent.files.origins import SourceOrigins
from node_agent.subprocesses import Children
from tests.node_agent import trees

QUICK = Bounds(
    connect_s=2.0, answer_s=2.0, silence_s=2.0, slow_s=0.5, first_pause_s=0.01, first_bytes=1000, piece_bytes=10_000
)
"""Bounds with which a fault shows within a second, and small files come in many pieces."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def safetensors_bytes(name: str = "w", count: int = 16) -> bytes:
    """Return a valid safetensors file with one tensor of `count` bytes."""
    return safetensors_header(name, count) + bytes(index % 251 for index in range(count))


def safetensors_header(name: str, count: int) -> bytes:
    """Return what stands before the bytes of one tensor of `count` bytes."""
    header = json.dumps({name: {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


class Bench:
    """A store and its pulls in one directory."""

    def __init__(self, root: Path, guard: TaskGuard, wheel_dir: str, index_url: str, **more: object) -> None:
        log = Log("test", SystemClock(), io.StringIO())
        environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "PIP_INDEX_URL": index_url,
            "PIP_CONFIG_FILE": os.devnull,
        }
        children = Children(root / "children")
        self.root = root
        self.changes = 0
        self.store, self.pulls = wiring.wired(
            data_dir=root,
            origins=more.get("origins", SourceOrigins()),
            wheel_dir=wheel_dir,
            environment=environment,
            children=children,
            guard=guard,
            clock=SystemClock(),
            log=log,
            changed=self._changed,
            outside=more.get("outside", wiring.Outside(look_s=0.05, bounds=QUICK)),
            tls_dir=more.get("tls_dir"),
        )

    def _changed(self) -> None:
        self.changes += 1

    def progress(self, want_id: str = "pul_1"):
        return next((one for one in self.pulls.progress() if one.want_id == want_id), None)

    def files(self) -> list[str]:
        """Everything below the root, so that nothing left behind escapes a test."""
        walked = os.walk(self.root)  # which bears that folders vanish meanwhile
        paths = [os.path.join(folder, name) for folder, _, names in walked for name in names]
        return sorted(os.path.relpath(path, self.root) for path in paths)

    async def until(self, state: str, want_id: str = "pul_1"):
        await trees.until(lambda: self.progress(want_id).state == state, 20)
        return self.progress(want_id)


@asynccontextmanager
async def bench(
    tmp_path: Path, wheel_dir: str = "", index_url: str = "http://127.0.0.1:9/simple", **more: object
) -> AsyncIterator[Bench]:
    async with TaskGuard(Log("test", SystemClock(), io.StringIO())) as guard:
        it = Bench(tmp_path / "node", guard, wheel_dir, index_url, **more)
        try:
            yield it
        finally:
            it.pulls.leave()
