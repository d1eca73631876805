"""An engine house over a temporary directory, and engines made for tests."""

import contextlib
import io
import os
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from adapters.contract import Binary, InstallPlan
from adapters.fake.adapter import Fake
from core.infra.clock import SystemClock
from core.infra.logs import Log
from core.infra.tasks import TaskGuard
from core.states import InstallState
from node_agent.engines.house import EngineHouse
from node_agent.engines.orders import EngineOrder, Install
from node_agent.subprocesses import Children
from tests import waiting


class Demo(Fake):
    """An engine that needs one wheel of ours."""

    def __init__(self, *, probe: str = "import demo_model", lock: str = "", removed: tuple[str, ...] = ()) -> None:
        self.probe, self.lock, self.removed = probe, lock, removed

    @property
    def name(self) -> str:
        return "demo"

    @property
    def default_version(self) -> str:
        return "1.0"

    @property
    def versions(self) -> tuple[str, ...]:
        return ("1.0",)

    def install_plan(self, version: str) -> InstallPlan:
        return InstallPlan(
            requirements=(f"demo-model=={version}",), probe=self.probe, lock=self.lock, removed=self.removed
        )


class Program(Fake):
    """An engine that is a program, `demoserve`, which says its version with `--version`."""

    @property
    def name(self) -> str:
        return "demo"

    @property
    def default_version(self) -> str:
        return "2.0"

    @property
    def versions(self) -> tuple[str, ...]:
        return ("2.0",)

    def install_plan(self, version: str) -> InstallPlan:
        return InstallPlan(requirements=(), binary=Binary(executable="demoserve"))


def script(path: Path, version: str) -> Path:
    """Write a program that says `version`, and notes in `<path>.asked` that it was asked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\necho x >> "{path}.asked"\necho "demoserve version {version} (build 7)"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@contextlib.asynccontextmanager
async def house(
    tmp_path: Path,
    adapter: Fake,
    *,
    changed: Callable[[], None] = lambda: None,
    first_retry_s: float = 0.05,
    **environment: str,
) -> AsyncIterator[EngineHouse]:
    """Open the house of `tmp_path`, which knows `adapter` alone and asks no package index."""
    log = Log("test", SystemClock(), io.StringIO())
    async with TaskGuard(log) as guard:
        yield EngineHouse(
            root=tmp_path / "engines",
            adapter=lambda name: adapter,
            wheel_dir=str(tmp_path / "wheels"),
            environment={
                "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                "PIP_NO_INDEX": "1",
                "PIP_CONFIG_FILE": os.devnull,
                **environment,
            },
            children=Children(tmp_path / "children"),
            guard=guard,
            log=log,
            changed=changed,
            first_retry_s=first_retry_s,
        )


def order(version: str = "1.0", **fields: object) -> EngineOrder:
    """Return a wish for a version of `demo`."""
    return EngineOrder(**{"engine": "demo", "version": version, **fields})


def nobody(engine: str, version: str) -> tuple[str, ...]:
    """Say that no replica uses anything."""
    return ()


async def told(engines: EngineHouse, adapter: Fake, version: str = "1.0") -> Install | None:
    """Return how a version stands."""
    survey = await engines.survey((adapter,))
    return next((one for one in survey.installs["demo"] if one.version == version), None)


async def until_state(engines: EngineHouse, adapter: Fake, state: InstallState, version: str = "1.0") -> Install:
    """Wait until a version is in `state` and return it."""
    found: list[Install] = []

    async def look() -> bool:
        one = await told(engines, adapter, version)
        found[:] = [one] if one is not None and one.state is state else []
        return bool(found)

    await waiting.until_async(look, 30.0)
    return found[0]
