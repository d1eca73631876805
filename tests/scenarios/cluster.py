"""A whole simulated cluster: hosts, controllers, database, network and a front door; its faults and its invariants."""

from dataclasses import dataclass, replace

from controller.deployments.model import Deployment, Replica, footprint_json
from core.footprint import Footprint, Provenance
from core.ids import NodeId, ReplicaId
from core.states import Desired, ReplicaState
from tests.scenarios.control import Controller
from tests.scenarios.database import Database
from tests.scenarios.host import Host
from tests.scenarios.loop import Target
from tests.scenarios.network import Network
from tests.scenarios.session import Session
from tests.scenarios.world import EPOCH, Fences, Process, World

GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How large a cluster is and how rough its life; seconds, and faults per node and hour."""

    nodes: int = 4
    deployments: int = 3
    replicas_each: int = 2
    faulty_s: float = 120.0
    quiet_s: float = 240.0
    heartbeat_s: float = 2.0
    pass_every_s: float = 0.1
    observed_every_s: float = 5.0
    delay_s: float = 0.02
    loss: float = 0.01
    duplication: float = 0.1
    faults_per_s: float = 0.3
    asks_per_s: float = 2.0
    promise_bytes: int = 8 * GIB
    device_bytes: int = 24 * GIB


class Door(Process):
    """A front door: serves by the last table that it got, and asks engines with it."""

    def __init__(self, cluster: "Cluster") -> None:
        super().__init__(cluster.world)
        self._cluster = cluster
        self.table: dict[str, tuple[Target, ...]] = {}
        self._serving: set[ReplicaId] = set()
        self.asked = self.answered = self.refused = 0

    def start(self) -> None:
        """Begin to pull tables and to ask engines."""
        self._pull()
        self._ask()

    def _pull(self) -> None:
        leading = self._cluster.leading()
        if leading is not None and leading.loop.table is not self.table:
            self.table = leading.loop.table
            self._serving = {target[1] for targets in self.table.values() for target in targets}
        self.after(0.5, self._pull)

    def is_drained(self, replica_id: ReplicaId) -> bool:
        """Return whether no request goes to a replica any more."""
        return replica_id not in self._serving

    def _ask(self) -> None:
        chance = self.world.chance
        targets = chance.choice(list(self.table.values())) if self.table else ()
        if targets:
            node_id, replica_id, incarnation, port = chance.choice(targets)
            host = self._cluster.hosts[node_id]
            self.asked += 1
            if self.world.now >= host.asleep_until:
                answer = host.serves(replica_id, incarnation, port)
                self.answered += answer is True
                self.refused += answer is False
        self.after(2.0 * chance.random() / self._cluster.shape.asks_per_s, self._ask)


class Cluster:
    """Everything, begun from a seed."""

    def __init__(self, seed: int, shape: Shape, fences: Fences) -> None:
        self.shape = shape
        self.world = World(seed, fences)
        self.network = Network(self.world, delay_s=shape.delay_s, loss=shape.loss, duplication=shape.duplication)
        self.database = Database(self.world)
        self.hosts: dict[NodeId, Host] = {}
        self.controllers: dict[str, Controller] = {}
        self.door = Door(self)
        self._streams = self.passes = 0
        for number in range(shape.nodes):
            node_id = NodeId(f"nod_{number:04}")
            self.hosts[node_id] = Host(self.world, node_id, shape.device_bytes)
        for number in range(shape.deployments):
            self.deploy(f"dep_{number:04}", shape.replicas_each)
        for name in ("first", "second"):
            self._begin(name)
        for host in self.hosts.values():
            self.world.at(self.world.chance.random() * 5.0, host, self.boot, host)
        self.world.at(1.0, self.door, self.door.start)

    # -- who is there ---------------------------------------------------------------------------------------------

    def fresh_stream(self) -> int:
        """Return a number that no stream had."""
        self._streams += 1
        return self._streams

    def serving(self) -> list[Controller]:
        """Return the controllers whose port answers: those that lead, or still think so."""
        return [one for one in self.controllers.values() if one.is_alive and one.is_serving]

    def server(self, name: str) -> Controller | None:
        """Return one controller's living process."""
        found = self.controllers.get(name)
        return found if found is not None and found.is_alive and found.is_serving else None

    def leading(self) -> Controller | None:
        """Return the controller that the database calls leader and that is awake."""
        found = self.server(self.database.holder)
        return found if found is not None and self.world.now >= found.asleep_until else None

    def _begin(self, name: str) -> None:
        self.controllers[name] = Controller(self, name)
        self.world.at(self.world.now, self.controllers[name], self.controllers[name].start)

    def died(self, controller: Controller) -> None:
        """Start a controller again, as its supervisor does."""
        self.world.say(f"{controller.name} has died")
        self.world.at(self.world.now + 1.0 + self.world.chance.random() * 4.0, None, self._begin, controller.name)

    def boot(self, host: Host) -> None:
        """Start a machine's node agent and its session."""
        host.boot()
        self._session_of(host)

    def _session_of(self, host: Host) -> None:
        agent = host.agent
        assert agent is not None
        session = Session(self, agent)
        agent.on_change, agent.on_end = session.changed, session.hang_up
        agent.after(0.0, session.dial)

    def tell_broken(self, name: str, session: Session, stream: int) -> None:
        """Tell a node that its stream is no more, if the line carries it."""
        self.network.send((name, str(session.node_id)), stream, session.agent, session.broken, stream)

    # -- what operators do ----------------------------------------------------------------------------------------

    def deploy(self, name: str, replicas: int) -> None:
        """Register a deployment, which is acknowledged and must not be lost."""
        instant = EPOCH
        need = Footprint(
            weights_bytes=self.shape.promise_bytes,
            kv_cache_bytes=0,
            compute_bytes=0,
            overhead_bytes=0,
            provenance=Provenance.COMPUTED,
        )
        self.database.deployments[name] = Deployment(
            deployment_id=name,
            name=name,
            version_id="ver_1",
            model="m",
            version=1,
            engine="fake",
            engine_version="1",
            settings={},
            replicas=replicas,
            generation=1,
            spec_generation=1,
            footprint=footprint_json(need),
            requires=(),
            is_enabled=True,
            disabled_answer="unavailable",
            is_deleting=False,
            created_at=instant,
            updated_at=instant,
        )
        self.database.registered.add(name)

    def change(self, name: str, *, replicas: int | None = None, is_new: bool = False) -> None:
        """Scale a deployment, or give it new settings."""
        row = self.database.deployments[name]
        generation = row.generation + 1
        self.database.deployments[name] = replace(
            row,
            generation=generation,
            spec_generation=generation if is_new else row.spec_generation,
            replicas=row.replicas if replicas is None else replicas,
        )
        self._wake()

    def delete(self, name: str) -> None:
        """Begin to delete a deployment."""
        row = self.database.deployments[name]
        self.database.deployments[name] = replace(row, is_deleting=True, generation=row.generation + 1)
        self.world.say(f"{name} is deleted")
        self._wake()

    def _wake(self) -> None:
        leading = self.leading()
        if leading is not None:
            leading.loop.wake()

    def ended(self, name: str) -> bool:
        """Delete a deployment's row, as the commit does."""
        row = self.database.deployments.get(name)
        if row is None or not row.is_deleting:
            return False
        if any(one.deployment_id == name for one in self.database.replicas.values()):
            return False
        del self.database.deployments[name]
        self.database.registered.discard(name)
        return True

    # -- invariants -----------------------------------------------------------------------------------------------

    def forgotten(self, row: Replica) -> None:
        """Check that nobody forgets an engine that runs."""
        host = self.hosts[NodeId(row.node_id)]
        if ReplicaId(row.replica_id) in host.engines:
            self.world.violated(
                "no promise is freed on silence", f"{row.replica_id} is forgotten and runs on {row.node_id}"
            )

    def check(self) -> None:
        """Check after each event what must hold always; cheap, because only what was touched is looked at."""
        database = self.database
        if database.touched:
            for node_id, promised in database.promised(database.touched).items():
                if promised > database.capacity[node_id]:
                    self.world.violated(
                        "never more promised on a device than it has", f"{promised / GIB:.0f} GiB on {node_id}"
                    )
            database.touched.clear()
        if len(database.registered) != len(database.deployments):
            self.world.violated("nothing registered is lost", str(database.registered - database.deployments.keys()))

    def settled(self) -> None:
        """Check after the quiet end that all is as it is wanted: no orphan, nothing missing."""
        wanted: dict[NodeId, set[ReplicaId]] = {node_id: set() for node_id in self.hosts}
        for row in self.database.replicas.values():
            if row.desired == Desired.RUN.value:
                wanted[NodeId(row.node_id)].add(ReplicaId(row.replica_id))
        crashed = {row.replica_id for row in self.database.replicas.values() if row.state == "crash_loop"}
        for node_id, host in self.hosts.items():
            orphans = set(host.engines) - wanted[node_id]
            missing = wanted[node_id] - set(host.engines) - crashed  # type: ignore[operator]
            if orphans:
                self.world.violated("no orphan after healing", f"{sorted(orphans)} on {node_id}")
            if missing:
                self.world.violated("all that is wanted runs after healing", f"{sorted(missing)} on {node_id}")
        for deployment in self.database.deployments.values():
            rows = [one for one in self.database.replicas.values() if one.deployment_id == deployment.deployment_id]
            want = 0 if deployment.is_deleting else deployment.replicas
            ready = [one for one in rows if one.state == ReplicaState.READY.value]
            if deployment.is_deleting or (len(ready) < want and not self._is_full()):
                states = [(one.replica_id, one.node_id, one.state, one.desired) for one in rows]
                self.world.violated("the cluster converges", f"{deployment.name} wants {want}, has {states}")

    def _is_full(self) -> bool:
        promised, more = self.database.promised({str(node_id) for node_id in self.hosts}), self.shape.promise_bytes
        return all(promised[node_id] + more > host.total_bytes for node_id, host in self.hosts.items())
