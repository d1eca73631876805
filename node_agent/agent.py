"""The node agent: wires the parts of this package together and lives until it is told to end.

Comes in: a `NodeConfig`. Goes out: a node that serves the controller's desired set. Called by the composition root in
`cli`. Its end, by signal or by kill, never ends an engine: those belong to their shims, and the next node agent adopts
them. `stop_all_engines` ends them on purpose.
"""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adapters import registry
from adapters.contract import Adapter
from core.clock import Clock
from core.errors import Failure
from core.identities import Identity, Role
from core.infra import cluster
from core.infra.entropy import SystemEntropy
from core.infra.logs import Log
from core.infra.settings import process_environment
from core.infra.tasks import TaskGuard
from core.protocols import SPOKEN, Span
from node_agent import identity, launching, replica, supervisor
from node_agent.containers import host
from node_agent.containers.house import ContainerHouse
from node_agent.dataplane import plane as dataplane
from node_agent.dataplane.doors import Doors
from node_agent.dataplane.plane import Plane, PlaneSpec
from node_agent.devices.reading import Devices, sources_of
from node_agent.dialing import Way
from node_agent.engines import EngineHouse
from node_agent.files import wiring
from node_agent.files.origins import SourceOrigins
from node_agent.files.serving import FileServer
from node_agent.files.store import FileStore
from node_agent.inventory import Inventory
from node_agent.ports import Ports
from node_agent.renewal import Renewal
from node_agent.session import NodeFacts, Session
from node_agent.standing import StandingFile
from node_agent.subprocesses import Children
from node_agent.supervisor import Supervisor
from node_agent.surroundings import Surroundings
from node_agent.telemetry import Telemetry

_CHILDREN = "children"
_PLANE = "plane"


@dataclass(frozen=True, kw_only=True)
class PlaneConfig:
    """Where other machines reach this node's data plane, and what it shows them.

    `host` is an address of this machine, `tls_dir` holds the node's `key.pem`, `certificate.pem` and `authority.pem`,
    `files_socket` is where the node's file server listens, `peer_bytes_per_s` bounds what it gives to other nodes (0:
    nothing does).
    """

    host: str
    port: int
    tls_dir: Path
    files_socket: Path
    peer_bytes_per_s: int = 0


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """All a node agent must be told.

    `control_target` is a gRPC target: `unix:/path/control.sock`, or HOST:PORT (mTLS, with what `tls_dir` holds).
    `devices` is `auto`, `cpu` or `sim:FILE`, `wheel_dir` may be "", `container_pull` is `never` or `missing`,
    `environment` is the process's own, of which engines see an allow-listed part, `origins` is what the settings say of
    places that models come from. With `cluster_id` and `tls_dir` the node has a certificate, and keeps it fresh.
    `standing_file` tells commands of this machine how the session stands.
    """

    node_name: str
    data_dir: Path
    shim_dir: Path
    control_target: str
    token: str
    devices: str
    engine_ports: range
    engine_start_timeout_s: float
    wheel_dir: str
    labels: Mapping[str, str]
    agent_version: str
    environment: Mapping[str, str]
    origins: SourceOrigins = field(default_factory=SourceOrigins)
    restart_policy: replica.RestartPolicy = replica.DEFAULT_POLICY
    container_pull: str = "never"
    plane: PlaneConfig | None = None
    """None: no other machine reaches this node."""
    cluster_id: str = ""
    tls_dir: Path | None = None
    standing_file: Path | None = None
    protocols: Span = SPOKEN
    """Versions of the controller's protocol that it speaks: fewer in rehearsals of an upgrade."""


async def run(
    config: NodeConfig,
    *,
    clock: Clock,
    entropy: SystemEntropy,
    log: Log,
    adapter: Callable[[str], Adapter] = registry.adapter,
    adapters: Callable[[], tuple[Adapter, ...]] = registry.adapters,
) -> None:
    """Serve until SIGTERM or SIGINT, then say goodbye; engines keep running.

    Raises:
        Failure: `node.already_running`, `settings.invalid`, `cluster.data_dir_unusable`, or `internal.unexpected` when
            a task that must live as long as the process has ended.
    """
    cluster.make_private_dir(config.data_dir)
    cluster.make_private_dir(config.shim_dir)
    only_one = identity.OnlyOne(config.data_dir)
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    try:
        async with TaskGuard(log) as guard:
            await _serve(config, guard, ending, clock, entropy, log, adapter, adapters)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        only_one.release()


async def _serve(
    config: NodeConfig,
    guard: TaskGuard,
    ending: asyncio.Event,
    clock: Clock,
    entropy: SystemEntropy,
    log: Log,
    adapter: Callable[[str], Adapter],
    adapters: Callable[[], tuple[Adapter, ...]],
) -> None:
    def chance() -> float:
        return int.from_bytes(entropy.token_bytes(4), "big") / 2.0**32

    changed = asyncio.Event()
    doors = Doors(_plane(config, guard, clock, chance, log), clock, changed.set)
    devices = Devices(sources_of(config.devices), log)
    environment = launching.installer_environment(config.environment)
    children = Children(config.data_dir / _CHILDREN)
    await _sweep(children, log)
    store, pulls = wiring.wired(
        data_dir=config.data_dir,
        origins=config.origins,
        wheel_dir=config.wheel_dir,
        environment=environment,
        children=children,
        guard=guard,
        clock=clock,
        log=log,
        changed=changed.set,
        tls_dir=config.plane.tls_dir if config.plane else None,
    )
    engines = EngineHouse(
        root=config.data_dir / "engines",
        adapter=adapter,
        wheel_dir=config.wheel_dir,
        environment=environment,
        children=children,
        guard=guard,
        log=log,
        changed=changed.set,
        chance=chance,
        source_hosts=config.origins.source_hosts,
    )
    containers = ContainerHouse(
        data_dir=config.data_dir,
        environment=config.environment,
        children=children,
        log=log,
        may_pull=config.container_pull == "missing",
    )
    await containers.look()
    await containers.sweep(config.data_dir / "replicas")
    around = Surroundings(
        replicas_dir=config.data_dir / "replicas",
        shim_dir=config.shim_dir,
        environment=config.environment,
        start_timeout_s=config.engine_start_timeout_s,
        adapter=adapter,
        store=store,
        pulls=pulls,
        engines=engines,
        containers=containers,
        ports=Ports(config.engine_ports),
        devices=devices,
        clock=clock,
        chance=chance,
        changed=doors.tell,
        log=log,
        policy=config.restart_policy,
    )
    facts = NodeFacts(
        node_id=identity.node_id(config.data_dir, entropy),
        node_name=config.node_name,
        run_id=entropy.fresh("run"),
        agent_version=config.agent_version,
        labels={**host.labels(containers.found), **config.labels},
        plane_host=config.plane.host if config.plane else "",
        plane_port=config.plane.port if config.plane else 0,
        protocols=config.protocols,
    )
    keeper = Supervisor(data_dir=config.data_dir, around=around, guard=guard, changed=changed)
    way = _way(config)
    session = Session(
        facts=facts,
        way=way,
        supervisor=keeper,
        inventory=Inventory(data_dir=config.data_dir, devices=devices, engines=engines, adapters=adapters),
        telemetry=Telemetry(
            node_id=facts.node_id, way=way, devices=devices, data_dir=config.data_dir, chance=chance, log=log
        ),
        fence=doors.fence,
        revoke=doors.revoke,
        standing=StandingFile(config.standing_file, clock),
        clock=clock,
        chance=chance,
        log=log,
    )
    if config.cluster_id and config.tls_dir is not None:
        own = Identity(cluster_id=config.cluster_id, role=Role.NODE, name=facts.node_id)
        renewal = Renewal(
            identity=own,
            tls_dir=config.tls_dir,
            way=way,
            clock=clock,
            chance=chance,
            log=log,
            renewed=doors.renewed,
        )
        guard.eternal("renewal", renewal.run())
    await pulls.open()
    await keeper.start()
    await doors.open(keeper.plane_entries)
    async with _files_served(config, store, clock, log):
        log.info("node_agent_started", node=config.node_name, node_id=facts.node_id, run=facts.run_id)
        keeping = guard.eternal("session", session.run())
        await _first_event(ending, guard.failed)
        pulls.leave()
        if guard.failed.is_set():
            raise Failure("internal.unexpected", "a part of the node agent ended; its log says why")
        await session.leave()
        keeping.cancel()
    log.info("node_agent_ended")


@contextlib.asynccontextmanager
async def _files_served(config: NodeConfig, store: FileStore, clock: Clock, log: Log) -> AsyncIterator[None]:
    """Give the store's files to other nodes for the length of a block, where they have a way to this one."""
    if config.plane is None:
        yield
        return
    server = FileServer(
        path=config.plane.files_socket,
        store=store,
        bytes_per_s=config.plane.peer_bytes_per_s,
        monotonic=clock.monotonic,
        log=log,
    )
    await asyncio.to_thread(server.start)
    try:
        yield
    finally:
        await asyncio.to_thread(server.stop)


def _plane(config: NodeConfig, guard: TaskGuard, clock: Clock, chance: Callable[[], float], log: Log) -> Plane | None:
    if config.plane is None:
        return None
    spec = PlaneSpec(
        host=config.plane.host,
        port=config.plane.port,
        tls_dir=config.plane.tls_dir,
        directory=config.data_dir / _PLANE,
        sockets=config.shim_dir,
        files_socket=config.plane.files_socket,
    )
    return Plane(spec, guard=guard, clock=clock, chance=chance, log=log)


def _way(config: NodeConfig) -> Way:
    is_local = config.control_target.startswith("unix:")
    tls_dir = None if is_local else config.tls_dir
    return Way(target=config.control_target, token=config.token, cluster_id=config.cluster_id, tls_dir=tls_dir)


async def _sweep(children: Children, log: Log) -> None:
    try:
        count = await children.sweep()
    except Failure as failure:  # its engines are worth more than a pip that hangs in the kernel
        log.error("orphans_survive", reason=str(failure))
    else:
        if count:
            log.warning("orphans_killed", processes=count)


async def _first_event(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def stop_all_engines(data_dir: Path, shim_dir: Path, grace_s: float) -> None:
    """End every engine of the node, its data plane and their shims, so that no process and no socket of theirs is left.

    SIGTERM, `grace_s` seconds, SIGKILL to each whole tree, all at the same time; then what dead shims left is swept.
    Downloads and installs that a killed node agent left are killed before all else.
    The node agent itself must have ended. Safe to call twice, and when nothing was ever started.

    Raises:
        Failure: `shim.lost` when a process survives even that.
    """
    children = Children(data_dir / _CHILDREN)
    replicas_dir = data_dir / "replicas"
    try:
        await children.sweep()
    finally:
        try:
            await dataplane.teardown(data_dir / _PLANE, shim_dir)
        finally:
            with contextlib.suppress(FileNotFoundError):
                await supervisor.stop_all(replicas_dir, shim_dir, grace_s)
    if any(replicas_dir.glob("*/keeper")):  # only a container whose keeper was killed is still there
        containers = ContainerHouse(
            data_dir=data_dir,
            environment=process_environment(),
            children=children,
            log=None,
            may_pull=False,
        )
        await containers.look()
        await containers.sweep(replicas_dir)
