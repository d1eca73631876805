"""Engines as installed programs: one virtual environment for each engine and version.

Comes in: an engine's name and version. Goes out: the interpreter of its environment. Called by `node_agent.runner`.
An environment without its marker file was interrupted and is made anew; one with it is never touched again.
"""

import asyncio
import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters.contract import Adapter, Binary, InstallPlan
from core.errors import Failure
from core.infra import cluster
from core.infra.logs import Log
from core.infra.tasks import TaskGuard
from node_agent.subprocesses import Children

_MARKER = "slice-engine.json"
_INSTALL_DEADLINE_S = 3600.0  # several GB of CUDA libraries over a slow line
_PROBE_DEADLINE_S = 300.0  # a first import compiles byte code and loads CUDA
_PATH_WORD = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._+!-]{0,127}$")


@dataclass(frozen=True, kw_only=True)
class Installed:
    """What runs an engine here: absolute paths; `executable` is "" for an engine without a binary of its own."""

    python: str
    executable: str = ""


class EngineHouse:
    """Makes environments, one at a time for each engine and version, however many ask."""

    def __init__(
        self,
        *,
        root: Path,
        adapter: Callable[[str], Adapter],
        wheel_dir: str,
        environment: Mapping[str, str],
        children: Children,
        guard: TaskGuard,
        log: Log,
    ) -> None:
        self._root = root
        self._adapter = adapter
        self._wheel_dir = wheel_dir
        self._environment = environment
        self._children = children
        self._guard = guard
        self._log = log
        self._installs: dict[tuple[str, str], asyncio.Task[Installed | Failure]] = {}

    async def ensure(self, engine: str, version: str) -> Installed:
        """Return what runs `engine` at `version`, installed if need be.

        Raises:
            Failure: `engine.unknown`, `engine.not_installed`, `engine.install_failed`, or `disk.full`.
        """
        plan = self._adapter(engine).install_plan(version)
        if plan.binary is not None:
            return Installed(
                python=sys.executable, executable=await asyncio.to_thread(self._found, engine, plan.binary)
            )
        if not plan.requirements:
            return Installed(python=sys.executable)
        if not _PATH_WORD.match(engine) or not _PATH_WORD.match(version):
            raise Failure("request.invalid_field", f"{engine} {version!r} names no version", param="engine_version")
        key = (engine, version)
        if key not in self._installs:
            task = self._guard.brief(f"install {engine} {version}", self._install(engine, version, plan))
            self._installs[key] = task
            task.add_done_callback(lambda done: self._installs.pop(key, None))
        # Shielded: who stops waiting must not take the environment from the others.
        outcome = await asyncio.shield(self._installs[key])
        if isinstance(outcome, Failure):
            raise outcome
        return outcome

    def _found(self, engine: str, binary: Binary) -> str:
        found = shutil.which(binary.executable, path=self._environment.get("PATH"))
        if found is None:
            raise Failure(
                "engine.not_installed",
                f"there is no program {binary.executable!r} on this node's PATH",
                hint=f"install {engine} on the node, or `slice engine install {engine}@VERSION --from SOURCE`",
            )
        return str(Path(found).resolve())

    def installed(self, adapter: Adapter) -> tuple[str, ...]:
        """Return the versions of an engine that are ready here. Blocks."""
        if not adapter.install_plan(adapter.default_version).requirements:
            return (adapter.default_version,)
        return tuple(sorted(marker.parent.name for marker in self._root.glob(f"{adapter.name}/*/{_MARKER}")))

    async def _install(self, engine: str, version: str, plan: InstallPlan) -> Installed | Failure:
        place = self._root / engine / version
        python = place / "bin" / "python"
        if (place / _MARKER).exists():
            return Installed(python=str(python))
        self._log.info("engine_install_begun", engine=engine, version=version)
        try:
            async with asyncio.timeout(_INSTALL_DEADLINE_S):
                await self._make(place, python, plan)
        except TimeoutError:
            return Failure(
                "engine.install_failed",
                f"installing {engine} {version} took longer than {_INSTALL_DEADLINE_S / 60:.0f} minutes",
                hint="check the network, or set wheel_dir to a directory of wheels",
            )
        except Failure as failure:
            return failure
        except OSError as error:
            return Failure("engine.install_failed", f"{engine} {version} cannot be installed: {error.strerror}")
        self._log.info("engine_installed", engine=engine, version=version)
        return Installed(python=str(python))

    async def _make(self, place: Path, python: Path, plan: InstallPlan) -> None:
        # Made in its final place, because console scripts hold their environment's absolute path; the marker, written
        # last, is what makes it an installed engine.
        await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
        await asyncio.to_thread(cluster.make_private_dir, place.parent)
        await self._step("the virtual environment", (sys.executable, "-m", "venv", "--without-pip", str(place)))
        links = ("--find-links", self._wheel_dir) if self._wheel_dir else ()
        await self._step(
            f"{', '.join(plan.requirements)}",
            (
                *(sys.executable, "-m", "pip", "--python", str(python), "install", "--no-input", "--prefer-binary"),
                *("--disable-pip-version-check", "--progress-bar", "off", *links, *plan.requirements),
            ),
        )
        if plan.probe:
            async with asyncio.timeout(_PROBE_DEADLINE_S):
                await self._step("the import check", (str(python), "-I", "-c", plan.probe))
        marker = json.dumps({"requirements": list(plan.requirements)})
        await asyncio.to_thread(cluster.write_private, place / _MARKER, marker)

    async def _step(self, what: str, argv: tuple[str, ...]) -> None:
        done = await self._children.run(argv, environment=self._environment)
        if done.code == 0:
            return
        self._log.warning("engine_install_failed", step=what, output=done.output[-4000:])
        if "No space left" in done.output:
            raise Failure("disk.full", "the disk filled up while an engine was installed", hint="free some space")
        raise Failure(
            "engine.install_failed",
            f"{what} could not be installed",
            hint="check the network and pip's configuration; the node agent's log has pip's words",
        )
