"""Copies of a model's file between two nodes of one machine, against `cp` and `sha256sum` of the same file.

In: a folder on the disk to measure. Out: tables. Called by `python -m bench copies`; nothing is a test. Both ends are
the product's own: a file server on a unix socket behind the node's HAProxy with mTLS, and the pulls of another node.
"""

import asyncio
import contextlib
import hashlib
import io
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.report import Section, spread
from core.ids import Sha256
from core.infra.clock import SystemClock
from core.infra.logs import Log
from core.infra.tasks import TaskGuard
from node_agent.dataplane.plane import Plane, PlaneSpec
from node_agent.files.peers import Peers
from node_agent.files.store import FileStore
from node_agent.files.transfer import Remote, Watch
from node_agent.files.wants import FileOrder, Peer
from tests.node_agent import givers
from tests.node_agent.benches import bench, safetensors_header
from tests.node_agent.nodes import free_ports

RUNS = 3
SIZE_BYTES = 1024**3
_NOWHERE = "https://127.0.0.1:9/model.safetensors"
_NOBODY = Watch(admit=lambda more: None, told=lambda done, total: None, look=lambda head: None)


@dataclass(frozen=True, kw_only=True)
class Took:
    """Seconds by the clock, and of CPU in all processes."""

    wall_s: float
    cpu_s: float


def measured(folder: Path | None = None) -> list[Section]:
    """Return the table of copies below `folder`, by default the system's place for temporary files."""
    with tempfile.TemporaryDirectory(dir=folder) as root:
        return [asyncio.run(_copies(Path(root)))]


async def _copies(root: Path) -> Section:
    async with _giver(root) as (peer, stored, digest):
        by_hand, to_digest, whole, by_hand_synced = [], [], [], []
        order = FileOrder(
            source=_NOWHERE, sha256=digest, size_bytes=stored.stat().st_size, path="model.safetensors", peers=(peer,)
        )
        async with bench(root / "b", tls_dir=givers.tls_dir(root, "nod_b")) as node:
            stored.read_bytes()  # the cache is warm for both
            peers = Peers(
                tls_dir=root / "tls-nod_b", monotonic=time.monotonic, log=Log("bench", SystemClock(), io.StringIO())
            )
            for _ in range(RUNS):
                by_hand.append(await _timed(root, lambda: _by_hand(stored, root / "copy", digest)))
                to_digest.append(await _fetched(root, peers, peer, order))
                by_hand_synced.append(await _timed(root, lambda: _by_hand(stored, root / "copy", digest, "sync")))
                whole.append(await _took(root, node.pulls.ensure(order)))
                await node.pulls.remove(digest)
    return _section(by_hand, to_digest, by_hand_synced, whole)


@contextlib.asynccontextmanager
async def _giver(root: Path) -> AsyncIterator[tuple[Peer, Path, Sha256]]:
    """A node that has the file, behind its HAProxy."""
    sockets = Path(tempfile.mkdtemp(prefix="slb", dir="/tmp"))
    it = givers.Giver(sockets, "nod_a", store=FileStore(root / "a"))
    half = root / "half"
    digest = _random_model(half)
    it.keep(half, digest)
    it.server.start()
    port, _ = free_ports(1)
    spec = PlaneSpec(
        host="127.0.0.1",
        port=port,
        tls_dir=it.tls_dir,
        directory=root / "plane",
        sockets=sockets,
        files_socket=sockets / "files.sock",
    )
    log = Log("bench", SystemClock(), io.StringIO())
    async with TaskGuard(log) as guard:
        plane = Plane(spec, guard=guard, clock=SystemClock(), chance=lambda: 0.5, log=log)
        await plane.start()
        try:
            yield Peer(node_id="nod_a", host="127.0.0.1", port=port), it.store.path_of(digest), digest
        finally:
            await plane.stop()
            await asyncio.to_thread(it.server.stop)
            shutil.rmtree(sockets, ignore_errors=True)


def _random_model(place: Path) -> Sha256:
    """Write a model of one tensor of random bytes; return its digest."""
    found = hashlib.sha256()
    with place.open("wb") as stream:
        for chunk in [safetensors_header("w", SIZE_BYTES), *[b""] * (SIZE_BYTES // 1024**2)]:
            data = chunk or os.urandom(1024**2)
            found.update(data)
            stream.write(data)
    return Sha256(found.hexdigest())


def _by_hand(source: Path, copy: Path, digest: str, *more: str) -> None:
    subprocess.run(["cp", "--reflink=never", str(source), str(copy)], check=True)
    said = subprocess.run(["sha256sum", str(copy)], check=True, capture_output=True, text=True).stdout
    assert said.startswith(digest)
    for program in more:
        subprocess.run([program, str(copy)], check=True)


async def _timed(root: Path, work: Callable[[], None]) -> Took:
    took = await _took(root, asyncio.to_thread(work))
    (root / "copy").unlink()
    return took


async def _fetched(root: Path, peers: Peers, peer: Peer, order: FileOrder) -> Took:
    remote = Remote(name=order.path, url="", size_bytes=order.size_bytes, sha256=order.sha256)
    took = await _took(root, peers.fetch((peer,), remote, root / "copy", _NOBODY))
    (root / "copy").unlink()
    (root / "copy.json").unlink(missing_ok=True)
    return took


async def _took(root: Path, work: Awaitable[object]) -> Took:
    before, since = _cpu_s(root), time.perf_counter()
    await work
    return Took(wall_s=time.perf_counter() - since, cpu_s=_cpu_s(root) - before)


def _cpu_s(root: Path) -> float:
    """Return the CPU seconds so far of this process, its ended children and the plane's HAProxy."""
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    proxies = [one for one in psutil.process_iter(["name", "cwd"]) if one.info["cwd"] == str(root / "plane" / "a")]
    return sum(one.ru_utime + one.ru_stime for one in own) + sum(sum(one.cpu_times()[:2]) for one in proxies)


def _section(by_hand: list[Took], to_digest: list[Took], synced: list[Took], whole: list[Took]) -> Section:
    def row(what: str, times: list[Took], against: list[Took] | None, bar: str) -> tuple[str, ...]:
        rates = [SIZE_BYTES / 1024**2 / took.wall_s for took in times]
        shares = [hand.wall_s / took.wall_s for hand, took in zip(against or [], times, strict=False)]
        cpu = f"{statistics.median(took.cpu_s for took in times):.1f} s"
        share = f"{sorted(shares)[len(shares) // 2]:.0%} ({min(shares):.0%} to {max(shares):.0%})" if shares else ""
        return what, *spread(rates, "MiB/s", 0), cpu, share, bar

    return Section(
        title="A file of 1 GiB from node to node of one machine",
        method=f"{RUNS} runs of each in turn, random bytes, source in the page cache, no reflink. By hand: `cp` and "
        "`sha256sum` of the copy. Node to node: file server (sendfile) -> HAProxy with mTLS -> download in ranges -> "
        "SHA-256. Into the store: the same as for a replica, with its fsync, against `cp`, `sha256sum` and `sync` of "
        "the copy. Shares are of pairs of runs. CPU: user and system seconds of all processes of a copy, median. By "
        "hand one process works at a time: beside other programs, more processes get more of the machine, so that the "
        "CPU seconds say more than the shares when it is busy. The load average above says which it was.",
        header=("copy", "median", "minimum", "maximum", "CPU", "share of by hand, median (spread)", "bar"),
        rows=(
            row("by hand: cp + sha256sum", by_hand, None, ""),
            row("node to node, to the verified file", to_digest, by_hand, "70 %"),
            row("by hand: cp + sha256sum + sync", synced, None, ""),
            row("node to node, into the store with fsync", whole, synced, ""),
        ),
    )
