"""One process of `python -m bench sessions`: many nodes, each with the node agent's own session loop and channel.

In: a JSON file (nodes, join lines, ports) and words on standard input: `join`, `dial`, `tell`, `end`. Out: one JSON
line per word. Session, dialling, back-off, heartbeat and jitter are the product's (`node_agent.session`); what stands
behind them (inventory, devices, replicas) is made up here.
"""

import asyncio
import json
import logging
import random
import sys
import time
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TextIO

import uvloop

from bench.report import percentile
from core.devices import DeviceKind, DeviceReading
from core.identities import Identity, Role
from core.ids import DeviceId
from core.infra import certificates, credentials
from core.infra.clock import SystemClock
from core.infra.credentials import Credentials
from core.infra.grpc import secure_channel
from core.infra.logs import Log
from core.joining import parse_line
from core.protocols import SPOKEN
from node_agent.dialing import Way
from node_agent.fence import Fence
from node_agent.inventory import reading_message
from node_agent.session import NodeFacts, Session
from node_agent.standing import State
from node_agent.telemetry import Telemetry
from protos.slice.node.v1 import node_pb2 as pb
from protos.slice.node.v1 import node_pb2_grpc

GIB = 1024**3
GPUS, REPLICAS, FILES = 4, 5, 3
"""What each node has and holds."""
JOINS_AT_ONCE = 8
_ENGINES = ("llamacpp", "vllm", "transformers", "tei")


@dataclass(kw_only=True)
class Seen:
    """What all sessions of this process met since it was told last; instants are this machine's monotonic clock."""

    opened: list[float] = field(default_factory=list)
    acks_ms: list[float] = field(default_factory=list)
    broken: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    applied: list[float] = field(default_factory=list)


class Holdings:
    """What one node holds: stands where the node agent's supervisor, devices, inventory and standing file stand."""

    def __init__(self, number: int, seen: Seen) -> None:
        self._number = number
        self._seen = seen
        self._is_open = False
        self.changed = asyncio.Event()
        self.applied_generation = 0
        self.leader_epoch = 0
        self.latest: tuple[DeviceReading, ...] = ()

    async def see_epoch(self, leader_epoch: int) -> None:
        self.leader_epoch = leader_epoch

    async def apply(self, desired: pb.Desired) -> bool:
        self._seen.applied.append(time.monotonic())
        self.applied_generation = max(self.applied_generation, desired.generation)
        self.changed.set()
        return True

    def log_path(self, _: str) -> Path:
        return Path("/nonexistent")

    async def tell(self, state: State, *, code: str = "", message: str = "", hint: str = "") -> None:
        """Hear how the session stands, as the standing file does."""
        if state is State.OPEN:
            self._seen.opened.append(time.monotonic())
        elif state is State.REFUSED:
            self._seen.refused[code] = self._seen.refused.get(code, 0) + 1
        elif self._is_open:
            self._seen.broken[message] = self._seen.broken.get(message, 0) + 1
        self._is_open = state is State.OPEN

    async def readings(self) -> tuple[DeviceReading, ...]:
        cpu = DeviceReading(
            device_id=DeviceId("cpu"),
            kind=DeviceKind.CPU,
            name="CPU",
            total_bytes=256 * GIB,
            free_bytes=random.randrange(GIB, 200 * GIB),
        )
        self.latest = (cpu, *(self._gpu(index) for index in range(GPUS)))
        return self.latest

    def _gpu(self, index: int) -> DeviceReading:
        return DeviceReading(
            device_id=DeviceId(f"GPU-{self._number:08d}-4a5b-6c7d-8e9f-{index:012d}"),
            kind=DeviceKind.NVIDIA,
            name="NVIDIA H100 80GB HBM3",
            total_bytes=80 * GIB,
            free_bytes=random.randrange(GIB, 60 * GIB),
            utilisation=random.random(),
            temperature_c=60.0,
            power_w=400.0,
        )

    async def engines(self) -> list[pb.EngineFact]:
        return [
            pb.EngineFact(
                engine=name,
                is_usable=True,
                device_kinds=["cpu", "nvidia"],
                installed_versions=["1.2.3"],
                installs=[pb.EngineInstall(version="1.2.3", state="ready", digest="ab" * 32, size_bytes=GIB)],
            )
            for name in _ENGINES
        ]

    async def message(self) -> pb.Inventory:
        return pb.Inventory(
            hostname=f"bench-{self._number:04d}",
            system="linux",
            machine="x86_64",
            cpu_count=64,
            memory_bytes=256 * GIB,
            disk_total_bytes=2000 * GIB,
            disk_free_bytes=900 * GIB,
            devices=[reading_message(reading) for reading in await self.readings()],
            engines=await self.engines(),
        )

    def observed(self) -> pb.Observed:
        return pb.Observed(
            applied_generation=self.applied_generation,
            replicas=[self._replica(index) for index in range(REPLICAS)],
            files=[
                pb.FileReport(state="done", sha256=f"{self._number:032x}{index:032x}", size_bytes=GIB)
                for index in range(FILES)
            ],
        )

    def _replica(self, index: int) -> pb.ReplicaReport:
        return pb.ReplicaReport(
            replica_id=f"rep_{self._number:016d}{index:04d}",
            incarnation=1,
            state="ready",
            pid=4000 + index,
            host="127.0.0.1",
            port=20040 + index,
            load_s=12.5,
            memory_bytes=random.randrange(GIB, 20 * GIB),
        )


class TimedFence(Fence):
    """The node's own fence, which also measures how long each acknowledgement took."""

    def __init__(self, seen: Seen) -> None:
        super().__init__(time.monotonic, _nothing)
        self._seen = seen
        self._at: dict[int, float] = {}

    def begin(self) -> None:
        super().begin()
        self._at.clear()

    def sent(self, sequence: int) -> None:
        super().sent(sequence)
        self._at[sequence] = time.monotonic()

    def acknowledged(self, sequence: int) -> None:
        super().acknowledged(sequence)
        at = self._at.pop(sequence, None)
        if at is not None:
            self._seen.acks_ms.append(round((time.monotonic() - at) * 1000, 2))


def _nothing(_: object) -> None:
    """Do nothing with a lease, or with revoked serials."""


class Clients:
    """All nodes of this process."""

    def __init__(self, told: dict[str, Any], sink: TextIO) -> None:
        self._told = told
        self._seen = Seen()
        self._clock = SystemClock()
        self._log = Log("bench", self._clock, sink)
        self._controller = Identity(cluster_id=told["cluster_id"], role=Role.CONTROLLER, name="0")

    async def join(self) -> dict[str, Any]:
        """Join every node by the Join call, each over a TLS connection of its own."""
        gate = asyncio.Semaphore(JOINS_AT_ONCE)

        async def one(node: dict[str, Any]) -> float:
            async with gate:
                began = time.monotonic()
                await self._join(node)
                return (time.monotonic() - began) * 1000

        took = await asyncio.gather(*(one(node) for node in self._told["nodes"]))
        return {"joined": len(took), "p50_ms": percentile(took, 0.5), "max_ms": max(took)}

    async def _join(self, node: dict[str, Any]) -> None:
        line, root = parse_line(node["line"]), self._told["authority_pem"]
        own = Identity(cluster_id=self._told["cluster_id"], role=Role.NODE, name=node["node_id"])
        asked = certificates.new_request(own)
        async with secure_channel(f"{line.host}:{line.join_port}", None, root, self._controller) as channel:
            stub: Any = node_pb2_grpc.NodeJoinStub(channel)  # type: ignore[no-untyped-call]  # generated
            reply: pb.JoinReply = await stub.Join(
                pb.JoinRequest(
                    protocol_min=SPOKEN.oldest,
                    protocol_max=SPOKEN.newest,
                    token_id=line.token_id,
                    token_secret=line.secret,
                    csr_pem=asked.csr_pem,
                    node_id=node["node_id"],
                    node_name=node["name"],
                    machine_id="bench",
                    agent_version="bench",
                ),
                timeout=60,
            )
        assert reply.certificate_pem, reply.reject
        given = Credentials(
            key_pem=asked.key_pem, certificate_pem=reply.certificate_pem, authority_pem=reply.authority_pem
        )
        await asyncio.to_thread(credentials.store, self._place(node) / "tls", given)

    def _place(self, node: dict[str, Any]) -> Path:
        place = Path(self._told["directory"]) / str(node["node_id"])
        place.mkdir(exist_ok=True)
        return place

    def session(self, node: dict[str, Any]) -> Session:
        """Return the product's session of one node, over made-up holdings."""
        held: Any = Holdings(node["number"], self._seen)
        place = self._place(node)
        way = Way(target=self._told["target"], cluster_id=self._told["cluster_id"], tls_dir=place / "tls")
        return Session(
            facts=NodeFacts(
                node_id=node["node_id"],
                node_name=node["name"],
                run_id="bench",
                agent_version="bench",
                labels={"zone": "bench"},
                plane_host="127.0.0.1",
                plane_port=20030,
            ),
            way=way,
            supervisor=held,
            inventory=held,
            telemetry=Telemetry(
                node_id=node["node_id"], way=way, devices=held, data_dir=place, chance=random.random, log=self._log
            ),
            revoke=_nothing,
            fence=TimedFence(self._seen),
            standing=held,
            clock=self._clock,
            chance=random.random,
            log=self._log,
        )

    def told(self) -> dict[str, Any]:
        """Return what was seen since the last time, and begin anew."""
        seen = replace(self._seen)
        # The sessions hold the object, so it is emptied, not replaced.
        for each in fields(Seen):
            setattr(self._seen, each.name, type(getattr(seen, each.name))())
        return asdict(seen)


async def run(config: Path) -> None:
    """Do what standard input says until `end`."""
    told = json.loads(config.read_text())
    with (Path(told["directory"]) / f"{config.stem}.log").open("w") as sink:
        clients = Clients(told, sink)
        running: list[asyncio.Task[None]] = []
        while (word := (await asyncio.to_thread(sys.stdin.readline)).strip()) not in ("", "end"):
            answer: dict[str, Any] = {"word": word}
            if word == "join":
                answer |= await clients.join()
            elif word == "dial":
                running = [asyncio.create_task(clients.session(node).run()) for node in told["nodes"]]
            elif word == "tell":
                answer |= clients.told()
            print(json.dumps(answer), flush=True)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # gRPC tells of each cancelled call
    uvloop.install()
    asyncio.run(run(Path(sys.argv[1])))
