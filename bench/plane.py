"""What a node's data plane adds over the engine's own loopback port: HAProxy, mTLS and the checks, one client in turn.

The client is the door's own (`gateway.upstream`), so that the figures are what the door pays; the engine is `fake` in a
process of its own. Needs no cluster, no Ray and no PostgreSQL.
"""

import asyncio
import json
import ssl
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench.report import Section, percentile
from core.infra.clock import SystemClock
from gateway.places import Address, Plane
from gateway.upstream import EnginePool, Request
from node_agent.dataplane.entries import paths_of
from tests.node_agent.planes import CHAT, DOOR, NODE, a_site, entry
from tests.programs.running import KEY, SERVED_NAME, RunningEngine
from tests.waiting import until_async

WARM_UP = 50
PAIRS = 1000
FRESH_PAIRS = 200


class _Papers:
    """A door's certificate, made here."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    async def context(self) -> ssl.SSLContext:
        """Return the TLS context."""
        return self._context

    def is_revoked(self, _: str) -> bool:
        """Return False: nothing is revoked here."""
        return False

    def name_of(self, _: Plane) -> str:
        """Return the name of the only node."""
        return NODE.dns_name


def measured() -> list[Section]:
    """Return the plane's latency table."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory, "engine")
        place.mkdir()
        with RunningEngine("fake", directory=place, settings={"tokens": 1}) as engine:
            engine.wait_until_ready()
            return asyncio.run(_measured(Path(directory), engine))


async def _measured(directory: Path, engine: RunningEngine) -> list[Section]:
    async with a_site(directory) as site, site.agent() as plane:
        plane.leased_until(3600)
        plane.publish([entry(engine.port, paths=paths_of(engine.adapter, {}))])
        pool = EnginePool(SystemClock(), _Papers(site.papers.context(DOOR)))
        near = Address(host="127.0.0.1", port=engine.port, replica_id="rep_a", incarnation=1)
        far = Address(
            host="127.0.0.1",
            port=engine.port,
            replica_id="rep_a",
            incarnation=1,
            plane=Plane(node_id=NODE.name, host="127.0.0.1", port=site.port),
        )

        async def answers() -> bool:
            return (await _ask(pool, far, is_stream=False))[1] == 200

        await until_async(answers, 10, "the plane")
        rows: list[tuple[str, ...]] = []
        for name, is_stream in (("whole answer", False), ("first streamed byte", True)):
            rows += await _rows(name, PAIRS, pool, near, far, is_stream=is_stream)
        rows += await _rows("whole answer, fresh connection", FRESH_PAIRS, pool, near, far, is_stream=False, fresh=True)
        pool.close()
    return [
        Section(
            title="Latency added by a node's data plane",
            method="The load average above says how busy the machine was. One client "
            "(the door's own), asking in turn the engine (`fake`, one token) on its loopback port and "
            f"through the node's HAProxy (mTLS, TLS 1.3, P-256, all checks) {PAIRS} times after {WARM_UP} "
            f"warm-up pairs; 2.4 KB chat body. Kept-alive connections but for the last rows ({FRESH_PAIRS} "
            "pairs), which pay for a connection, and through the plane for a handshake with both "
            "certificates. HAProxy opens a new loopback connection to the engine for each request. Added: "
            "the difference pair by pair.",
            header=("figure", "engine alone", "through the plane", "added"),
            rows=tuple(rows),
        )
    ]


async def _rows(
    name: str, pairs: int, pool: EnginePool, near: Address, far: Address, *, is_stream: bool, fresh: bool = False
) -> list[tuple[str, ...]]:
    async def taken(address: Address) -> float:
        if fresh:
            pool.close()
        seconds, status = await _ask(pool, address, is_stream=is_stream)
        assert status == 200, status
        return seconds * 1000

    for _ in range(WARM_UP):
        await taken(near)
        await taken(far)
    alone, through = await _in_turn(pairs, lambda: taken(near), lambda: taken(far))
    added = [b - a for a, b in zip(alone, through, strict=True)]
    cells = []
    for share, word in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99")):
        values = (percentile(alone, share), percentile(through, share), percentile(added, share))
        cells.append((f"{name}, {word}", *(f"{value:.2f} ms" for value in values)))
    return cells


async def _in_turn(
    pairs: int, one: Callable[[], Awaitable[float]], other: Callable[[], Awaitable[float]]
) -> tuple[list[float], list[float]]:
    first, second = [], []
    for _ in range(pairs):
        first.append(await one())
        second.append(await other())
    return first, second


async def _ask(pool: EnginePool, address: Address, *, is_stream: bool) -> tuple[float, int]:
    body = json.dumps(
        {
            "model": SERVED_NAME,
            "messages": [{"role": "user", "content": "x" * 2300}],
            "max_tokens": 1,
            "stream": is_stream,
        }
    ).encode()
    headers = [(b"content-type", b"application/json"), (b"authorization", f"Bearer {KEY}".encode())]
    began = time.perf_counter()
    reply = await pool.exchange(address, Request(method="POST", path=CHAT, headers=headers, body=body))
    try:
        await reply.read()
        taken = time.perf_counter() - began
        while await reply.read():
            pass
    finally:
        reply.close()
    return taken, reply.status
