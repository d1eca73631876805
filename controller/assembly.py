"""Puts the controller's services together: the one place where they learn of each other.

Comes in: config values, ports, the leadership. Goes out: `Parts` for the edges and the readings of /metrics. Called by
`controller.process` when this controller begins to lead; it starts nothing.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from controller.api.stage import Parts, Stage
from controller.blueprint.service import Blueprints
from controller.deployments.service import Deployments
from controller.engines.choosing import EngineVersions
from controller.engines.service import EngineInstallations
from controller.fleet.admission import Bounds
from controller.fleet.logs import LogRelay
from controller.fleet.members import Members
from controller.fleet.service import Fleet
from controller.identity.authority import AuthorityFiles
from controller.identity.certificates import Certificates
from controller.identity.joining import Joining
from controller.identity.service import Identity
from controller.identity.tokens import JoinTokens, Place
from controller.leadership import Leadership
from controller.leaving.service import Leaving
from controller.ledger.service import Bell, Ledger
from controller.reconcile.absorb import Absorb
from controller.reconcile.commit import Commit
from controller.reconcile.dispatch import Dispatch
from controller.reconcile.loop import LoopConfig, ReconcileLoop
from controller.registry.adopted import AdoptedModels
from controller.registry.aliases import Aliases
from controller.registry.copies import Copies
from controller.registry.pulls import Pulls
from controller.registry.service import Registry
from controller.registry.stages import Stages
from controller.registry.stores import Stores
from controller.registry.templates import Templates
from controller.routes.service import Routes
from controller.secrets.service import Secrets
from controller.secrets.vault import Vault
from controller.usage.service import Usage
from controller.wakeups import LoopWakeups
from core.clock import Clock
from core.infra import postgres
from core.infra.logs import Log
from core.infra.metrics import Reading, resident_bytes
from scheduler.plan import plan


class Entropy(Protocol):
    """Identifiers and secret bytes; the real one is `core.infra.entropy.SystemEntropy`."""

    def fresh(self, prefix: str) -> str:
        """Return a new identifier."""

    def token_bytes(self, count: int) -> bytes:
        """Return `count` random bytes."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the services are told of the cluster; seconds and bytes."""

    cluster_id: str
    version: str
    schema: int
    openai_base_url: str
    key_pepper: bytes
    secret_key: bytes
    secrets_dir: Path
    node_host: str
    node_port: int
    heartbeat_s: float
    hellos: Bounds
    loop: LoopConfig
    own_node_id: Callable[[], str] = str


def build(
    facts: Facts,
    *,
    database: postgres.Database,
    leadership: Leadership,
    bell: Bell,
    clock: Clock,
    entropy: Entropy,
    log: Log,
) -> Parts:
    """Return the services of a reign that has begun."""
    wakeups = LoopWakeups()
    ledger = Ledger(database, bell)
    registry = Registry(database=database, events=ledger, wakeups=wakeups, ids=entropy)
    pulls = Pulls(database=database, registry=registry, events=ledger, wakeups=wakeups, ids=entropy)
    copies = Copies(database=database, registry=registry, events=ledger, wakeups=wakeups, ids=entropy)
    aliases = Aliases(database=database, registry=registry, events=ledger, wakeups=wakeups)
    stages = Stages(database=database, registry=registry, events=ledger, wakeups=wakeups)
    stores = Stores(database=database, events=ledger, wakeups=wakeups, clock=clock)
    secrets = Secrets(database=database, vault=Vault(facts.secret_key), events=ledger, wakeups=wakeups, entropy=entropy)
    fleet = Fleet(
        database=database,
        wakeups=wakeups,
        clock=clock,
        chance=lambda: int.from_bytes(entropy.token_bytes(4)) / 2**32,
        heartbeat_s=facts.heartbeat_s,
        leader_epoch=leadership.epoch,
        bounds=facts.hellos,
        log=log,
    )
    authority = AuthorityFiles(facts.secrets_dir, cluster_id=facts.cluster_id, clock=clock)
    certificates = Certificates(database=database, authority=authority, clock=clock, cluster_id=facts.cluster_id)
    members = Members(database=database, fleet=fleet, events=ledger, wakeups=wakeups)
    versions = EngineVersions()
    deployments = Deployments(
        database=database,
        versions=registry,
        secrets=secrets,
        installations=fleet,
        engine_versions=versions,
        templates=Templates(),
        events=ledger,
        wakeups=wakeups,
        ids=entropy,
    )
    engines = EngineInstallations(
        database=database, versions=versions, deployments=deployments, live=fleet, events=ledger, wakeups=wakeups
    )
    routes = Routes(clock=clock, wakeups=wakeups, leader_epoch=leadership.epoch)
    lost_s = fleet.timers.lost_s
    absorb = Absorb(
        database=database,
        leadership=leadership,
        deployments=deployments,
        pulls=pulls,
        copies=copies,
        engines=engines,
        adopted=AdoptedModels(registry),
        events=ledger,
        lost_s=lost_s,
        log=log,
    )
    commit = Commit(database=database, leadership=leadership, events=ledger, ids=entropy, lost_s=lost_s)
    loop = ReconcileLoop(
        config=facts.loop,
        database=database,
        wakeups=wakeups,
        fleet=fleet,
        routes=routes,
        absorb=absorb,
        commit=commit,
        dispatch=Dispatch(database=database, leadership=leadership, fleet=fleet),
        vault=secrets.vault,
        planner=plan,
        clock=clock,
        log=log,
    )
    return Parts(
        database=database,
        registry=registry,
        aliases=aliases,
        stages=stages,
        blueprints=Blueprints(
            database=database,
            registry=registry,
            stages=stages,
            aliases=aliases,
            pulls=pulls,
            deployments=deployments,
            wakeups=wakeups,
        ),
        pulls=pulls,
        copies=copies,
        stores=stores,
        deployments=deployments,
        engines=engines,
        secrets=secrets,
        fleet=fleet,
        leaving=Leaving(
            database=database,
            fleet=fleet,
            certificates=certificates,
            events=ledger,
            wakeups=wakeups,
            clock=clock,
            cpu_reserve_bytes=facts.loop.cpu_reserve_bytes,
            own_node_id=facts.own_node_id,
        ),
        logs=LogRelay(fleet=fleet, ids=entropy),
        routes=routes,
        identity=Identity(
            database=database, events=ledger, wakeups=wakeups, entropy=entropy, clock=clock, pepper=facts.key_pepper
        ),
        certificates=certificates,
        members=members,
        joining=Joining(database=database, events=ledger, members=members, certificates=certificates, clock=clock),
        tokens=JoinTokens(
            database=database,
            events=ledger,
            entropy=entropy,
            clock=clock,
            authority=authority,
            place=Place(host=facts.node_host, port=facts.node_port),
        ),
        ledger=ledger,
        loop=loop,
        usage=Usage(database=database, clock=clock),
        leader_epoch=leadership.epoch,
        schema=facts.schema,
        version=facts.version,
        cluster_id=facts.cluster_id,
        openai_base_url=facts.openai_base_url,
    )


def readings(stage: Stage) -> tuple[Reading, ...]:
    """Return the metrics of the controller; those of services are absent until it leads."""

    def of(read: Callable[[Parts], Mapping[str, float]]) -> Callable[[], Mapping[str, float]]:
        return lambda: read(stage.parts()) if stage.is_ready else {}

    def one(read: Callable[[Parts], float]) -> Callable[[], Mapping[str, float]]:
        return of(lambda parts: {"": read(parts)})

    nodes = of(lambda parts: dict(Counter(node.state.value for node in parts.fleet.nodes().values())))
    replicas = of(lambda parts: parts.loop.counts.replica_states)
    total, gauge = True, False
    numbers: tuple[tuple[str, str, Callable[[Parts], float], bool], ...] = (
        ("slice_reconcile_passes_total", "Passes of the reconcile loop.", lambda p: p.loop.counts.passes, total),
        ("slice_reconcile_stale_total", "Plans that were stale when committed.", lambda p: p.loop.counts.stale, total),
        ("slice_reconcile_failed_total", "Passes that failed.", lambda p: p.loop.counts.failed, total),
        ("slice_reconcile_seconds", "How long the last pass took.", lambda p: p.loop.counts.last_s, gauge),
        ("slice_reconcile_seconds_total", "Time spent in passes.", lambda p: p.loop.counts.total_s, total),
        ("slice_events_total", "Events recorded in this reign.", lambda p: p.ledger.recorded, total),
        ("slice_route_version", "Version of the published route table.", lambda p: p.routes.version, gauge),
        ("slice_doors", "Front doors that report.", lambda p: len(p.routes.doors()), gauge),
        ("slice_usage_rows_total", "Rows of usage stored in this reign.", lambda p: p.usage.rows, total),
        ("slice_usage_lost_total", "Rows of usage that doors gave up.", lambda p: p.usage.lost, total),
        ("slice_leader_epoch", "Number of this reign.", lambda p: p.leader_epoch, gauge),
        ("slice_storage_up", "1 while PostgreSQL answers.", lambda p: float(p.loop.counts.is_storage_up), gauge),
    )
    return (
        Reading(name="slice_nodes", meaning="Nodes by state.", read=nodes, label="state"),
        Reading(name="slice_replicas", meaning="Replicas by state.", read=replicas, label="state"),
        *(
            Reading(name=name, meaning=meaning, read=one(read), is_counter=is_counter)
            for name, meaning, read, is_counter in numbers
        ),
        Reading(
            name="slice_process_resident_bytes",
            meaning="Resident set of the controller.",
            read=lambda: {"": resident_bytes()},
        ),
    )
