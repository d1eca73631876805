"""The systemd units: what systemd's own checker says of them, and a node at work under its system call filter."""

import ctypes.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.joining.desk import Desk, serving
from tests.joining.machine import a_machine
from tests.node_agent.nodes import desired, want
from tests.waiting import until_async

ROOT = Path(__file__).parents[2]
UNITS = tuple(sorted((ROOT / "deploy" / "systemd").glob("*.service")))
needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@needs_analyze
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_has_no_complaint(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/slice/bin/slice", shutil.which("true") or "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")


@needs_analyze
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_exposure_stays_low(unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-300:]


@needs_analyze
@pytest.mark.skipif(ctypes.util.find_library("seccomp") is None, reason="libseccomp is not installed")
async def test_a_node_works_under_the_units_system_call_filter() -> None:
    unit = ROOT / "deploy" / "systemd" / "slice-node.service"
    async with a_machine() as machine, serving(Desk()) as served:
        await machine.slice("node", "join", served.line(), "--no-start")
        assert served.controller.hellos == []
        assert machine.leftovers() == []
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.joining.filtered", unit, sys.executable, "-m", "cli", "up", "--foreground"],
            env=machine.environment(),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            await until_async(lambda: _true(served.controller.hellos), 30.0, "the session")
            status = Path(f"/proc/{_pid(machine.block.parts_dir)}/status").read_text()
            assert "Seccomp:\t2" in status, "the filter reaches the node agent"
            await served.controller.want(desired(1, want()))

            async def is_ready() -> bool:
                report = served.controller.replica("rep_one")
                return report is not None and report.state == "ready"

            await until_async(is_ready, 30.0, "the engine")
            await machine.slice("down")
            assert process.wait(30) == 0
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(30)


def _pid(parts_dir: Path) -> int:
    return int(json.loads((parts_dir / "node_agent.json").read_text())["pid"])


async def _true(is_so: object) -> object:
    return is_so
