"""The cluster's recorded facts before anything starts: its block, its secrets and the flags it was last given.

Called by `up` and by the supervisor. Every fault is a `Failure` that names the flag that cures it.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from cli.cluster import listeners
from core.errors import Failure
from core.infra import cluster, joined, settings
from core.infra.cluster import PORTS_PER_CLUSTER, SECRETS, ClusterBlock, MachineBlock
from core.infra.entropy import SystemEntropy
from core.infra.settings import Loaded, Settings
from core.units import MIB, text_from_bytes

_EPHEMERAL_FLOOR = 32768  # net.ipv4.ip_local_port_range's usual start: the kernel hands out ports from here
_FIRST_BASE_PORT = 20000
_MAY_COME_FIRST = frozenset({"slice.toml", "supervisor.lock", "secrets", "logs", "parts", "node", "door", "flags.json"})
"""What a data directory may hold before its block: an operator's settings, and what an interrupted first start made."""
_DISK_FLOOR_BYTES = 512 * MIB
"""Least free disk for a start: PostgreSQL 60 MB, the starter model twice 98 MB while unpacked, an engine 60 MB."""


def loaded_settings(data_dir: Path, flags: Mapping[str, object]) -> Loaded:
    """Return the settings of a start: `DATA/slice.toml`, the environment, remembered flags, the flags given now."""
    given = {key: value for key, value in flags.items() if value is not None}
    return settings.load(
        data_dir / "slice.toml", settings.process_environment(), {**remembered_flags(data_dir), **given}
    )


def remembered_flags(data_dir: Path) -> Mapping[str, object]:
    """Return the flags of the last `slice up` of this data directory."""
    try:
        found = json.loads((data_dir / "flags.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def remember_flags(data_dir: Path, flags: Mapping[str, object]) -> None:
    """Keep the flags given now beside those given before, so that a later plain `slice up` is the same cluster."""
    given = {key: value for key, value in flags.items() if value is not None}
    cluster.write_private(data_dir / "flags.json", json.dumps({**remembered_flags(data_dir), **given}, indent=2) + "\n")


def claim(data_dir: Path) -> None:
    """Make the data directory, private, or take one that is empty or ours already.

    Raises:
        Failure: `cluster.data_dir_unusable`; somebody else's files are left as they are, modes included.
    """
    try:
        found = {entry.name for entry in data_dir.iterdir()} if data_dir.is_dir() else set()
    except OSError as error:
        raise Failure(
            "cluster.data_dir_unusable",
            f"{data_dir} cannot be read: {error.strerror}",
            hint="choose a directory of your own with --data-dir",
        ) from error
    if joined.LEFT_FILE in found:
        raise Failure(
            "cluster.data_dir_unusable",
            f"{data_dir} is of a node that has left its cluster, and not all of it is removed yet",
            hint="`slice node leave` finishes that",
        )
    if not found & {"cluster.json", joined.FILE} and any(
        name not in _MAY_COME_FIRST and not name.startswith(("tls", ".tls")) for name in found
    ):
        raise Failure(
            "cluster.data_dir_unusable",
            f"{data_dir} holds other files and no cluster",
            hint="choose a new or an empty directory with --data-dir",
        )
    cluster.make_private_dir(data_dir)


def prepared_block(data_dir: Path, loaded: Loaded, entropy: SystemEntropy, *, living: frozenset[int]) -> ClusterBlock:
    """Return the block of a cluster that is about to start, made or brought in step with the settings.

    `living` are ports that parts of this very cluster still hold; they are adopted with those parts.

    Raises:
        Failure: the directory is unusable, the disk is full, a port is taken, or a path is too long.
    """
    data_dir = data_dir.resolve()
    check_writable(data_dir)
    known = cluster.load(data_dir)
    wanted = loaded.settings

    if known is None:
        block = ClusterBlock(
            cluster_id=entropy.fresh("clu"),
            data_dir=data_dir,
            runtime_dir=cluster.runtime_dir_of(data_dir, settings.process_environment()),
            host=wanted.host,
            door_port=wanted.port,
            controller_port=wanted.controller_port,
            base_port=free_base_port(data_dir),
        )
    else:
        block = dataclasses.replace(
            known,
            base_port=known.base_port if living or is_free(known.base_port) else free_base_port(data_dir),
            host=wanted.host,
            door_port=wanted.port,
            controller_port=wanted.controller_port,
        )
    _check_ports(block, living)
    _check_node_ports(wanted, living)
    if known is not None and cluster.is_moved(data_dir):
        forget_processes(known)
    make_dirs(block)
    make_secrets(block, entropy)
    cluster.save(block)
    return block


def forget_processes(block: MachineBlock) -> None:
    """Remove what a copied directory says of processes: they are the original's, neither to be adopted nor ended."""
    door_dir = block.data_dir / "door"
    for path in (block.parts_dir, door_dir / "shim", block.node_dir / "replicas", block.node_dir / "children"):
        shutil.rmtree(path, ignore_errors=True)
    (block.node_dir / "applied.json").unlink(missing_ok=True)
    (block.data_dir / "supervisor.json").unlink(missing_ok=True)


def make_dirs(block: ClusterBlock) -> None:
    """Make every private directory of the cluster."""
    for path in (
        block.runtime_dir,
        block.postgres_socket_dir,
        block.shim_dir,
        block.parts_dir,
        block.ray_dir,
        block.node_dir,
        block.door_dir,
        block.log_dir,
        block.data_dir / "secrets",
    ):
        cluster.make_private_dir(path)


def make_secrets(block: ClusterBlock, entropy: SystemEntropy) -> None:
    """Make the secrets that do not exist yet; existing ones are never changed."""
    for name in SECRETS:
        file = block.secret_file(name)
        if not file.exists():
            is_bytes = name in {"key_pepper", "engine_seed", "secret_key"}
            cluster.write_private(file, entropy.token_bytes(32).hex() if is_bytes else entropy.token_text())


def check_writable(data_dir: Path) -> None:
    """See that a start will find room in `data_dir`.

    Raises:
        Failure: `cluster.data_dir_unusable` or `disk.full`.
    """
    probe = data_dir / f".probe.{os.getpid()}"
    try:
        probe.write_text("")
    except OSError as error:
        raise Failure(
            "cluster.data_dir_unusable",
            f"{data_dir} is not writable: {error.strerror}",
            hint="choose a writable directory with --data-dir",
        ) from error
    finally:
        probe.unlink(missing_ok=True)
    free = shutil.disk_usage(data_dir).free
    if free < _DISK_FLOOR_BYTES:
        raise Failure(
            "disk.full",
            f"{data_dir} has {text_from_bytes(free)} free, a start needs {text_from_bytes(_DISK_FLOOR_BYTES)}",
            hint="free some space, or choose another disk with --data-dir",
        )


def _check_node_ports(wanted: Settings, living: frozenset[int]) -> None:
    if not wanted.node_host:
        return
    if not listeners.can_bind(wanted.node_host, 0):
        raise Failure(
            "settings.invalid",
            f"{wanted.node_host} is no address of this machine, so that other machines cannot join at it",
            hint="give an address that `ip addr` shows with --node-host, or --node-host '' for one machine alone",
            param="node_host",
        )
    for port in (wanted.node_port, wanted.node_port + 1):
        if port not in living and not listeners.can_bind(wanted.node_host, port):
            raise Failure(
                "cluster.port_taken",
                f"port {port} on {wanted.node_host} is taken by {listeners.holder(port)}",
                hint="stop that program, or choose another with --node-port; the next one is needed too",
                param="--node-port",
            )


def _check_ports(block: ClusterBlock, living: frozenset[int]) -> None:
    for port, flag in ((block.door_port, "--port"), (block.controller_port, "--controller-port")):
        if port not in living and not listeners.can_bind(block.host, port):
            raise Failure(
                "cluster.port_taken",
                f"port {port} on {block.host} is taken by {listeners.holder(port)}",
                hint=f"stop that program, or choose another port with {flag}",
                param=flag,
            )


def is_free(base: int) -> bool:
    """Return whether nobody listens on any port of the range that begins at `base`."""
    return not {item.port for item in listeners.listeners()}.intersection(range(base, base + PORTS_PER_CLUSTER))


def free_base_port(data_dir: Path) -> int:
    """Return the first range whose ports are all free, starting at a place that depends on the directory.

    The start differs per directory so that a second cluster does not first look at the range of the first, whose
    ports may be free while that cluster is down.
    """
    count = (_EPHEMERAL_FLOOR - _FIRST_BASE_PORT) // PORTS_PER_CLUSTER
    start = sum(str(data_dir).encode()) % count
    for step in range(count):
        base = _FIRST_BASE_PORT + (start + step) % count * PORTS_PER_CLUSTER
        if is_free(base):
            return base
    raise Failure(
        "cluster.port_taken",
        f"no {PORTS_PER_CLUSTER} neighbouring ports are free between {_FIRST_BASE_PORT} and {_EPHEMERAL_FLOOR}",
        hint="stop some programs that listen there",
    )
