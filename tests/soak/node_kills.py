"""kill -9 of any part of one node, round after round, and what it took until all was well again.

One node agent with one replica of the fake engine, whose tree has children in sessions of their own. A round kills the
victims of its number at once; the loop starts a killed node agent again, as its supervisor does. Every process that was
there before must be dead or kept, and nobody stray, within a minute.
"""

import os
import random
import signal
import time
from dataclasses import dataclass
from typing import Any

from core.infra import processes
from node_agent import shim_client
from protos.slice.node.v1 import node_pb2
from tests.node_agent import nodes, trees
from tests.node_agent.controllers import Controller
from tests.node_agent.nodes import Node
from tests.soak.strays import kept, strays

VICTIMS = (
    ("node agent",),
    ("shim",),
    ("leader",),
    ("child",),
    ("shim", "leader"),
    ("node agent", "shim"),
    ("node agent", "shim", "leader"),
)
ORPHANS_S = 60.0
OUT_OF_ROUTING_S = 1.0
RESTART_S = 2.0
POLICY = {"loop_exits": 10**9, "reset_after_ready_s": 0.0}
"""Each exit counts as the first: else the fifth would be the last, and the pauses between would double."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round took, seconds from the kill; None for what it does not have."""

    number: int
    victims: str
    orphans_gone_s: float
    out_of_routing_s: float | None = None
    restart_s: float | None = None
    served_again_s: float | None = None


def victims_of(seed: str, number: int) -> tuple[str, ...]:
    """Return whom round `number` kills: each block of rounds has every set once, in an order of its own."""
    block = list(VICTIMS)
    random.Random(f"{seed}:{number // len(block)}").shuffle(block)
    return block[number % len(block)]


class Watching(Controller):
    """A controller that remembers when it heard what of the replica."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[float, node_pb2.ReplicaReport]] = []

    async def _hear(self, message: node_pb2.NodeMessage, send: Any) -> None:
        now, body = time.monotonic(), message.WhichOneof("body")
        if body in ("hello", "observed"):
            observed = message.hello.observed if body == "hello" else message.observed
            self.heard += [(now, report) for report in observed.replicas]
        await super()._hear(message, send)

    def out_of_routing_s(self, since: float) -> float | None:
        """Return the seconds from `since` to the first report in which it is not to be asked any more."""
        gone = ("backoff", "unhealthy", "starting", "fetching", "installing")
        return next((at - since for at, report in self.heard if at >= since and report.state in gone), None)

    def restart_s(self, since: float, incarnation: int) -> float | None:
        """Return the seconds from `since` to the first report of `incarnation`, which a spawn alone makes."""
        return next((at - since for at, told in self.heard if at >= since and told.incarnation == incarnation), None)


class KillLoop:
    """The loop over one node, whose node agent is started by the program `under` if there is one."""

    def __init__(self, node: Node, controller: Watching, seed: str, under: tuple[str, ...] = ()) -> None:
        self._under = under
        self._node = node
        self._controller = controller
        self._seed = seed

    async def begin(self) -> None:
        """Start the node and its replica."""
        await self._node.start(under=self._under, restart_policy=POLICY)
        await trees.until(lambda: self._controller.hellos)
        await self._controller.want(nodes.desired(1, nodes.want(fork_tree=3)))
        await nodes.until_state(self._controller, "ready")

    def _record(self) -> shim_client.ShimRecord:
        record = shim_client.read_record(self._node.data_dir / "replicas" / "rep_one")
        assert record is not None
        return record

    async def round(self, number: int) -> Round:
        """Kill the victims of `number` and wait until all is well.

        Raises:
            TimeoutError: something was not well in time.
        """
        controller, victims = self._controller, victims_of(self._seed, number)
        status = self._record().status
        assert status.shim is not None
        assert status.leader is not None
        before = processes.family(frozenset({status.shim.pid}))
        rest = sorted(member.pid for member in before if member not in (status.shim, status.leader))
        pids = {
            "node agent": 0 if self._node.process is None else self._node.process.pid,
            "shim": status.shim.pid,
            "leader": status.leader.pid,
            "child": random.Random(f"{self._seed}:{number}:child").choice(rest),
        }
        hellos, since = len(controller.hellos), time.monotonic()
        for victim in victims:
            os.kill(pids[victim], signal.SIGKILL)
        if "node agent" in victims:
            assert self._node.process is not None
            await self._node.process.wait()
            await self._node.start(under=self._under, restart_policy=POLICY)
            await trees.until(lambda: len(controller.hellos) > hellos, 30.0)
        is_restarted = bool({"shim", "leader"} & set(victims))
        incarnation = status.incarnation + is_restarted
        await self._well(incarnation)
        served_again_s = time.monotonic() - since
        await trees.until(lambda: not self._left_of(before, is_restarted=is_restarted), ORPHANS_S)
        orphans_gone_s = time.monotonic() - since
        # While a node agent is dead nobody reports, and nobody restarts: what it takes then is its supervisor's.
        is_watched = is_restarted and "node agent" not in victims
        return Round(
            number=number,
            victims=" + ".join(victims),
            orphans_gone_s=orphans_gone_s,
            served_again_s=served_again_s if is_restarted else None,
            out_of_routing_s=controller.out_of_routing_s(since) if is_watched else None,
            restart_s=controller.restart_s(since, incarnation) if is_watched else None,
        )

    async def _well(self, incarnation: int) -> None:
        def is_well() -> bool:
            report = self._controller.replica("rep_one")
            assert report is None or report.incarnation <= incarnation, "it was started more than once"
            return report is not None and (report.state, report.incarnation) == ("ready", incarnation)

        await trees.until(is_well, 60.0)

    def _left_of(self, before: list[processes.ProcessMark], *, is_restarted: bool) -> list[processes.ProcessMark]:
        owned = frozenset() if is_restarted else kept(self._node.data_dir)
        lost = [member for member in before if member not in owned and processes.is_alive(member)]
        return lost + strays(self._node.data_dir)
