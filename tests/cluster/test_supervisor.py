"""The supervisor on parts that are small real processes: restarts, adoption, fatal ends, the lock."""

import asyncio
import io
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from cli.cluster import lock, recording, up
from cli.cluster.journal import Journal, JournalReader, Mark
from cli.cluster.lock import SupervisorLock
from cli.cluster.parts import FATAL_EXIT, Part, ProcessPart, record, record_file, recorded, stop_process
from cli.cluster.supervisor import Supervisor
from core.infra import cluster
from core.infra.clock import SystemClock
from core.infra.cluster import ClusterBlock
from core.infra.entropy import SystemEntropy
from core.infra.logs import Log
from core.infra.processes import mark, put_first, send_signal
from core.infra.settings import process_environment
from tests.waiting import until_async

SLEEPER = [sys.executable, "-I", "-S", "-c", "import signal; signal.pause()"]


class LaterClock(SystemClock):
    """The real clock, and `later_s` more, as if so much had passed."""

    later_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.later_s


class Harness:
    """A supervisor over given parts, with what it asked of its surroundings written down."""

    def __init__(self, block: ClusterBlock, parts: list[Part], start_deadline_s: float = 60.0) -> None:
        self.block = block
        self.calls: list[str] = []
        self.clock = clock = LaterClock()
        self.journal_file = block.log_dir / "start.jsonl"
        self.supervisor = Supervisor(
            parts=parts,
            first_use=self._first_use,
            first_use_needs=frozenset({"one"}),
            start_deadline_s=start_deadline_s,
            teardown=self._teardown,
            journal=Journal(self.journal_file, clock),
            clock=clock,
            log=Log("supervisor", clock, io.StringIO()),
        )

    async def _first_use(self) -> None:
        self.calls.append("first use")

    async def _teardown(self) -> None:
        self.calls.append("teardown")
        for name in ("one", "two"):
            process = recorded(self.block.parts_dir, name)
            if process is not None:
                await stop_process(process, signal.SIGTERM, 5.0)

    def waits(self) -> list[str]:
        """Return what the supervisor said each time that it started a part again."""
        lines = JournalReader(self.journal_file).new_lines()
        return [line.message.rpartition(" in ")[2] for line in lines if line.mark is Mark.FAILED]

    async def until(self, mark: Mark, count: int) -> None:
        async def is_so() -> bool:
            return sum(found is mark for found, _ in self.marks()) >= count

        await until_async(is_so, what=f"{count} of {mark}")

    def marks(self) -> list[tuple[Mark, str]]:
        return [(line.mark, line.step) for line in JournalReader(self.journal_file).new_lines()]


def part(
    block: ClusterBlock, name: str, argv: list[str] | None = None, *, can_be_ready: bool = True, nice: int = 0
) -> ProcessPart:
    async def is_ready() -> bool:
        return can_be_ready and recorded(block.parts_dir, name) is not None

    return ProcessPart(
        name=name,
        argv=argv or SLEEPER,
        environment=process_environment(),
        log_file=block.log_dir / f"{name}.log",
        parts_dir=block.parts_dir,
        is_ready=is_ready,
        nice=nice,
    )


async def test_all_parts_are_started_announced_and_ended(block: ClusterBlock) -> None:
    harness = Harness(block, [part(block, "one"), part(block, "two")])
    async with asyncio.TaskGroup() as group:
        running = group.create_task(harness.supervisor.run())
        await until_async(lambda: _is(Mark.READY, harness), what="the announcement")
        assert harness.calls == ["first use"]
        harness.supervisor.stop()
    assert running.result() is None
    assert harness.calls == ["first use", "teardown"]
    assert recorded(block.parts_dir, "one") is None


async def test_a_killed_part_is_started_again(block: ClusterBlock) -> None:
    harness = Harness(block, [part(block, "one")])
    async with asyncio.TaskGroup() as group:
        group.create_task(harness.supervisor.run())
        await until_async(lambda: _is(Mark.READY, harness))
        first = recorded(block.parts_dir, "one")
        assert first is not None
        send_signal(first, signal.SIGKILL)

        async def is_replaced() -> bool:
            return recorded(block.parts_dir, "one") not in {None, first}

        await until_async(is_replaced, what="a new process")
        harness.supervisor.stop()
    assert (Mark.FAILED, "one") in harness.marks()


async def test_waits_double_with_each_kill_until_a_part_has_done_its_work_for_a_while(block: ClusterBlock) -> None:
    harness = Harness(block, [part(block, "one")])
    async with asyncio.TaskGroup() as group:
        group.create_task(harness.supervisor.run())
        for kills, later_s in ((1, 0.0), (2, 0.0), (3, 11.0)):
            await harness.until(Mark.DONE, kills)  # ready for the so many-th time
            harness.clock.later_s += later_s
            living = recorded(block.parts_dir, "one")
            assert living is not None
            send_signal(living, signal.SIGKILL)
            await harness.until(Mark.FAILED, kills)
        harness.supervisor.stop()
    assert harness.waits() == ["0.2 s", "0.4 s", "0.2 s"]


async def test_a_part_that_never_does_its_work_waits_longer_each_time_however_long_it_lives(
    block: ClusterBlock,
) -> None:
    harness = Harness(block, [part(block, "one", can_be_ready=False)])
    async with asyncio.TaskGroup() as group:
        group.create_task(harness.supervisor.run())
        for lives in (1, 2):
            await harness.until(Mark.BEGUN, lives)
            harness.clock.later_s += 600.0

            async def is_there() -> bool:
                return recorded(block.parts_dir, "one") is not None

            await until_async(is_there)
            living = recorded(block.parts_dir, "one")
            assert living is not None
            send_signal(living, signal.SIGKILL)
            await harness.until(Mark.FAILED, lives)
        harness.supervisor.stop()
    assert harness.waits() == ["0.2 s", "0.4 s"]


async def test_a_living_part_of_a_dead_supervisor_is_adopted(block: ClusterBlock) -> None:
    left = part(block, "one")
    await left.start()
    before = recorded(block.parts_dir, "one")
    harness = Harness(block, [part(block, "one")])
    async with asyncio.TaskGroup() as group:
        group.create_task(harness.supervisor.run())
        await until_async(lambda: _is(Mark.READY, harness))
        assert recorded(block.parts_dir, "one") == before
        harness.supervisor.stop()
    await left.ended()


async def test_a_part_that_can_never_start_ends_the_cluster_with_its_reason(block: ClusterBlock) -> None:
    word = json.dumps({"code": "storage.schema_newer", "message": "too new", "hint": "upgrade"})
    script = f"open({str(block.parts_dir / 'one.failure.json')!r}, 'w').write({word!r}); raise SystemExit({FATAL_EXIT})"
    telling = part(block, "one", [sys.executable, "-I", "-S", "-c", script], can_be_ready=False)
    harness = Harness(block, [telling])
    failure = await harness.supervisor.run()
    assert failure is not None
    assert failure.code == "storage.schema_newer"
    ended = [line for line in JournalReader(harness.journal_file).new_lines() if line.mark is Mark.ENDED]
    assert json.dumps(dict(ended[0].data)).count("storage.schema_newer") == 1
    assert harness.calls[-1] == "teardown"


async def test_a_part_that_is_never_ready_ends_the_start_with_its_last_word(block: ClusterBlock) -> None:
    script = "import signal; print('no database', flush=True); signal.pause()"
    stuck = part(block, "one", [sys.executable, "-I", "-S", "-c", script], can_be_ready=False)
    harness = Harness(block, [stuck], start_deadline_s=1.0)
    failure = await harness.supervisor.run()
    assert failure is not None
    assert failure.code == "cluster.start_failed"
    assert "no database" in failure.hint
    assert harness.calls == ["teardown"]


async def test_a_part_that_cannot_start_now_is_tried_again_while_the_rest_goes_on(block: ClusterBlock) -> None:
    (block.log_dir / "two.log").mkdir()  # its log cannot be opened: every start fails
    harness = Harness(block, [part(block, "one"), part(block, "two")])
    async with asyncio.TaskGroup() as group:
        group.create_task(harness.supervisor.run())
        await harness.until(Mark.DONE, 1)
        await until_async(lambda: _is(Mark.FAILED, harness), what="the failed start")
        first = recorded(block.parts_dir, "one")
        (block.log_dir / "two.log").rmdir()
        await until_async(lambda: _is(Mark.READY, harness), what="the announcement")
        assert recorded(block.parts_dir, "one") == first
        harness.supervisor.stop()


async def test_a_part_that_goes_first_is_scheduled_before_others_and_the_rest_as_ever(block: ClusterBlock) -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    if os.geteuid() != 0:
        pytest.skip("only root may put a process before others")
    first, other = part(block, "one", nice=-10), part(block, "two")
    for item in (first, other):
        await item.start()
    one, two = recorded(block.parts_dir, "one"), recorded(block.parts_dir, "two")
    assert one is not None
    assert two is not None
    try:
        assert os.getpriority(os.PRIO_PROCESS, one.pid) == -10
        assert os.getpriority(os.PRIO_PROCESS, two.pid) == before
        groups = [Path(f"/proc/{item.pid}/autogroup") for item in (one, two)]
        if groups[0].exists():
            assert [file.read_text().split()[-1] for file in groups] == ["-10", "0"]
    finally:
        for item in (one, two):
            await stop_process(item, signal.SIGKILL, 5.0)
        for item in (first, other):
            await item.ended()


def test_nobody_is_put_first_who_is_not_there() -> None:
    assert not put_first(2**22 + 1, -10)


@pytest.mark.parametrize("is_shim_left", [True, False])
def test_ports_stay_those_of_engines_that_outlived_all_else(
    block: ClusterBlock, monkeypatch: pytest.MonkeyPatch, *, is_shim_left: bool
) -> None:
    """Supervisor, controller, door and node agent were killed at once; an engine serves on at a port of the range."""
    monkeypatch.setenv("SLICE_RUNTIME_DIR", str(block.runtime_dir.parent))
    loaded = recording.loaded_settings(
        block.data_dir, {"port": block.door_port, "controller_port": block.controller_port}
    )
    engine = block.port(40)
    if is_shim_left:
        cluster.make_private_dir(block.shim_dir)
        (block.shim_dir / "rep_one.sock").touch()
    with socket.create_server(("127.0.0.1", engine)):
        known = cluster.load(block.data_dir)
        assert known is not None
        living = up.living_ports(known, loaded.settings)
        made = recording.prepared_block(block.data_dir, loaded, SystemEntropy(), living=living)
    assert (made.base_port == block.base_port) is is_shim_left, "a stranger's port moves the range, our own does not"


def test_a_process_recorded_in_another_boot_is_nobody(block: ClusterBlock) -> None:
    me = mark(os.getpid())
    assert me is not None
    record(block.parts_dir, "one", me)
    assert recorded(block.parts_dir, "one") == me
    file = record_file(block.parts_dir, "one")
    file.write_text(file.read_text().replace(json.loads(file.read_text())["boot_id"], "another"))
    assert recorded(block.parts_dir, "one") is None


def test_the_lock_has_one_holder_and_vanishes_with_it(tmp_path: Path) -> None:
    first, second = SupervisorLock(tmp_path), SupervisorLock(tmp_path)
    assert not lock.is_held(tmp_path)
    assert first.try_hold()
    assert not second.try_hold()
    assert lock.is_held(tmp_path)
    lock.announce(tmp_path)
    assert lock.supervisor(tmp_path) == mark(os.getpid())
    first.release()
    assert not lock.is_held(tmp_path)
    assert lock.supervisor(tmp_path) is None, "a pid without the lock is not the supervisor"
    assert second.try_hold()
    second.release()


@pytest.mark.parametrize("torn", [b"", b'{"mark": "begun"'], ids=["empty", "half a line"])
def test_a_reader_of_a_growing_journal_waits_for_whole_lines(tmp_path: Path, torn: bytes) -> None:
    file = tmp_path / "start.jsonl"
    file.write_bytes(torn)
    assert list(JournalReader(file).new_lines()) == []


async def _is(mark: Mark, harness: Harness) -> bool:
    return any(found is mark for found, _ in harness.marks())
