"""Engines' environments: real venv and pip, with a wheel of our own."""

import asyncio
import contextlib
import io
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adapters.contract import InstallPlan
from adapters.fake.adapter import Fake
from core.errors import Failure
from core.infra.clock import SystemClock
from core.infra.logs import Log
from core.infra.tasks import TaskGuard
from node_agent.engines import EngineHouse, Installed
from node_agent.subprocesses import Children
from tests.node_agent import wheels


class Demo(Fake):
    """An engine that needs one wheel."""

    probe = "import demo_model"

    @property
    def name(self) -> str:
        return "demo"

    @property
    def default_version(self) -> str:
        return "1.0"

    def install_plan(self, version: str) -> InstallPlan:
        return InstallPlan(requirements=(f"demo-model=={version}",), probe=self.probe)


@contextlib.asynccontextmanager
async def house(tmp_path: Path, adapter: Fake) -> AsyncIterator[EngineHouse]:
    log = Log("test", SystemClock(), io.StringIO())
    async with TaskGuard(log) as guard:
        yield EngineHouse(
            root=tmp_path / "engines",
            adapter=lambda name: adapter,
            wheel_dir=str(tmp_path / "wheels"),
            environment={"PATH": os.environ["PATH"], "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull},
            children=Children(tmp_path / "children"),
            guard=guard,
            log=log,
        )


async def test_an_engine_without_requirements_runs_in_our_own_interpreter(tmp_path: Path) -> None:
    async with house(tmp_path, Fake()) as engines:
        assert (await engines.ensure("fake", "1")).python == sys.executable
        assert engines.installed(Fake()) == ("1",)


async def test_those_who_ask_together_share_one_install(tmp_path: Path) -> None:
    wheels.wheel(tmp_path / "wheels", b"", "demo_model/__init__.py")
    async with house(tmp_path, Demo()) as engines:
        first, second = await asyncio.gather(engines.ensure("demo", "1.0"), engines.ensure("demo", "1.0"))
        assert first == second == Installed(python=str(tmp_path / "engines/demo/1.0/bin/python"))
        assert engines.installed(Demo()) == ("1.0",)
        process = await asyncio.create_subprocess_exec(first.python, "-I", "-c", "import demo_model")
        assert await process.wait() == 0
    (tmp_path / "wheels" / "demo_model-1.0-py3-none-any.whl").unlink()
    async with house(tmp_path, Demo()) as later:
        assert await later.ensure("demo", "1.0") == first


async def test_an_interrupted_install_is_made_anew(tmp_path: Path) -> None:
    wheels.wheel(tmp_path / "wheels", b"", "demo_model/__init__.py")
    half = tmp_path / "engines/demo/1.0"
    half.mkdir(parents=True)
    (half / "rubbish").touch()
    async with house(tmp_path, Demo()) as engines:
        assert engines.installed(Demo()) == ()
        await engines.ensure("demo", "1.0")
        assert not (half / "rubbish").exists()


async def test_an_engine_that_does_not_import_is_not_installed(tmp_path: Path) -> None:
    wheels.wheel(tmp_path / "wheels", b"", "other/__init__.py")
    async with house(tmp_path, Demo()) as engines:
        with pytest.raises(Failure, match="import check") as caught:
            await engines.ensure("demo", "1.0")
        assert caught.value.code == "engine.install_failed"
        assert engines.installed(Demo()) == ()


async def test_a_version_that_is_no_plain_word_is_refused(tmp_path: Path) -> None:
    async with house(tmp_path, Demo()) as engines:
        with pytest.raises(Failure, match="names no version"):
            await engines.ensure("demo", "../../1.0")
