"""One simulated machine: its disk, its engines under shims, its data plane, and the node agent that comes and goes.

The node agent's decisions are `node_agent.replica.step` and `node_agent.fences`; what is here only carries them out.
"""

from collections.abc import Callable
from dataclasses import dataclass

from controller.exchange import Observation, ReplicaReport
from controller.fleet.model import DesiredSet
from core.devices import DeviceKind, DeviceReading
from core.ids import DeviceId, NodeId, ReplicaId
from core.states import Desired, ReplicaState
from node_agent import fences, lifecycle
from node_agent import replica as machine
from node_agent.replica import Replica
from tests.scenarios.world import Process, World

GPU = DeviceId("gpu0")
_NO_SET = DesiredSet(leader_epoch=0, generation=0, replicas=(), files=())
_SERVING = (ReplicaState.READY, ReplicaState.UNHEALTHY)


@dataclass(kw_only=True)
class Engine:
    """One process tree under its shim."""

    replica_id: ReplicaId
    incarnation: int
    port: int
    bytes_used: int
    began: float
    load_s: float
    is_ready: bool = False
    is_hung: bool = False


class Host(Process):
    """A machine; `disk` survives everything, `engines` all but a reboot."""

    def __init__(self, world: World, node_id: NodeId, total_bytes: int) -> None:
        super().__init__(world)
        self.node_id, self.total_bytes = node_id, total_bytes
        self.disk, self.epoch_seen = _NO_SET, 0
        self.spawned: dict[ReplicaId, int] = {}
        self.engines: dict[ReplicaId, Engine] = {}
        self.ports: dict[int, Engine] = {}
        self.boots, self.runs, self.serial = 1, 0, 0
        self.newest = _NO_SET
        self.agent: Agent | None = None
        self._reading: tuple[DeviceReading, ...] = ()

    def boot(self) -> None:
        """Start the machine's node agent."""
        self.runs += 1
        self.agent = Agent(self)
        self.agent.start()

    def reboot(self) -> None:
        """Lose everything that is not on disk."""
        self.world.say(f"{self.node_id} reboots")
        self.boots += 1
        if self.agent is not None:
            self.agent.on_end = None  # a machine without power closes nothing
        self.kill_agent()
        self.engines, self.ports = {}, {}
        self._reading = ()

    def kill_agent(self) -> None:
        """End the node agent; the kernel closes its stream."""
        if self.agent is not None:
            if self.agent.on_end is not None:
                self.agent.on_end()
            self.agent.is_alive = False
            self.agent = None

    def sleep(self, seconds: float) -> None:
        """Suspend the whole machine."""
        self.asleep_until = self.world.now + seconds
        if self.agent is not None:
            self.agent.asleep_until = self.asleep_until

    def devices(self) -> tuple[DeviceReading, ...]:
        """Return what the device says of itself."""
        if not self._reading:
            used = sum(engine.bytes_used for engine in self.engines.values())
            self._reading = (
                DeviceReading(
                    device_id=GPU,
                    kind=DeviceKind.NVIDIA,
                    name="gpu",
                    total_bytes=self.total_bytes,
                    free_bytes=max(0, self.total_bytes - used),
                ),
            )
        return self._reading

    def spawn(self, replica_id: ReplicaId, incarnation: int, count: int) -> None:
        """Start an engine under a shim."""
        if incarnation <= self.spawned.get(replica_id, 0) or replica_id in self.engines:
            self.world.violated("a command happens once", f"{replica_id} is spawned again as {incarnation}")
        self.spawned[replica_id] = incarnation
        port = next(port for port in range(9000, 9999) if port not in self.ports)
        load_s = 0.5 + self.world.chance.random() * 4.0
        engine = Engine(
            replica_id=replica_id,
            incarnation=incarnation,
            port=port,
            bytes_used=count,
            began=self.world.now,
            load_s=load_s,
        )
        self.engines[replica_id] = self.ports[port] = engine
        self._reading = ()
        self.after(load_s, self._loaded, engine)

    def _loaded(self, engine: Engine) -> None:
        if self.engines.get(engine.replica_id) is engine:
            engine.is_ready = True
            if self.agent is not None:
                self.agent.probed(engine)

    def gone(self, engine: Engine) -> None:
        """Note that an engine's process tree is no more."""
        if self.engines.get(engine.replica_id) is engine:
            del self.engines[engine.replica_id], self.ports[engine.port]
            self._reading = ()

    def crash(self, replica_id: ReplicaId) -> None:
        """Let an engine die by itself."""
        engine = self.engines[replica_id]
        self.gone(engine)
        if self.agent is not None:
            self.agent.exited(engine)

    def serves(self, replica_id: ReplicaId, incarnation: int, port: int) -> bool | None:
        """Answer a request as the data plane does: None when nobody listens, False when it is refused as stale."""
        engine = self.ports.get(port)
        if self.world.fences.incarnation:
            mine = self.engines.get(replica_id)
            if mine is None or mine.incarnation != incarnation:
                return False
            engine = mine
        if engine is None or not engine.is_ready:
            return None
        if (engine.replica_id, engine.incarnation) != (replica_id, incarnation):
            self.world.violated(
                "at most one routable incarnation",
                f"{replica_id}/{incarnation} was answered by {engine.replica_id}/{engine.incarnation}",
            )
        return True


class Agent(Process):
    """One life of the node agent: keeps the machines of its replicas; its session is `tests.scenarios.session`."""

    def __init__(self, host: Host) -> None:
        super().__init__(host.world)
        self.host, self.asleep_until = host, host.asleep_until
        self.machines: dict[ReplicaId, Replica] = {}
        self.counts: dict[ReplicaId, int] = {}
        self.is_changed = True
        self._said: Observation | None = None
        self._reports: dict[ReplicaId, tuple[Replica, Engine | None, ReplicaReport]] = {}
        self.on_change: Callable[[], None] | None = None
        self.on_end: Callable[[], None] | None = None

    def start(self) -> None:
        """Take up the last applied set: adopt what runs, start what does not."""
        self._sync(self.host.disk)

    def apply(self, desired: DesiredSet) -> bool:
        """Apply a desired set, if the fences let it."""
        host, world = self.host, self.world
        host.newest = max(host.newest, desired, key=lambda one: one.generation)
        applied = host.disk.generation if world.fences.generation else -1
        seen = host.epoch_seen if world.fences.leader_epoch else 0
        if not fences.applies(
            seen_epoch=seen,
            applied_generation=applied,
            leader_epoch=desired.leader_epoch,
            generation=desired.generation,
        ):
            return False
        host.disk, host.epoch_seen = desired, max(host.epoch_seen, desired.leader_epoch)
        self._sync(desired)
        return True

    def _sync(self, desired: DesiredSet) -> None:
        wanted = {order.replica_id: order for order in desired.replicas}
        for replica_id, order in wanted.items():
            self.counts[replica_id] = order.promises.get(GPU, 0)
            if replica_id not in self.machines:
                self._begin(replica_id, is_wanted=order.desired is not Desired.STOP)
            elif event := machine.desired_event(order.desired, self.machines[replica_id].state):
                self.take(replica_id, event)
        left = set(self.machines) | set(self.host.engines)
        for replica_id in sorted(left - set(wanted)):
            if replica_id not in self.machines:
                self._begin(replica_id, is_wanted=False)
            elif self.machines[replica_id].state is ReplicaState.STOPPED:
                del self.machines[replica_id]
            elif self.machines[replica_id].state is not ReplicaState.STOPPING:
                self.take(replica_id, lifecycle.StopAsked())
        self._note_change()

    def _note_change(self) -> None:
        if not self.is_changed:
            self.is_changed = True
            if self.on_change is not None:
                self.on_change()

    def _begin(self, replica_id: ReplicaId, *, is_wanted: bool) -> None:
        engine = self.host.engines.get(replica_id)
        self.machines[replica_id] = Replica(incarnation=self.host.spawned.get(replica_id, 0))
        if engine is not None:
            age_s = self.world.now - engine.began
            self.take(replica_id, lifecycle.Adopted(incarnation=engine.incarnation, age_s=age_s))
            if engine.is_ready:
                self.probed(engine)
        elif is_wanted:
            self.take(replica_id, lifecycle.Wanted())
        if not is_wanted:
            self.take(replica_id, lifecycle.StopAsked())

    def take(self, replica_id: ReplicaId, event: lifecycle.Happened) -> None:
        """Give one event to a replica's machine and carry out what it answers."""
        before = self.machines.get(replica_id)
        if before is None:
            return
        found = machine.step(before, event, self.world.now)
        self.machines[replica_id] = found.replica
        self._note_change()
        if found.replica.wake_at is not None and found.replica.wake_at != before.wake_at:
            self.after(max(0.0, found.replica.wake_at - self.world.now), self.take, replica_id, lifecycle.TimeCame())
        for effect in found.effects:
            self._carry_out(replica_id, effect)

    def _carry_out(self, replica_id: ReplicaId, effect: lifecycle.Effect) -> None:
        match effect:
            case lifecycle.FetchFiles():
                self.after(self.world.chance.random(), self.take, replica_id, lifecycle.FilesReady())
            case lifecycle.InstallEngine():
                self.after(0.05, self.take, replica_id, lifecycle.EngineReady())
            case lifecycle.Spawn(incarnation=incarnation):
                self.host.spawn(replica_id, incarnation, self.counts.get(replica_id, 0))
                self.take(replica_id, lifecycle.Spawned(incarnation=incarnation))
            case lifecycle.EndEngine():
                engine = self.host.engines.get(replica_id)
                if engine is not None:
                    self.host.gone(engine)
                    self.exited(engine)
            case lifecycle.StopEngine():
                self._ordered_to_stop(replica_id)
                self.after(0.1 + self.world.chance.random(), self._stopped, replica_id)
            case _:
                pass

    def _ordered_to_stop(self, replica_id: ReplicaId) -> None:
        """Check that the newest set that ever came says so: nothing else is an order."""
        newest = self.host.newest
        wants = {order.replica_id: order.desired for order in newest.replicas}
        if wants.get(replica_id, Desired.STOP) is not Desired.STOP:
            self.world.violated(
                "no kill without an order",
                f"{replica_id} is stopped on {self.host.node_id}, and set {newest.generation} wants it to run",
            )

    def _stopped(self, replica_id: ReplicaId) -> None:
        engine = self.host.engines.get(replica_id)
        if engine is not None:
            self.host.gone(engine)
        self.take(replica_id, lifecycle.TreeGone())

    def probed(self, engine: Engine) -> None:
        """Probe an engine once: health changes only where the story changes it."""
        if self.host.engines.get(engine.replica_id) is engine and engine.is_ready:
            failed = lifecycle.ProbeFailed(reason="it hangs")
            self.take(engine.replica_id, failed if engine.is_hung else lifecycle.ProbePassed())

    def exited(self, engine: Engine) -> None:
        """Tell a replica's machine that its engine has ended."""
        chance = self.world.chance.random()
        self.take(engine.replica_id, lifecycle.Exited(exit_code=1, chance=chance))

    def observation(self) -> Observation:
        """Return everything the node holds now; the very value of the last time while that is the same."""
        said, generation = self._said, self.host.disk.generation
        replicas = tuple([self._report(replica_id, one) for replica_id, one in self.machines.items()])
        if said is None or said.applied_generation != generation or said.replicas != replicas:
            said = self._said = Observation(
                node_id=self.host.node_id, applied_generation=generation, replicas=replicas, files=()
            )
        return said

    def _report(self, replica_id: ReplicaId, one: Replica) -> ReplicaReport:
        engine = self.host.engines.get(replica_id)
        known = self._reports.get(replica_id)
        if known is not None and known[0] is one and known[1] is engine:
            return known[2]
        report = ReplicaReport(
            replica_id=replica_id,
            incarnation=one.incarnation,
            state=one.state,
            host="127.0.0.1" if engine is not None else "",
            port=engine.port if engine is not None and one.state in _SERVING else 0,
            memory_bytes=engine.bytes_used if engine is not None else 0,
        )
        self._reports[replica_id] = (one, engine, report)
        return report
