"""`slice doctor`: what is wrong on this machine, in words, each with its cure. Reads only; changes nothing."""

import asyncio
import resource
import shutil
import site
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from cli.cluster import door, floors, listeners, lock, postgres, recording, wiring
from cli.cluster.finding import Finding
from cli.cluster.parts import recorded
from cli.joined import doctor as joined_doctor
from core.errors import Failure
from core.infra import cluster, joined
from core.infra.clock import SystemClock
from core.infra.cluster import PORTS, ClusterBlock, MachineBlock
from core.infra.joined import NodeBlock
from core.infra.processes import family
from core.infra.settings import process_environment
from core.units import GIB, MIB, text_from_bytes
from gateway.exposure import expected_open_ports

_KNOWN_PTH = ("distutils-precedence.pth", "__editable__", "easy-install.pth", "_virtualenv.pth", "coverage")


def run(data_dir: Path) -> list[Finding]:
    """Return everything that was looked at on this machine and in the cluster of `data_dir`."""
    of_any: tuple[Callable[[Path], Iterable[Finding]], ...] = (_python, _packages, _startup_files, _limits, _disk)
    of_place = (_node,) if (data_dir / joined.FILE).exists() else (_postgres, _cluster)
    checks: tuple[Callable[[Path], Iterable[Finding]], ...] = (*of_any, *of_place, _floors)
    findings: list[Finding] = []
    for check in checks:
        findings.extend(check(data_dir))
    return findings


def _python(_: Path) -> Iterable[Finding]:
    version = ".".join(str(part) for part in sys.version_info[:3])
    yield Finding(
        name="python", is_ok=sys.version_info >= (3, 11), detail=version, hint="Python 3.11 or newer is needed"
    )


def _packages(_: Path) -> Iterable[Finding]:
    yield from floors.packages()


def _floors(data_dir: Path) -> Iterable[Finding]:
    """Look for what is older than it should be, and for who else serves models here."""
    try:
        block: MachineBlock | None = cluster.load(data_dir) or joined.load(data_dir)
    except Failure:  # told by the check of the cluster
        block = None
    path = process_environment().get("PATH")
    if not isinstance(block, NodeBlock):
        yield from floors.database()
    yield from floors.container_runtime(path)
    yield from floors.engines(block, path)
    yield from floors.strangers(block)


def _startup_files(_: Path) -> Iterable[Finding]:
    """Look for .pth files that run code at every start of Python: how stolen packages phoned home in 2026."""
    strangers = []
    for folder in site.getsitepackages():
        for file in Path(folder).glob("*.pth"):
            if not file.name.startswith(_KNOWN_PTH) and any(
                line.startswith("import") for line in file.read_text(errors="replace").splitlines()
            ):
                strangers.append(file.name)
    yield Finding(
        name="startup files",
        is_ok=not strangers,
        detail=", ".join(strangers) or "no unexpected .pth file runs code",
        hint="find out which package brought them before going on" if strangers else "",
    )


def _limits(_: Path) -> Iterable[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield Finding(
        name="open files",
        is_ok=hard >= 4096,
        detail=f"limit {soft} (hard {hard})",
        hint="" if hard >= 4096 else "raise it (ulimit -n, LimitNOFILE): every stream takes two",
    )
    memory = psutil.virtual_memory()
    yield Finding(
        name="memory",
        is_ok=memory.available > 2 * GIB,
        detail=f"{text_from_bytes(memory.available)} available of {text_from_bytes(memory.total)}",
        hint=""
        if memory.available > 2 * GIB
        else "Slice itself takes about 1 GiB, an engine its model's size and more",
    )


def _disk(data_dir: Path) -> Iterable[Finding]:
    place = next(item for item in (data_dir, *data_dir.resolve().parents) if item.exists())
    free = shutil.disk_usage(place).free
    yield Finding(
        name="disk",
        is_ok=free > 512 * MIB,
        detail=f"{text_from_bytes(free)} free at {place}",
        hint="" if free > 512 * MIB else "free some space, or choose another disk with --data-dir",
    )


def _postgres(data_dir: Path) -> Iterable[Finding]:
    found = [item.provider for item in postgres.found_binaries()]
    yield Finding(
        name="PostgreSQL binaries",
        is_ok=bool(found) or None,
        detail=", ".join(found) or "none installed",
        hint="" if found else "pip install 'slice-cluster[server]', or use --database-url",
    )
    try:
        place = next(item for item in (data_dir, *data_dir.resolve().parents) if item.exists())
        how = postgres.identity(place)
        detail = "in a user namespace" if how.prefix else f"as {how.user}" if how.user else "as this user"
        yield Finding(name="PostgreSQL identity", is_ok=True, detail=detail)
    except Failure as failure:
        yield Finding(name="PostgreSQL identity", is_ok=False, detail=failure.message, hint=failure.hint)


def _cluster(data_dir: Path) -> Iterable[Finding]:
    try:
        block = cluster.load(data_dir)
    except Failure as failure:
        yield Finding(name="cluster", is_ok=False, detail=failure.message, hint=failure.hint)
        return
    if block is None:
        yield Finding(name="cluster", is_ok=None, detail=f"none in {data_dir}", hint="`slice up` makes one")
        yield from _ports_for_a_start(data_dir)
        return
    supervisor = lock.supervisor(block.data_dir)
    if supervisor is None and not block.runtime_dir.exists():
        yield Finding(name="cluster", is_ok=None, detail="down", hint="`slice up` starts it")
        yield from _ports_for_a_start(data_dir)
        return
    yield Finding(
        name="supervisor",
        is_ok=supervisor is not None,
        detail=f"pid {supervisor.pid}" if supervisor else "gone; the rest serves on",
        hint="" if supervisor else "`slice up` starts a new one, which adopts what runs",
    )
    yield from _parts(block)
    yield from asyncio.run(_answers(block))
    yield _node_listener(block)
    yield from _exposure(block)


def _node(data_dir: Path) -> Iterable[Finding]:
    try:
        block = joined.load(data_dir)
    except Failure as failure:
        yield Finding(name="node", is_ok=False, detail=failure.message, hint=failure.hint)
        return
    if block is not None:
        yield from joined_doctor.findings(block, SystemClock().now())


def _ports_for_a_start(data_dir: Path) -> Iterable[Finding]:
    wanted = recording.loaded_settings(data_dir, {}).settings
    for name, port, flag in (
        ("front door port", wanted.port, "--port"),
        ("controller port", wanted.controller_port, "--controller-port"),
    ):
        is_free = listeners.can_bind(wanted.host, port)
        detail = f"{port} is free" if is_free else f"{port} is taken by {listeners.holder(port)}"
        yield Finding(name=name, is_ok=is_free, detail=detail, hint="" if is_free else f"choose another with {flag}")


def _parts(block: ClusterBlock) -> Iterable[Finding]:
    wanted = recording.loaded_settings(block.data_dir, {}).settings
    names = ("controller", "node_agent") if wanted.database_url else ("postgres", "controller", "node_agent")
    for name in names:
        process = recorded(block.parts_dir, name)
        log = block.log_dir / f"{name}.log"
        yield Finding(
            name=name,
            is_ok=process is not None,
            detail=f"pid {process.pid}" if process else "not running",
            hint="" if process else f"its log is {log}",
        )
    state = asyncio.run(_door_state(block))
    yield Finding(
        name="front door",
        is_ok=state == "running",
        detail=state,
        hint="" if state == "running" else f"its log is {block.log_dir / 'door.log'}",
    )


async def _answers(block: ClusterBlock) -> list[Finding]:
    """Ask the living parts: a pid alone says little of a process that is stopped or hangs."""
    asked = (
        ("front door answers", wiring.door_is_ready, "door"),
        ("controller answers", wiring.controller_is_ready, "controller"),
        ("this machine's node is heard", wiring.node_is_ready, "node_agent"),
    )
    findings = []
    for name, probe, log in asked:
        is_ok = await probe(block)
        hint = "" if is_ok else f"wait some seconds if it was just restarted; its log is {block.log_dir / log}.log"
        findings.append(Finding(name=name, is_ok=is_ok, detail="yes" if is_ok else "no", hint=hint))
    return findings


def _node_listener(block: ClusterBlock) -> Finding:
    wanted = recording.loaded_settings(block.data_dir, {}).settings
    if not wanted.node_host:
        detail = "no node_host is set: this cluster is one machine"
        return Finding(
            name="other machines", is_ok=None, detail=detail, hint="`slice up --node-host ADDRESS` lets them in"
        )
    open_ports = {item.port for item in listeners.listeners()}
    silent = [port for port in (wanted.node_port, wanted.node_port + 1) if port not in open_ports]
    return Finding(
        name="other machines",
        is_ok=not silent,
        detail=f"nothing listens on {wanted.node_host} at {', '.join(map(str, silent))}"
        if silent
        else f"join at {wanted.node_host}, ports {wanted.node_port} and {wanted.node_port + 1}",
        hint=f"its log is {block.log_dir / 'controller.log'}" if silent else "",
    )


async def _door_state(block: ClusterBlock) -> str:
    try:
        living = await door.handle(block)
        return "not running" if living is None else (await living.status()).state
    except Failure as failure:
        return failure.message


def _exposure(block: ClusterBlock) -> Iterable[Finding]:
    """List what listens, with what guards it; beyond loopback only the two ends that the settings put there may."""
    pids = {item.pid for item in family(_roots(block))}
    ours = [item for item in listeners.listeners() if item.pid in pids]
    ports = {name: block.port(offset) for name, offset in PORTS.items()}
    expected = expected_open_ports(host=block.host, port=block.door_port, replicas=1, ports=ports)
    wanted = recording.loaded_settings(block.data_dir, {}).settings
    for_nodes = {wanted.node_port, wanted.node_port + 1} if wanted.node_host else set()
    meant = {block.door_port, block.controller_port} | for_nodes
    for item in sorted(ours, key=lambda one: one.port):
        if item.address.removeprefix("::ffff:") in {"127.0.0.1", "::1"}:
            continue
        known = next((one for one in expected if one.port <= item.port <= one.last_port), None)
        purpose = f" ({known.purpose}; guarded by {known.guard})" if known else ""
        if item.port in for_nodes:
            purpose = " (other machines; guarded by TLS with certificates of this cluster)"
        yield Finding(
            name="port beyond loopback",
            is_ok=None if item.port in meant else False,
            detail=f"{item.name} listens on {item.address}:{item.port}{purpose}",
            hint="whoever reaches this machine reaches it: close it with a firewall, or listen on 127.0.0.1",
        )
    if all(item.address.removeprefix("::ffff:") in {"127.0.0.1", "::1"} for item in ours):
        yield Finding(name="ports", is_ok=True, detail=f"{len(ours)}, all on loopback")


def _roots(block: ClusterBlock) -> frozenset[int]:
    """Return the pids above everything that the cluster runs, engines apart (their ports are checked as they start)."""
    found = [recorded(block.parts_dir, name) for name in ("controller", "node_agent", "postgres")]
    leader = asyncio.run(_door_leader(block))
    return frozenset({item.pid for item in found if item is not None} | ({leader} if leader is not None else set()))


async def _door_leader(block: ClusterBlock) -> int | None:
    try:
        living = await door.handle(block)
        leader = (await living.status()).leader if living is not None else None
    except Failure:
        return None
    return leader.pid if leader is not None else None
