"""The command lines of podman and docker, as values: nothing is run here.

Comes in: the host, a replica's place, its promises, and what the adapter wants inside. Goes out: argv tuples. Called by
`node_agent.runtimes.container` and `node_agent.containers.house`. What a container may do is chosen here and nowhere
else: no network but its own loopback, a read-only root, no capability, no new privilege, the named devices and two
mounts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.contract import MODEL_MOUNT, WORK_MOUNT, ContainerSpec
from core.devices import CPU_DEVICE
from core.errors import Failure
from core.ids import DeviceId
from core.units import MIB
from node_agent.containers.host import ContainerHost, Program

REPLICA_LABEL, NODE_LABEL = "slice.replica", "slice.node"
"""Labels of our containers: whose they are, and which node agent may remove them."""

UID_BASE, UID_COUNT = 1_878_982_656, 65_536
"""The last block of the range that systemd sets aside for containers (524288 to 1879048191, systemd's UIDS-GIDS), where
no login and no subordinate range of a user begins: what root is outside for a container of a podman that runs as root.
"""
_MEMORY_MARGIN = 4
"""A container gets its promise and a quarter more, at least 256 MiB: past that it is ended, not its neighbours."""
_LEAST_MARGIN = 256 * MIB
_SCRATCH = "rw,nosuid,nodev,mode=1777,size=1g"
_SHARED_MEMORY = "1g"  # what tensor-parallel workers talk through; it counts against the limit


@dataclass(frozen=True, kw_only=True)
class Place:
    """One container to be: its name, its labels, and what of the host it sees."""

    name: str
    replica_id: str
    node_key: str
    image: str
    model_dir: Path | None
    work_dir: Path
    env_file: Path


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What placement gave: device ids, and the bytes of main memory (0 when none were promised)."""

    devices: Sequence[DeviceId]
    memory_bytes: int


def create(host: ContainerHost, place: Place, spec: ContainerSpec, promise: Promise, uid: int, gid: int) -> list[str]:
    """Return the command that makes the container; `uid` and `gid` are the node agent's own."""
    is_podman = host.program is Program.PODMAN
    words = [host.path, "create", "--name", place.name]
    words += ["--label", f"{REPLICA_LABEL}={place.replica_id}", "--label", f"{NODE_LABEL}={place.node_key}"]
    words += ["--pull", "never", "--network", "none", "--hostname", "engine"]
    words += ["--read-only", "--tmpfs", f"/tmp:{_SCRATCH}", "--shm-size", _SHARED_MEMORY]  # noqa: S108 - inside
    words += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    words += ["--ulimit", f"nofile={host.max_files}:{host.max_files}"]
    words += ["--ulimit", f"nproc={host.max_processes}:{host.max_processes}", "--ulimit", "core=0:0"]
    words += _limits(host, promise) + _identity(host, uid, gid)
    if is_podman:
        words += ["--read-only-tmpfs=false", "--no-hosts", "--log-driver", "passthrough"]
    for device in promise.devices:
        if device != CPU_DEVICE:
            words += ["--device", f"nvidia.com/gpu={device}"]  # Container Device Interface: that one, by its UUID
    words += _mounts(host, place)
    words += ["--workdir", WORK_MOUNT, "--env-file", str(place.env_file)]
    if spec.entrypoint:
        words += ["--entrypoint", spec.entrypoint]
    return [*words, place.image, *spec.argv]


def _limits(host: ContainerHost, promise: Promise) -> list[str]:
    if not host.has_limits:
        return []
    words = ["--pids-limit", str(host.max_processes)]
    if promise.memory_bytes > 0:
        most = promise.memory_bytes + max(promise.memory_bytes // _MEMORY_MARGIN, _LEAST_MARGIN)
        words += ["--memory", str(most), "--memory-swap", str(most)]
    return words


def _identity(host: ContainerHost, uid: int, gid: int) -> list[str]:
    """Return who the engine is.

    1. Rootless: its root is the node agent's own user outside, and nobody else.
    2. Podman as root: its root is a number that nobody has.
    3. Docker as root, which maps numbers for its whole daemon or not at all: the node agent's own number, with no
       capability.
    """
    if host.is_rootless:
        return ["--user", "0:0"]
    if host.program is Program.PODMAN:
        block = f"0:{UID_BASE}:{UID_COUNT}"
        return ["--uidmap", block, "--gidmap", block, "--user", "0:0"]
    return ["--user", f"{uid}:{gid}"]


def _mounts(host: ContainerHost, place: Place) -> list[str]:
    # podman gives the work directory to the container's root; docker's engine is its owner already.
    owned = ",U=true" if host.program is Program.PODMAN and not host.is_rootless else ""
    words = ["--mount", f"type=bind,src={_path(place.work_dir)},dst={WORK_MOUNT}{owned}"]
    if place.model_dir is not None:
        read_only = "ro=true" if host.program is Program.PODMAN else "readonly"
        words += ["--mount", f"type=bind,src={_path(place.model_dir)},dst={MODEL_MOUNT},{read_only}"]
    return words


def _path(path: Path) -> str:
    """Return `path` for a `--mount` value, where a comma would begin another option.

    Raises:
        Failure: `cluster.data_dir_unusable`.
    """
    if "," in str(path) or '"' in str(path):
        raise Failure(
            "cluster.data_dir_unusable",
            f"{path} has a comma or a quote, which no container can be given",
            hint="choose another --data-dir",
        )
    return str(path)


def start(host: ContainerHost, name: str) -> list[str]:
    """Return the command that starts a container and returns when it runs."""
    return [host.path, "start", name]


def leader(host: ContainerHost, name: str) -> list[str]:
    """Return the command that prints the pid, on this machine, of a running container's first process."""
    return [host.path, "inspect", "--format", "{{.State.Pid}}", name]


def followed_log(host: ContainerHost, name: str) -> list[str]:
    """Return the command that prints what the engine says; none where that reaches the shim's log by itself."""
    return [] if host.program is Program.PODMAN else [host.path, "logs", "--follow", name]


def signalled(host: ContainerHost, name: str) -> list[str]:
    """Return the command that asks a container's first process to end."""
    return [host.path, "kill", "--signal", "TERM", name]


def waited(host: ContainerHost, name: str) -> list[str]:
    """Return the command that prints the exit code of a container."""
    return [host.path, "wait", name]


def removed(host: ContainerHost, name: str) -> list[str]:
    """Return the command that ends and removes a container; one that is not there is no error that matters."""
    at_once = ["--time", "0"] if host.program is Program.PODMAN else []
    return [host.path, "rm", "--force", *at_once, "--volumes", name]


def identified(host: ContainerHost, name: str) -> list[str]:
    """Return the command that prints a container's id and the low-level runtime that runs it; it fails without one."""
    below = " {{.OCIRuntime}}" if host.program is Program.PODMAN else ""
    return [host.path, "container", "inspect", "--format", "{{.Id}}" + below, name]


def forgotten(runtime: str, container_id: str) -> list[str]:
    """Return the command by which a low-level runtime forgets a container that podman has removed."""
    return [runtime, "delete", "--force", container_id]


def ours(host: ContainerHost, node_key: str) -> list[str]:
    """Return the command that prints the names of this node's containers, dead ones included."""
    return [host.path, "ps", "--all", "--filter", f"label={NODE_LABEL}={node_key}", "--format", "{{.Names}}"]


def image_exists(host: ContainerHost, image: str) -> list[str]:
    """Return the command that succeeds when the image is on this machine."""
    return [host.path, "image", "inspect", "--format", "{{.Id}}", image]


def pulled(host: ContainerHost, image: str) -> list[str]:
    """Return the command that brings an image."""
    return [host.path, "pull", "--quiet", image]
