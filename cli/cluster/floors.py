"""What this machine has that is older than it should be: packages, database, container runtime, engines; and who else
serves models here. Part of `slice doctor`; a line only where something is to be said.

Reads only; each program is asked for its version once, within 5 s. Sources of the floors: the advisories named beside
them, and for engines their adapters.
"""

import base64
import binascii
import http.client
import importlib.metadata
import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError

from adapters import floors, registry
from adapters.contract import Adapter
from cli.cluster import postgres
from cli.cluster.finding import Finding
from core.infra.cluster import MachineBlock
from core.versions import is_below, version_key
from protos.slice.node.v1 import node_pb2

# Package, lowest version, why. Below them a known vulnerability, or a fault that hit us, is open.
PACKAGES: tuple[tuple[str, str, str], ...] = (
    ("ray", "2.56", "CVE-2025-62593, CVE-2026-57516; token authentication and HAProxy mode"),
    ("grpcio", "1.85.1", "leak of cancelled batches in older releases"),
    ("protobuf", "7.36.2", "stubs are generated for it"),
    ("psycopg", "3.3.9", "pool checks"),
    ("starlette", "1.0.1", "CVE-2026-48710: a Host header poisons request.url.path"),
    ("h11", "0.16", "CVE-2025-43859: request smuggling"),
    ("cryptography", "50.0.2", "current OpenSSL"),
)
# Of each major release of PostgreSQL the first that is safe; older majors are not maintained for our purpose.
POSTGRES = {15: "15.16", 16: "16.12", 17: "17.8", 18: "18.6"}
_POSTGRES_WHY = "CVE-2026-2005, CVE-2026-2006, and on 18 CVE-2026-14676"
_PGVECTOR = ("0.8.7", "CVE-2026-3172, index corruption on vacuum, IVFFlat overflow")
_RUNC = {(1, 2): "1.2.8", (1, 3): "1.3.3", (1, 4): "1.4.0-rc.3"}
_RUNC_WHY = "CVE-2025-31133, CVE-2025-52565, CVE-2025-52881: escape from a container"
_VERSION = re.compile(r"\d+(?:\.\d+)+(?:-rc\.?\d+)?")
_ASK_S = 5.0
_OLLAMA = ("127.0.0.1", 11434)
_KNOCK_S = 0.5


def packages() -> Iterable[Finding]:
    """Yield one finding for each Python package that we depend on."""
    for name, floor, reason in PACKAGES:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(
                name=f"package {name}",
                is_ok=None,
                detail="not installed",
                hint="only `slice-cluster[server]` has it; a machine that just joins as a node needs none",
            )
            continue
        is_ok = not is_below(found, floor)
        hint = "" if is_ok else f"at least {floor} is needed: {reason}"
        yield Finding(name=f"package {name}", is_ok=is_ok, detail=found, hint=hint)


def database() -> Iterable[Finding]:
    """Yield a finding for each PostgreSQL and pgvector of ours that is too old."""
    for binaries in postgres.found_binaries()[:1]:
        version = said((str(binaries.bin_dir / "postgres"), "--version"))
        if why := postgres_fault(version):
            yield Finding(name="PostgreSQL", is_ok=False, detail=version, hint=why)
        for control in sorted(binaries.bin_dir.parent.rglob("vector.control"))[:1]:
            found = re.search(r"^default_version = '([^']+)'", control.read_text(errors="replace"), re.M)
            if found and is_below(found[1], _PGVECTOR[0]):
                # A note: no wheel may have a newer one yet, and nobody but the controller reaches this database.
                hint = f"{_PGVECTOR[0]} is safe: {_PGVECTOR[1]}; a server of your own can have it (--database-url)"
                yield Finding(name="pgvector", is_ok=None, detail=found[1], hint=hint)


def postgres_fault(version: str) -> str:
    """Return why a version of PostgreSQL should not be run, "" when nothing is known against it."""
    numbers, *_ = version_key(version)
    if not numbers or numbers[0] > max(POSTGRES):
        return ""
    floor = POSTGRES.get(numbers[0], POSTGRES[min(POSTGRES)])
    return f"at least {floor} is needed: {_POSTGRES_WHY}" if is_below(version, floor) else ""


def container_runtime(path: str | None) -> Iterable[Finding]:
    """Yield a finding when the machine's runc is too old; Slice needs one for engines in containers only."""
    runc = shutil.which("runc", path=path)
    version = said((runc, "--version")) if runc else ""
    if why := runc_fault(version):
        yield Finding(name="runc", is_ok=None, detail=version, hint=why)


def runc_fault(version: str) -> str:
    """Return why a version of runc should not run engines, "" when nothing is known against it."""
    numbers, *_ = version_key(version)
    if not numbers or numbers[:2] > max(_RUNC):
        return ""
    floor = _RUNC.get((*numbers, 0)[:2], _RUNC[min(_RUNC)])  # type: ignore[arg-type]  # two of them
    return f"at least {floor} should run containers: {_RUNC_WHY}" if is_below(version, floor) else ""


def said(argv: Sequence[str]) -> str:
    """Return the first version in what a program says, "" when it says none within 5 s."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = _VERSION.search(done.stdout + done.stderr)
    return found[0] if found else ""


def engines(block: MachineBlock | None, path: str | None) -> Iterable[Finding]:
    """Yield a finding for each engine on this machine, installed or on `path`, that is below its floor."""
    for adapter in registry.adapters():
        if floors.floor_of(adapter) is None:
            continue
        for version in sorted(_installed(block, adapter) | _on_path(adapter, path)):
            if why := floors.below_floor(adapter, version):
                hint = f"`slice engine upgrade {adapter.name}@VERSION`, then remove the old one"
                yield Finding(name=f"engine {adapter.name}", is_ok=False, detail=why, hint=hint)


def _installed(block: MachineBlock | None, adapter: Adapter) -> set[str]:
    if block is None:
        return set()
    return {marker.parent.name for marker in block.node_dir.glob(f"engines/{adapter.name}/*/slice-engine.json")}


def _on_path(adapter: Adapter, path: str | None) -> set[str]:
    binary = adapter.install_plan(adapter.default_version).binary
    found = shutil.which(binary.executable, path=path) if binary else None
    if binary is None or found is None:
        return set()
    try:
        argv = (found, *binary.version_argv)
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return set()
    version = re.search(binary.version_pattern, done.stdout + done.stderr)
    return {version[1]} if version else set()


def strangers(block: MachineBlock | None, address: tuple[str, int] = _OLLAMA) -> Iterable[Finding]:
    """Yield a finding when an Ollama answers at its usual address and no node of ours has adopted it."""
    version = _ollama_at(address)
    if version is None or address[1] in _adopted_ports(block):
        return
    yield Finding(
        name="Ollama",
        is_ok=None,
        detail=f"{version or 'one'} answers at {address[0]}:{address[1]} and is not part of this cluster",
        hint="`slice engine adopt ollama` lists and serves its models, and only reads its store",
    )


def _ollama_at(address: tuple[str, int]) -> str | None:
    connection = http.client.HTTPConnection(*address, timeout=_KNOCK_S)
    try:
        connection.request("GET", "/api/version", headers={"Connection": "close"})
        answer = connection.getresponse()
        found = json.loads(answer.read(4096)) if answer.status == http.client.OK else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    version = found.get("version") if isinstance(found, dict) else None
    return version[:40] if isinstance(version, str) and version.isprintable() else None


def _adopted_ports(block: MachineBlock | None) -> set[int]:
    """Return the ports of the engines that this machine's node agent was last told to adopt."""
    try:
        assert block is not None
        encoded = json.loads((block.node_dir / "applied.json").read_text())["desired"]
        desired = node_pb2.Desired.FromString(base64.b64decode(encoded))
    except (AssertionError, OSError, ValueError, KeyError, TypeError, DecodeError, binascii.Error):
        return set()
    return {urlsplit(want.adopt_url).port or 0 for want in desired.engines if want.adopt_url}
