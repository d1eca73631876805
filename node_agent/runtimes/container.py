"""An engine in a container: a process of this node still, since a keeper runs it under the shim.

Comes in: a replica's seat with an image. Goes out: what `process` gives, with another way to start. The model lies
read-only at MODEL_MOUNT, the work directory at WORK_MOUNT; whatever is left at its end is removed by its name.
"""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from adapters.contract import MODEL_MOUNT, WORK_MOUNT, Containerised, ContainerSpec, LaunchRequest
from core.devices import CPU_DEVICE
from core.errors import Failure
from core.infra import cluster
from node_agent import launching
from node_agent.containers import argv
from node_agent.containers.argv import Place, Promise
from node_agent.containers.house import name_of
from node_agent.launching import Prepared
from node_agent.ports import HOST
from node_agent.replica import Bounds
from node_agent.runtimes.process import ProcessEngine
from node_agent.shim_client import ShimSpec

KEEPER = Path(__file__).parents[1] / "containers" / "keeper.py"
INSIDE_PORT = 8000
"""Where engines listen inside: each has a network of its own, so that it can be one number."""
_BASE = {"HOME": WORK_MOUNT, "TMPDIR": "/tmp"}  # noqa: S108 - the container's own
_STOP_MARGIN_S = 2.0  # what the container program itself needs to pass the word on
_LOG_MAX_BYTES = 16 * 1024**2


class ContainerEngine(ProcessEngine):
    """One engine in a container of podman or docker."""

    def bounds(self) -> Bounds:
        """Return the deadlines of a process, with room for the container program."""
        plain = super().bounds()
        return replace(plain, stop_grace_s=plain.stop_grace_s + _STOP_MARGIN_S)

    @property
    def _name(self) -> str:
        return name_of(self._around.containers.key, self._want.replica_id)

    async def install(self) -> None:
        """Check that the image is here.

        Raises:
            Failure: `container.unavailable`, `container.image_not_pinned`, `container.image_not_found`.
        """
        if "@sha256:" not in self._want.image:
            raise Failure("container.image_not_pinned", f"the image {self._want.image!r} has no digest")
        await self._around.containers.ensure_image(self._want.image)

    def _prepared(self, request: LaunchRequest, incarnation: int) -> Prepared:
        adapter = self._around.adapter(self._want.engine)
        if not isinstance(adapter, Containerised):
            raise Failure(
                "engine.runtime_unsupported",
                f"{adapter.name} cannot be run in a container",
                hint="deploy it with another runtime",
            )
        inside = adapter.container(self._inside(request))
        directory = self._seat.directory
        self._around.containers.host()
        self._kept = {
            "keeper.json": json.dumps(self._orders(inside), indent=1),
            "environment": environment_text({**launching.device_environment(request.devices), **_BASE, **inside.env}),
        }
        spec = ShimSpec(
            shim_id=self._want.replica_id,
            argv=(sys.executable, "-I", "-S", str(KEEPER), str(directory / "keeper" / "keeper.json")),
            env=self._around.containers.environment,
            cwd=directory,
            log_path=self._seat.log_path,
            record_dir=directory,
            socket_path=self._around.shim_dir / f"{self._want.replica_id}.sock",
            incarnation=incarnation,
            stop_grace_s=self.bounds().stop_grace_s,
            log_max_bytes=_LOG_MAX_BYTES,
        )
        return Prepared(spec=spec, work_dir=directory / "work", files=inside.files, links={})

    def _inside(self, request: LaunchRequest) -> LaunchRequest:
        """Return `request` as it looks from inside."""
        names = list(self._model_links())
        is_one_file = bool(names) and launching.is_one_file(names)
        path = (f"{MODEL_MOUNT}/{names[0]}" if is_one_file else MODEL_MOUNT) if names else ""
        return replace(
            request,
            python="python3",
            executable="",
            model_path=path,
            host=HOST,
            port=INSIDE_PORT,
            work_dir=WORK_MOUNT,
        )

    def _model_links(self) -> dict[str, str]:
        """Return the model's files by the names they have inside; one without a name is GGUF, see `launching`."""
        return {file.path or "model.gguf": file.stored_at for file in self._files}

    def _orders(self, inside: ContainerSpec) -> dict[str, object]:
        """Return what the keeper is told: the commands, and where to lead connections."""
        host, directory = self._around.containers.host(), self._seat.directory
        place = Place(
            name=self._name,
            replica_id=self._want.replica_id,
            node_key=self._around.containers.key,
            image=self._want.image,
            model_dir=directory / "model" if self._files else None,
            work_dir=directory / "work",
            env_file=directory / "keeper" / "environment",
        )
        promise = Promise(
            devices=self._request().devices,
            memory_bytes=sum(one.bytes for one in self._want.devices if one.device_id == CPU_DEVICE),
        )
        return {
            "name": place.name,
            "listen": [HOST, self._port],
            "inside_port": inside.port,
            "commands": {
                "create": argv.create(host, place, inside, promise, os.getuid(), os.getgid()),
                "start": argv.start(host, place.name),
                "leader": argv.leader(host, place.name),
                "log": argv.followed_log(host, place.name),
                "signal": argv.signalled(host, place.name),
                "wait": argv.waited(host, place.name),
                "remove": argv.removed(host, place.name),
            },
        }

    def _write(self, prepared: Prepared) -> None:
        """Make the two mounts and, beside them, what the keeper alone reads. Blocks."""
        directory = self._seat.directory
        model_dir = directory / "model"
        shutil.rmtree(model_dir, ignore_errors=True)
        if self._files:
            launching.make_links(self._model_links(), model_dir)
            _let_read(model_dir)
        launching.write_files(prepared)
        cluster.make_private_dir(directory / "keeper")
        for name, text in self._kept.items():
            cluster.write_private(directory / "keeper" / name, text)

    async def _left(self) -> None:
        """Remove the container, which outlives a killed keeper."""
        await self._around.containers.remove(self._name)


def environment_text(environment: dict[str, str]) -> str:
    """Return an `--env-file`: one NAME=VALUE a line, taken as it is.

    Raises:
        Failure: `request.invalid_field` for what would not be one line.
    """
    for name, value in environment.items():
        if not name or "=" in name or {"\n", "\r", "\x00"} & {*name, *value}:
            raise Failure("request.invalid_field", f"the environment's {name!r} does not fit on one line")
    return "".join(f"{name}={value}\n" for name, value in sorted(environment.items()))


def _let_read(model_dir: Path) -> None:
    """Let the container's root, who is nobody here, read the model: on this machine the directories above keep others
    out, all of them ours alone. The files are links into the store, whose mode lets everybody read, nobody write.
    """
    for path in (model_dir, *model_dir.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
