"""The node agent's stream in the simulation: hello, beats, the whole observation, the desired set, and dialling again.

The twin of `node_agent.session`, which is bound to gRPC; the numbers are that module's.
"""

from typing import TYPE_CHECKING

from controller.fleet.model import Ack, DesiredSet, Heartbeat, Hello, Inventory, Refuse, Welcome
from core.devices import DeviceReading
from node_agent import fences
from node_agent.session import back_off_s
from tests.scenarios.host import Agent

if TYPE_CHECKING:
    from tests.scenarios.cluster import Cluster

_HELLO_DEADLINE_S = 10.0
_INVENTORY = Inventory(
    hostname="host",
    system="linux",
    machine="x86_64",
    cpu_count=8,
    memory_bytes=0,
    disk_total_bytes=0,
    disk_free_bytes=0,
    devices=(),
    engines=(),
)


class Session:
    """Keeps one stream open for one life of a node agent."""

    def __init__(self, cluster: "Cluster", agent: Agent) -> None:
        self._cluster, self.agent, self._world = cluster, agent, agent.world
        self.total_bytes = agent.host.total_bytes
        self.node_id = agent.host.node_id
        self.stream, self._server = 0, ""
        self._name = str(self.node_id)
        self._way = (self._name, "")
        self.is_open, self.heard_at = False, 0.0
        self._attempt, self._sequence = 0, 0
        self._terms = Welcome(leader_epoch=0, session_epoch=0, heartbeat_ms=0, lease_ms=0, fence_ms=0)
        self._observed_at = 0.0

    def devices(self) -> tuple[DeviceReading, ...]:
        """Return what the hello says of the devices."""
        return self.agent.host.devices()

    def dial(self) -> None:
        """Say hello to a controller that answers its port."""
        self.hang_up()
        world = self._world
        self.stream = self._cluster.fresh_stream()
        servers = self._cluster.serving()
        if not servers:
            self._again(0.0)
            return
        server = servers[0] if len(servers) == 1 else world.chance.choice(servers)
        self._server, self._way = server.name, (self._name, server.name)
        host = self.agent.host
        host.serial += 1
        seen = host.epoch_seen if world.fences.leader_epoch else 0
        hello = Hello(
            protocol_min=1,
            protocol_max=1,
            node_id=self.node_id,
            node_name=str(self.node_id),
            machine_id=f"m-{self.node_id}",
            boot_id=f"b{host.boots}",
            agent_run_id=f"r{host.runs}",
            agent_version="0",
            max_leader_epoch_seen=seen,
            inventory=_INVENTORY,
            observation=self.agent.observation(),
        )
        self.agent.is_changed = False
        self._cluster.network.dial(self._way, self.stream, server, server.hello, self, self.stream, hello, host.serial)
        self.agent.after(_HELLO_DEADLINE_S, self._too_late, self.stream)

    def hang_up(self) -> None:
        """End the stream, as the kernel does for a process that has died."""
        if self.stream and self._server:
            server = self._cluster.server(self._server)
            if server is not None:
                self._cluster.network.send(self._way, self.stream, server, server.ended, self.stream)
            self._cluster.network.forget(self.stream)
        self.is_open, self.stream, self._server = False, 0, ""

    def _again(self, pause_s: float) -> None:
        self._attempt += 1
        stream = self.stream
        self.agent.after(max(pause_s, back_off_s(self._attempt, self._world.chance.random())), self._redial, stream)

    def _redial(self, stream: int) -> None:
        if stream == self.stream:
            self.dial()

    def _too_late(self, stream: int) -> None:
        if stream == self.stream and not self.is_open:
            self.dial()

    def broken(self, stream: int) -> None:
        """Note that the other end is gone."""
        if stream == self.stream:
            self.hang_up()
            self._again(0.0)

    def take(self, stream: int, message: object) -> None:
        """Take a message of a controller; what comes by a stream that was given up is not read."""
        if stream != self.stream:
            return
        match message:
            case Ack():
                self.heard_at = self._world.now
            case DesiredSet():
                if self.agent.apply(message):
                    self.agent.after(0.02, self._flush, stream)
            case Welcome():
                self._welcomed(stream, message)
            case Refuse():
                self.hang_up()
                self._again(max(30.0 if message.is_fatal else 0.0, message.retry_after_ms / 1000.0))
            case _:
                pass

    def _welcomed(self, stream: int, welcome: Welcome) -> None:
        host, world = self.agent.host, self._world
        seen = host.epoch_seen if world.fences.leader_epoch else 0
        if not fences.obeys_leader(seen, welcome.leader_epoch):
            self.hang_up()
            self._again(5.0)
            return
        host.epoch_seen = max(host.epoch_seen, welcome.leader_epoch)
        self.is_open, self.heard_at, self._attempt, self._sequence = True, world.now, 0, 0
        self._terms, self._observed_at = welcome, world.now
        self._beat(stream)

    def _beat(self, stream: int) -> None:
        if stream != self.stream:
            return
        agent, terms, world, host = self.agent, self._terms, self._world, self.agent.host
        if world.now - self.heard_at > terms.lease_ms / 1000.0:
            self.hang_up()
            self._again(0.0)
            return
        self._sequence += 1
        beat = Heartbeat(self._sequence, host.disk.generation, host.devices(), 0)
        self._say(stream, beat)
        if agent.is_changed or world.now >= self._observed_at:
            self._flush(stream)
        interval_s = terms.heartbeat_ms / 1000.0
        # As `agent.after`, without its two calls on the way: millions of beats go this way.
        world.put(world.now + interval_s * (0.9 + 0.2 * world.chance.random()), agent, self._beat, (stream,))

    def changed(self) -> None:
        """Send what changed soon: several changes go out together."""
        if self.is_open:
            self.agent.after(0.05, self._flush, self.stream)

    def _flush(self, stream: int) -> None:
        if stream == self.stream and self.is_open:
            self.agent.is_changed = False
            self._observed_at = self._world.now + self._cluster.shape.observed_every_s
            self._say(stream, self.agent.observation())

    def _say(self, stream: int, message: object) -> None:
        server = self._cluster.server(self._server)
        if server is None:
            self.broken(stream)
            return
        host = self.agent.host
        host.serial += 1
        self._cluster.network.send(self._way, stream, server, server.take, stream, message, host.serial)
