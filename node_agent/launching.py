"""From a wanted replica to the shim that runs its engine: argv, environment, files.

Comes in: a `ReplicaWant`, the adapter's description, a port. Goes out: a `ShimSpec` and the files to write before it is
started. Called by `node_agent.runner`. What an engine's environment holds is chosen here and nowhere else.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from adapters.contract import Adapter, LaunchRequest, ModelFile, Settings
from core.devices import CPU_DEVICE
from core.errors import Failure
from core.ids import DeviceId, ReplicaId
from core.infra import cluster
from node_agent.engines import Installed
from node_agent.ports import HOST
from node_agent.shim_client import ShimSpec
from protos.slice.node.v1 import node_pb2

_ALLOWED = frozenset({"PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH"})
_ALLOWED_PREFIXES = ("CUDA_",)
_FOR_INSTALLERS = frozenset(
    {
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "XDG_CONFIG_HOME",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "all_proxy",
    }
)
_LOG_MAX_BYTES = 16 * 1024**2


def engine_base_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the part of our environment that an engine may see: no token is ever in it."""
    return {
        name: value for name, value in environment.items() if name in _ALLOWED or name.startswith(_ALLOWED_PREFIXES)
    }


def installer_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of pip and venv: the engines', with pip's own settings, proxies and certificates."""
    extra = {name: value for name, value in environment.items() if name in _FOR_INSTALLERS or name.startswith("PIP_")}
    return {**engine_base_environment(environment), **extra}


def device_environment(devices: Sequence[DeviceId]) -> dict[str, str]:
    """Return what makes an engine see the promised GPUs and no other; the empty list hides them all."""
    gpus = [device for device in devices if device != CPU_DEVICE]
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(gpus)}


def settings_of(want: node_pb2.ReplicaWant) -> Settings:
    """Return the replica's settings.

    Raises:
        Failure: `request.invalid_json`.
    """
    try:
        settings = json.loads(want.settings_json or "{}")
    except ValueError as error:
        raise Failure("request.invalid_json", f"the settings of {want.replica_id} are no JSON") from error
    if not isinstance(settings, dict):
        raise Failure("request.invalid_json", f"the settings of {want.replica_id} are no JSON object")
    return settings


@dataclass(frozen=True, kw_only=True)
class Started:
    """`launch.json`: what the next node agent must know to adopt the engine. `load_s` is 0 until it was ready."""

    incarnation: int
    port: int
    boot_id: str
    spawned_at: float
    load_s: float = 0.0


def save_started(replica_dir: Path, started: Started) -> None:
    """Write `launch.json`."""
    cluster.write_private(replica_dir / "launch.json", json.dumps(asdict(started)) + "\n")


def load_started(replica_dir: Path) -> Started | None:
    """Return what `save_started` wrote, or None."""
    try:
        return Started(**json.loads((replica_dir / "launch.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A shim to be and what must be in its work directory before: texts, and hard links to absolute paths."""

    spec: ShimSpec
    work_dir: Path
    files: Mapping[str, str]
    links: Mapping[str, str]


def model_path(files: Sequence[ModelFile], model_dir: Path) -> str:
    """Return what an engine is pointed at: the file itself, a first GGUF file in `model_dir`, or `model_dir`.

    1. No file: nothing.
    2. One file that is no safetensors, so GGUF, whatever its name: its place in the store.
    3. A GGUF file in parts, or with company: the first one's link, since an engine finds the others beside it.
    4. Anything else: the directory of links.
    """
    if not files:
        return ""
    is_file = is_one_file([file.path for file in files])
    if is_file and len(files) == 1:
        return files[0].stored_at
    return str(model_dir / files[0].path) if is_file else str(model_dir)


def is_one_file(paths: Sequence[str]) -> bool:
    """Return whether an engine is pointed at the first of a version's files rather than at their folder.

    A GGUF file is known by its first bytes when it is pulled: alone it may have any name, or none in a release that
    had GGUF only.
    """
    first = paths[0].lower()
    return first.endswith(".gguf") or (len(paths) == 1 and not first.endswith(".safetensors"))


def link_model(files: Sequence[ModelFile], model_dir: Path) -> None:
    """Make `model_dir` hold the version's files under their own names, as hard links into the store. Blocks.

    Raises:
        Failure: `request.invalid_field` for a path that leads outside, `cluster.data_dir_unusable`.
        OSError: a link cannot be made.
    """
    shutil.rmtree(model_dir, ignore_errors=True)
    if len(files) > 1 or (files and not is_one_file([files[0].path])):
        make_links({file.path: file.stored_at for file in files}, model_dir)


def request_of(
    *,
    want: node_pb2.ReplicaWant,
    installed: Installed,
    files: Sequence[ModelFile],
    port: int,
    replica_dir: Path,
) -> LaunchRequest:
    """Return what the adapter is told of one spawn of `want`.

    Raises:
        Failure: `request.invalid_json`.
    """
    return LaunchRequest(
        replica_id=ReplicaId(want.replica_id),
        engine_version=want.engine_version,
        python=installed.python,
        executable=installed.executable,
        model_path=model_path(files, replica_dir / "model"),
        files=tuple(files),
        served_name=want.served_name,
        settings=settings_of(want),
        devices=tuple(DeviceId(promise.device_id) for promise in want.devices),
        host=HOST,
        port=port,
        api_key=want.engine_key,
        work_dir=str(replica_dir / "work"),
    )


def prepare(
    *,
    want: node_pb2.ReplicaWant,
    adapter: Adapter,
    request: LaunchRequest,
    incarnation: int,
    replica_dir: Path,
    socket_path: Path,
    environment: Mapping[str, str],
) -> Prepared:
    """Return what to write and start for one spawn of `want`.

    Raises:
        Failure: from the adapter.
    """
    devices = request.devices
    work_dir = Path(request.work_dir)
    launch = adapter.launch(request)
    spec = ShimSpec(
        shim_id=want.replica_id,
        argv=launch.argv,
        env={**engine_base_environment(environment), **launch.env, **device_environment(devices)},
        cwd=work_dir,
        log_path=replica_dir / "engine.log",
        record_dir=replica_dir,
        socket_path=socket_path,
        incarnation=incarnation,
        stop_grace_s=adapter.health.stop_grace_s,
        log_max_bytes=_LOG_MAX_BYTES,
    )
    return Prepared(spec=spec, work_dir=work_dir, files=launch.files, links=launch.links)


def write_files(prepared: Prepared) -> None:
    """Make an empty work directory with the launch's links and files, the latter 0600. Blocks.

    Raises:
        Failure: `cluster.data_dir_unusable`; `request.invalid_field` for a file outside the directory.
        OSError: a link cannot be made.
    """
    shutil.rmtree(prepared.work_dir, ignore_errors=True)
    cluster.make_private_dir(prepared.work_dir)
    make_links(prepared.links, prepared.work_dir)
    for name, text in prepared.files.items():
        file = _inside(prepared.work_dir, name)
        cluster.make_private_dir(file.parent)
        cluster.write_private(file, text)


def make_links(links: Mapping[str, str], directory: Path) -> None:
    """Make hard links in `directory`, by names relative to it, to absolute paths. Blocks.

    Raises:
        Failure: `request.invalid_field` for a name that leads outside, `cluster.data_dir_unusable`.
        OSError: a link cannot be made.
    """
    for name, target in links.items():
        place = _inside(directory, name)
        cluster.make_private_dir(place.parent)
        place.hardlink_to(target)


def _inside(directory: Path, name: str) -> Path:
    place = directory / name
    if not name or not place.resolve().is_relative_to(directory.resolve()):
        raise Failure("request.invalid_field", f"{name!r} lies outside the replica's directory")
    return place
