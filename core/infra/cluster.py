"""The recorded block of one cluster: every path, socket and port it uses, so that two clusters live side by side.

Written once by `slice up` to `DATA/cluster.json`, read by every process of the cluster. Ports of Ray, its HAProxy and
the engines come from one range of 100 that is free at first start and lies below the kernel's ephemeral range.
"""

import hashlib
import json
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from core.errors import Failure
from core.infra.settings import process_environment

BLOCK_FORMAT = 1
PORTS_PER_CLUSTER = 100
SECRETS = ("operator_token", "node_token", "door_token", "key_pepper", "engine_seed", "ray_token", "secret_key")
"""Secrets made at first start; `api_key` joins them when `slice up` has minted the first key."""
_RUNTIME_DIR_MAX = 34
"""Longest runtime directory: Serve's HAProxy binds a socket 69 characters below `<runtime>/ray`, and unix(7) ends a
socket path at 107 (`gateway/ray_node.py` says which)."""


@dataclass(frozen=True, kw_only=True)
class MachineBlock(ABC):
    """What a cluster has on any of its machines; `base_port` begins its range of `PORTS_PER_CLUSTER` internal ports."""

    cluster_id: str
    data_dir: Path
    runtime_dir: Path
    base_port: int

    @property
    @abstractmethod
    def file(self) -> Path:
        """Where this block is recorded."""

    @property
    def standing_file(self) -> Path:
        """How the node's session stands (`node_agent.standing`)."""
        return self.runtime_dir / "session.json"

    @property
    def files_socket(self) -> Path:
        """Where the node's file server answers its data plane."""
        return self.runtime_dir / "files.sock"

    @property
    def shim_dir(self) -> Path:
        """One `<id>.sock` per living shim."""
        return self.runtime_dir / "shims"

    @property
    def parts_dir(self) -> Path:
        """One `<part>.json` per process the supervisor owns: its pid and start time.

        In the data directory: whoever cleans temporary directories must not make us forget what runs.
        """
        return self.data_dir / "parts"

    @property
    def node_dir(self) -> Path:
        """Data of this machine's node agent: engines, model store, replicas."""
        return self.data_dir / "node"

    @property
    def tls_dir(self) -> Path:
        """The node's certificate and key (`core.infra.credentials`)."""
        return self.data_dir / "tls"

    @property
    def log_dir(self) -> Path:
        """Logs of our own processes."""
        return self.data_dir / "logs"

    def port(self, offset: int) -> int:
        """Return the internal port at `offset` (0 to 99); `PORTS` names the offsets."""
        return self.base_port + offset


@dataclass(frozen=True, kw_only=True)
class ClusterBlock(MachineBlock):
    """Where one cluster lives on its controller's machine."""

    host: str
    door_port: int
    controller_port: int

    @property
    def postgres_dir(self) -> Path:
        """PGDATA of the embedded PostgreSQL."""
        return self.data_dir / "postgres"

    @property
    def postgres_socket_dir(self) -> Path:
        """0700 directory of PostgreSQL's unix socket."""
        return self.runtime_dir / "pg"

    @property
    def control_socket(self) -> Path:
        """Unix socket of the controller's gRPC services."""
        return self.runtime_dir / "control.sock"

    @property
    def ray_dir(self) -> Path:
        """Ray's temporary folder."""
        return self.runtime_dir / "ray"

    @property
    def door_dir(self) -> Path:
        """The front door's last copy of the route table."""
        return self.data_dir / "door"

    @property
    def file(self) -> Path:
        """Where this block is recorded."""
        return self.data_dir / "cluster.json"

    @property
    def controller_url(self) -> str:
        """Base URL of the admin API."""
        return f"http://{self.host}:{self.controller_port}"

    @property
    def openai_base_url(self) -> str:
        """Base URL for OpenAI clients."""
        return f"http://{self.host}:{self.door_port}/v1"

    def secret_file(self, name: str) -> Path:
        """Return the 0600 file of one secret (`SECRETS` names them)."""
        return self.data_dir / "secrets" / name


# Offsets inside the block. Engines take 40 to 99.
PORTS: Mapping[str, int] = {
    "ray_gcs": 0,
    "ray_node_manager": 1,
    "ray_object_manager": 2,
    "ray_dashboard": 3,
    "ray_dashboard_agent": 4,
    "ray_runtime_env_agent": 5,
    "ray_metrics_export": 6,
    "serve_haproxy_stats": 7,
    "serve_haproxy_metrics": 8,
    "serve_fallback_http": 9,
    "serve_fallback_grpc": 10,
    "ray_dashboard_agent_grpc": 11,
    "ray_client": 12,
    "serve_replica_http_first": 14,
    "serve_replica_http_last": 21,
    "serve_replica_grpc_first": 22,
    "serve_replica_grpc_last": 29,
    "plane": 30,
    "engine_first": 40,
    "engine_last": 99,
}


def runtime_dir_of(data_dir: Path, environment: Mapping[str, str]) -> Path:
    """Return the short runtime directory of a data directory: keyed by a hash of its resolved path.

    Below SLICE_RUNTIME_DIR, else /tmp; not below XDG_RUNTIME_DIR, which vanishes when its user logs out while the
    cluster serves on.

    Raises:
        Failure: `cluster.path_too_long` when socket paths below it would be too long for the kernel.
    """
    key = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:10]
    base = environment.get("SLICE_RUNTIME_DIR") or "/tmp"  # noqa: S108 - made 0700, its owner checked
    chosen = Path(base) / f"slice-{key}"
    if len(str(chosen)) > _RUNTIME_DIR_MAX:
        raise Failure(
            "cluster.path_too_long",
            f"{chosen} is too long: unix sockets below it would pass 107 bytes",
            hint="set SLICE_RUNTIME_DIR to a shorter directory, e.g. /run/slice",
        )
    return chosen


def make_private_dir(path: Path) -> None:
    """Make `path` (parents too) and hold it at mode 0700.

    Raises:
        Failure: `cluster.data_dir_unusable` when it cannot be made, is a link, or belongs to somebody else.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        facts = path.lstat()
        if stat.S_ISLNK(facts.st_mode) or not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
            raise Failure(
                "cluster.data_dir_unusable",
                f"{path} is a link, no directory, or belongs to another user",
                hint="remove it or choose another directory",
            )
        path.chmod(0o700)
    except OSError as error:
        raise Failure(
            "cluster.data_dir_unusable",
            f"{path} cannot be used: {error.strerror}",
            hint="choose a writable directory with --data-dir",
        ) from error


def write_private(path: Path, text: str) -> None:
    """Write `text` to `path` at mode 0600, whole or not at all (temporary file, fsync, rename)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


BlockT = TypeVar("BlockT", bound=MachineBlock)


def save(block: MachineBlock) -> None:
    """Record `block` in its data directory."""
    values = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(block).items()}
    write_private(block.file, json.dumps({"format": BLOCK_FORMAT, **values}, indent=2) + "\n")


def load(data_dir: Path) -> ClusterBlock | None:
    """Return the block recorded in `data_dir`, or None when there is none.

    Raises:
        Failure: `cluster.data_dir_unusable` when it is unreadable, damaged or of a newer release.
    """
    return block_in(data_dir / "cluster.json", ClusterBlock)


def is_moved(data_dir: Path) -> bool:
    """Return whether the directory's cluster was last started somewhere else: what it records runs there, if at all.

    Raises:
        Failure: `cluster.data_dir_unusable`.
    """
    return is_file_moved(data_dir / "cluster.json")


def block_in(file: Path, kind: type[BlockT]) -> BlockT | None:
    """Return the block of `kind` that `file` records, or None when there is no such file.

    A directory that was copied or moved since is a machine of its own: its runtime directory is that of its new place.

    Raises:
        Failure: `cluster.data_dir_unusable` when it is unreadable, damaged or of a newer release.
    """
    values = _values(file)
    if values is None:
        return None
    here = file.parent.resolve()
    try:
        is_newer = values.pop("format") != BLOCK_FORMAT
        recorded, runtime_dir = Path(values.pop("data_dir")), Path(values.pop("runtime_dir"))
        if recorded != here:
            runtime_dir = runtime_dir_of(here, process_environment())
        if not is_newer:
            return kind(**values, data_dir=here, runtime_dir=runtime_dir)
    except (KeyError, TypeError) as error:
        raise _damaged(file) from error
    raise Failure(
        "cluster.data_dir_unusable",
        f"{file} was written by a newer release",
        hint="use that release, or another --data-dir",
    )


def is_file_moved(file: Path) -> bool:
    """Return whether the directory of a recorded block lay somewhere else when that was written.

    Raises:
        Failure: `cluster.data_dir_unusable`.
    """
    values = _values(file)
    return values is not None and values.get("data_dir") != str(file.parent.resolve())


def _values(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _damaged(file) from error
    if not isinstance(found, dict):
        raise _damaged(file)
    return found


def _damaged(file: Path) -> Failure:
    return Failure(
        "cluster.data_dir_unusable",
        f"{file} cannot be read or is damaged",
        hint="restore it from a backup, or choose another --data-dir",
    )


def read_secret(block: ClusterBlock, name: str) -> str:
    """Return the text of one secret of the cluster.

    Raises:
        Failure: `cluster.not_running` when it was never made.
    """
    try:
        return block.secret_file(name).read_text().strip()
    except OSError as error:
        raise Failure(
            "cluster.not_running", f"{block.secret_file(name)} cannot be read", hint="run `slice up` first"
        ) from error


def own_node_id(block: MachineBlock) -> str:
    """Return the id that this machine's node agent has given itself, "" before its first start."""
    try:
        return str(json.loads((block.node_dir / "identity.json").read_text())["node_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
