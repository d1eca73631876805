"""Short-lived programs: what is noted of them, and what a sweep ends."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from core.errors import Failure
from core.infra import processes
from node_agent import killing
from node_agent.subprocesses import Children
from tests.node_agent import trees

# A program with a child in its session: it notes both and waits, as pip does for the programs that it starts.
FAMILY = """
import os, signal, sys
name = "child" if os.fork() == 0 else "leader"
with open(os.path.join(sys.argv[1], name), "w") as stream:
    stream.write(str(os.getpid()))
signal.pause()
"""
OWNER = """
import asyncio, sys
from pathlib import Path
from node_agent.subprocesses import Children
children = Children(Path(sys.argv[1]) / "children")
asyncio.run(children.run((sys.executable, "-I", "-S", "-c", sys.argv[2], sys.argv[1]), environment={}))
"""


def notes(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "children").glob("*"))


async def test_a_program_is_noted_while_it_runs_and_knows_nothing_of_its_gate(tmp_path: Path) -> None:
    noted: list[str] = []

    def heard(line: str) -> None:
        noted.extend(note.read_text() for note in notes(tmp_path))

    program = """
import os, sys
# Fields 1 and 22 of proc(5): the pid, and the start time in clock ticks.
fields = open("/proc/self/stat").read().split()
print(fields[0], fields[21], len(sys.stdin.read()))
sys.exit(3)
"""
    done = await Children(tmp_path / "children").run(
        (sys.executable, "-I", "-S", "-c", program), environment={}, on_line=heard
    )
    values = json.loads(noted[0])
    assert (done.code, len(noted)) == (3, 1)
    assert done.output == f"{values['pid']} {values['start_ticks']} 0\n"
    assert values["boot_id"] == killing.boot_id()
    assert notes(tmp_path) == []


async def test_a_cancelled_program_is_killed_with_its_children_and_its_note_removed(tmp_path: Path) -> None:
    running = asyncio.ensure_future(
        Children(tmp_path / "children").run((sys.executable, "-c", FAMILY, str(tmp_path)), environment={})
    )
    pids = [await trees.until(lambda name=name: trees.pid_in(tmp_path / name)) for name in ("leader", "child")]
    running.cancel()
    await asyncio.wait({running})
    await trees.until(lambda: all(trees.is_gone(pid) for pid in pids))
    assert notes(tmp_path) == []


async def test_a_program_that_cannot_be_noted_never_begins(tmp_path: Path) -> None:
    (tmp_path / "children").write_text("no directory")
    with pytest.raises(Failure, match="cannot be used"):
        await Children(tmp_path / "children").run(("/bin/sh", "-c", f"echo > {tmp_path}/begun"), environment={})
    assert not (tmp_path / "begun").exists()


async def test_a_program_that_is_not_there_ends_with_its_code(tmp_path: Path) -> None:
    assert (await Children(tmp_path / "children").run(("/no/such/program",), environment={})).code == 127


@pytest.mark.parametrize("is_leader_gone", [False, True], ids=["leader lives", "leader gone"])
async def test_a_sweep_ends_what_a_killed_owner_left(tmp_path: Path, *, is_leader_gone: bool) -> None:
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", OWNER, str(tmp_path), FAMILY)
    pids = [await trees.until(lambda name=name: trees.pid_in(tmp_path / name)) for name in ("leader", "child")]
    owner.kill()
    await owner.wait()
    if is_leader_gone:
        os.kill(pids[0], signal.SIGKILL)
        await trees.until(lambda: trees.is_gone(pids[0]))
    assert not trees.is_gone(pids[1])
    assert await Children(tmp_path / "children").sweep() == (1 if is_leader_gone else 2)
    assert all(trees.is_gone(pid) for pid in pids)
    assert notes(tmp_path) == []


@pytest.mark.parametrize(
    "change", [{"boot_id": "another"}, {"start_ticks": 1}, None], ids=["boot", "process", "damage"]
)
async def test_a_sweep_leaves_strangers_alone(tmp_path: Path, change: dict[str, object] | None) -> None:
    stranger = await asyncio.create_subprocess_exec("/bin/sh", "-c", "read -r word", stdin=-1, start_new_session=True)
    try:
        mark = processes.mark(stranger.pid)
        assert mark is not None
        note = tmp_path / "children" / f"{stranger.pid}.json"
        note.parent.mkdir()
        values = {"pid": mark.pid, "start_ticks": mark.start_ticks, "boot_id": killing.boot_id()}
        note.write_text("{" if change is None else json.dumps({**values, **change}))
        assert await Children(note.parent).sweep() == 0
        assert processes.is_alive(mark)
        assert notes(tmp_path) == []
    finally:
        stranger.kill()
        await stranger.wait()
