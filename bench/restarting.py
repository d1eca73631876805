"""Watches one controller come back: what it does when, told by its own admin API, asked from within its network.

In: where it is asked, and the record of its process. Out: seconds from the start of that process. Called by
`bench.failover`; nothing is a test.
"""

import asyncio
import contextlib
import ctypes
import http.client
import json
import os
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from core.infra import cluster
from tests.many.three import ONE, Three
from tests.waiting import until

STEPS = ("its admin API answers", "it leads", "the node of its own machine is ready")
_CLONE_NEWNET = 0x40000000
_DEADLINE_S = 60.0


def boot_s() -> float:
    """Return the seconds since this machine's boot, the clock by which the kernel notes when a process began."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def began_s(record: Path) -> float:
    """Return when a recorded part began, in seconds since boot; the kernel counts in hundredths."""
    return int(json.loads(record.read_text())["start_ticks"]) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Restart:
    """Seconds from a controller's start until each of `STEPS`, and until it acts: all nodes are ready."""

    steps: tuple[float, float, float]
    acting: float


class Asker:
    """Asks an admin API over HTTP until all `nodes` nodes are ready."""

    def __init__(self, three: Three, nodes: int) -> None:
        block = cluster.load(three.here.data_dir)
        assert block is not None
        self._place = urlsplit(block.controller_url).netloc
        self._headers = {"authorization": f"Bearer {block.secret_file('operator_token').read_text().strip()}"}
        self._nodes = nodes

    def seen(self, began: float) -> Restart:
        """Ask the controller that began at `began` (seconds since boot) until it acts; blocks."""
        at: dict[str, float] = {}

        def acts() -> bool:
            try:
                status, ready = self._ready()
            except (OSError, http.client.HTTPException):
                return False
            now = boot_s()
            for step, is_done in zip(STEPS, (True, status == 200, ONE in ready), strict=True):
                if is_done:
                    at.setdefault(step, now - began)
            at["acting"] = now - began
            return len(ready) == self._nodes

        until(acts, _DEADLINE_S, "the controller and all nodes")
        answers, leads, own = (at[step] for step in STEPS)
        return Restart(steps=(answers, leads, own), acting=at["acting"])

    def _ready(self) -> tuple[int, list[str]]:
        """Return the status of the list of nodes, and which of them are ready."""
        with contextlib.closing(http.client.HTTPConnection(self._place, timeout=5)) as link:
            link.request("GET", "/api/v1/nodes", headers=self._headers)
            reply = link.getresponse()
            text = reply.read()
        if reply.status != 200:
            return reply.status, []
        return 200, [item["name"] for item in json.loads(text)["items"] if item["state"] == "ready"]


@contextlib.asynccontextmanager
async def within(network: str) -> AsyncIterator[ThreadPoolExecutor]:
    """Give a thread whose sockets are in a network namespace, while the process itself stays where it is."""
    with ThreadPoolExecutor(max_workers=1, initializer=_enter, initargs=(network,)) as thread:
        await asyncio.get_running_loop().run_in_executor(thread, boot_s)  # begin it, so that entering costs no run
        yield thread


def _enter(network: str) -> None:
    handle = os.open(f"/run/netns/{network}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(handle, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the network {network}")
    finally:
        os.close(handle)
