"""The shim with real process trees."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.errors import Failure
from core.infra import processes
from node_agent import shim, shim_client
from node_agent.shim_client import ShimHandle, ShimSpec
from tests.node_agent import trees


@pytest.fixture
async def started(tmp_path: Path) -> AsyncIterator[list[ShimHandle]]:
    handles: list[ShimHandle] = []
    yield handles
    for handle in handles:
        with contextlib.suppress(Failure):
            await handle.stop(0)
            await handle.release()
    await shim_client.sweep(tmp_path / "record")


async def run(spec: ShimSpec, started: list[ShimHandle]) -> ShimHandle:
    handle = await shim_client.start(spec, sys.executable)
    started.append(handle)
    return handle


async def test_a_shim_reports_its_running_engine(tmp_path: Path, started: list[ShimHandle]) -> None:
    handle = await run(trees.spec_of(tmp_path, trees.QUIET), started)
    await trees.until((tmp_path / "notes" / "up").exists)
    status = await handle.status()
    assert status.state == "running"
    assert status.leader is not None
    assert processes.is_alive(status.leader)
    assert os.getsid(status.leader.pid) == status.leader.pid
    assert stat.S_IMODE(handle.socket_path.stat().st_mode) == 0o600
    assert not (tmp_path / "record" / "spec.json").exists()


async def test_the_engine_gets_exactly_its_environment(tmp_path: Path, started: list[ShimHandle]) -> None:
    program = """
        import json, os, resource
        print(json.dumps([dict(os.environ), resource.getrlimit(resource.RLIMIT_CORE), os.listdir('/proc/self/fd')]))
    """
    spec = trees.spec_of(tmp_path, program)
    status = await (await run(spec, started)).wait_exit()
    assert (status.state, status.exit_code) == ("exited", 0)
    environment, core, handles = json.loads(spec.log_path.read_text())
    assert set(environment) - {"LC_CTYPE"} == {"PATH", "ONLY"}
    assert core == [0, 0]
    assert set(handles) <= {"0", "1", "2", "3"}


@pytest.mark.parametrize(
    ("program", "code", "number"),
    [("raise SystemExit(7)", 7, None), ("import os; os.kill(os.getpid(), 11)", None, 11)],
    ids=["code", "signal"],
)
async def test_an_exit_is_recorded_until_released(
    tmp_path: Path, started: list[ShimHandle], program: str, code: int | None, number: int | None
) -> None:
    spec = trees.spec_of(tmp_path, program)
    handle = await run(spec, started)
    status = await handle.wait_exit()
    assert (status.state, status.exit_code, status.exit_signal) == ("exited", code, number)
    await handle.stop(0)
    await handle.release()
    await trees.until(lambda: not spec.socket_path.exists())
    record = shim_client.read_record(spec.record_dir)
    assert record is not None
    assert record.status.exit_code == code
    assert record.status.is_tree_gone


async def test_a_missing_program_is_an_exit_with_a_reason(tmp_path: Path, started: list[ShimHandle]) -> None:
    spec = trees.spec_of(tmp_path, "")
    handle = await run(ShimSpec(**{**vars(spec), "argv": ("/no/such/engine",)}), started)
    status = await handle.wait_exit()
    assert status.spawn_error == "/no/such/engine: No such file or directory"
    assert (await handle.stop(0)).is_tree_gone


async def test_an_engine_that_ignores_sigterm_is_killed_after_its_grace(
    tmp_path: Path, started: list[ShimHandle]
) -> None:
    handle = await run(trees.spec_of(tmp_path, trees.IGNORES_SIGTERM), started)
    await trees.until((tmp_path / "notes" / "up").exists)
    status = await handle.stop(0.2)
    assert (status.state, status.exit_signal, status.is_tree_gone) == ("stopped", signal.SIGKILL, True)


async def test_a_tree_with_new_sessions_and_names_is_stopped_whole(tmp_path: Path, started: list[ShimHandle]) -> None:
    handle = await run(trees.spec_of(tmp_path, trees.HIDDEN_FAMILY), started)
    notes = tmp_path / "notes"
    pids = [await trees.until(lambda name=name: trees.pid_in(notes / name)) for name in ("up", "child", "grandchild")]
    await handle.stop(0.2)
    assert all(trees.is_gone(pid) for pid in pids)


async def test_a_killed_leader_takes_its_hidden_tree_with_it(tmp_path: Path, started: list[ShimHandle]) -> None:
    handle = await run(trees.spec_of(tmp_path, trees.HIDDEN_FAMILY), started)
    notes = tmp_path / "notes"
    pids = [await trees.until(lambda name=name: trees.pid_in(notes / name)) for name in ("up", "child", "grandchild")]
    os.kill(pids[0], signal.SIGKILL)
    status = await handle.wait_exit()
    assert status.exit_signal == signal.SIGKILL
    await trees.until(lambda: all(trees.is_gone(pid) for pid in pids))


async def test_a_middle_process_killed_hard_leaves_its_child_to_the_shim(
    tmp_path: Path, started: list[ShimHandle]
) -> None:
    handle = await run(trees.spec_of(tmp_path, trees.HIDDEN_FAMILY), started)
    notes = tmp_path / "notes"
    child, grandchild = [
        await trees.until(lambda name=name: trees.pid_in(notes / name)) for name in ("child", "grandchild")
    ]
    os.kill(child, signal.SIGKILL)
    await trees.until(lambda: trees.is_gone(child))
    assert (await handle.status()).state == "running"
    await handle.stop(0.1)
    assert trees.is_gone(grandchild)


@pytest.mark.parametrize("is_noted", [False, True], ids=["by ancestry", "by the noted family"])
async def test_a_sweep_leaves_nothing_of_a_tree_whose_shim_was_killed(
    tmp_path: Path, started: list[ShimHandle], *, is_noted: bool
) -> None:
    spec = trees.spec_of(tmp_path, trees.HIDDEN_FAMILY)
    handle = await run(spec, started)
    notes = tmp_path / "notes"
    pids = [await trees.until(lambda name=name: trees.pid_in(notes / name)) for name in ("up", "child", "grandchild")]
    status = await handle.status()
    assert status.shim is not None
    if is_noted:
        shim_client.note_family(spec.record_dir, processes.family(frozenset({status.shim.pid})))
    os.kill(status.shim.pid, signal.SIGKILL)
    await trees.until(lambda: status.shim is not None and trees.is_gone(status.shim.pid))
    if is_noted:  # without the leader only the note leads to the rest
        os.kill(pids[0], signal.SIGKILL)
        await trees.until(lambda: trees.is_gone(pids[0]))
    assert await shim_client.find(spec.record_dir) is None
    assert await shim_client.sweep(spec.record_dir) >= 2
    assert all(trees.is_gone(pid) for pid in pids)
    assert not spec.socket_path.exists()


async def test_waiting_on_a_shim_that_dies_says_so(tmp_path: Path, started: list[ShimHandle]) -> None:
    handle = await run(trees.spec_of(tmp_path, trees.QUIET), started)
    status = await handle.status()
    assert status.shim is not None
    waiting = asyncio.ensure_future(handle.wait_exit())
    await asyncio.sleep(0)
    os.kill(status.shim.pid, signal.SIGKILL)
    with pytest.raises(Failure, match="ended without an answer"):
        await waiting


async def test_a_shim_ignores_the_signals_of_others(tmp_path: Path, started: list[ShimHandle]) -> None:
    handle = await run(trees.spec_of(tmp_path, trees.QUIET), started)
    status = await handle.status()
    assert status.shim is not None
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        os.kill(status.shim.pid, number)
    assert (await handle.status()).state == "running"


async def test_a_second_shim_for_one_record_is_refused(tmp_path: Path, started: list[ShimHandle]) -> None:
    spec = trees.spec_of(tmp_path, trees.QUIET)
    handle = await run(spec, started)
    with pytest.raises(Failure, match="runs already"):
        await shim_client.start(spec, sys.executable)
    assert (await handle.status()).state == "running"


async def test_a_release_before_the_tree_is_gone_is_refused(tmp_path: Path, started: list[ShimHandle]) -> None:
    handle = await run(trees.spec_of(tmp_path, trees.QUIET), started)
    with pytest.raises(Failure, match="still lives"):
        await handle.release()


async def test_a_removed_socket_comes_back(tmp_path: Path, started: list[ShimHandle]) -> None:
    spec = trees.spec_of(tmp_path, trees.QUIET)
    await run(spec, started)
    spec.socket_path.unlink()
    found = await shim_client.find(spec.record_dir)
    assert found is not None
    assert (await found.status()).state == "running"


async def test_the_log_is_rotated_at_its_bound(tmp_path: Path, started: list[ShimHandle]) -> None:
    program = "import signal\nprint('x' * 5000, flush=True)\nwhile True: signal.pause()"
    spec = trees.spec_of(tmp_path, program, log_max_bytes=1000)
    await run(spec, started)
    await trees.until(lambda: spec.log_path.with_name("engine.log.1").exists() and spec.log_path.stat().st_size == 0)


def test_the_pieces_of_a_log_are_few_small_and_in_order(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    for number in range(6):
        log.write_text(f"lost {number}\n" * 50 + f"piece {number}".rjust(1000))
        shim.rotate(str(log), 1000, 3)
    assert log.stat().st_size == 0
    pieces = {path.name: path.read_text() for path in tmp_path.iterdir() if path != log}
    assert {name: text.strip() for name, text in pieces.items()} == {
        "engine.log.1": "piece 5",
        "engine.log.2": "piece 4",
        "engine.log.3": "piece 3",
    }
    assert all(len(text) == 1000 for text in pieces.values())
    assert stat.S_IMODE((tmp_path / "engine.log.1").stat().st_mode) == 0o600


def test_a_log_that_cannot_be_kept_is_cut_all_the_same(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    (tmp_path / "engine.log.1").mkdir()  # as on a full disk: the copy cannot be made
    log.write_text("x" * 2000)
    shim.rotate(str(log), 1000, 1)
    assert log.stat().st_size == 0


async def test_nonsense_on_the_socket_is_answered_not_fatal(tmp_path: Path, started: list[ShimHandle]) -> None:
    handle = await run(trees.spec_of(tmp_path, trees.QUIET), started)
    for line in (b"{\n", b"[]\n", b'{"op": "fly"}\n', b'{"op": "stop", "grace_s": "x"}\n', b"x" * 70000):
        with socket.socket(socket.AF_UNIX) as link, contextlib.suppress(OSError):
            link.settimeout(5)
            link.connect(str(handle.socket_path))
            link.sendall(line)
            assert b'"ok": false' in link.recv(4096) or len(line) > 100
    assert (await handle.status()).state == "running"


async def test_a_record_of_another_boot_moves_nobody(tmp_path: Path, started: list[ShimHandle]) -> None:
    spec = trees.spec_of(tmp_path, trees.QUIET)
    handle = await run(spec, started)
    file = spec.record_dir / "record.json"
    values = json.loads(file.read_text())
    other = tmp_path / "other"
    other.mkdir()
    values["intent"]["socket_path"] = str(other / "none.sock")
    (other / "record.json").write_text(json.dumps({**values, "boot_id": "another"}))
    assert await shim_client.sweep(other) == 0
    assert (await handle.status()).state == "running"


async def test_after_a_clean_end_a_strangers_session_of_the_leaders_number_is_left_alone(
    tmp_path: Path, started: list[ShimHandle]
) -> None:
    spec = trees.spec_of(tmp_path, "")
    handle = await run(spec, started)
    await handle.wait_exit()
    await handle.stop(0)
    await handle.release()
    # As if the leader's number had come round again: a stranger's session, whose own leader has ended since.
    program = """
import os, signal, sys
if os.fork(): os._exit(0)
with open(sys.argv[1], "w") as stream: stream.write(str(os.getpid()))
signal.pause()
"""
    stranger = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-c", program, str(tmp_path / "stranger"), start_new_session=True
    )
    left = processes.mark(await trees.until(lambda: trees.pid_in(tmp_path / "stranger")))
    assert left is not None
    try:
        assert await stranger.wait() == 0
        file = spec.record_dir / "record.json"
        values = json.loads(file.read_text())
        assert values["tree_gone"] is True
        values["leader"]["pid"] = stranger.pid
        file.write_text(json.dumps(values))
        shim_client.note_family(spec.record_dir, [left])
        await trees.until(lambda: trees.is_gone(values["shim"]["pid"]))
        assert await shim_client.sweep(spec.record_dir) == 0
        assert processes.is_alive(left)
    finally:
        processes.send_signal(left, signal.SIGKILL)
