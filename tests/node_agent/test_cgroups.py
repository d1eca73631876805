"""Control groups: real ones of every kind that this machine lets us write, and a pretended tree for the others."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from core.infra import processes
from node_agent import cgroups, shim_client
from node_agent.cgroups import Counts, Group
from node_agent.shim_client import ShimHandle
from tests import waiting
from tests.node_agent import controllers, nodes, trees
from tests.node_agent.controllers import Controller
from tests.node_agent.nodes import Node
from tests.node_agent.test_shim import run, started

__all__ = ["started"]


def writable(kind: str) -> str:
    """Return our own directory of a kind; skips, and says so, where it is not there or not ours to write."""
    place = cgroups.places().get(kind)
    if place is None:
        pytest.skip(f"no {kind} hierarchy is mounted here")
    probe = Path(place, f"slice.probe-{os.getpid()}")
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        pytest.skip(f"{place} cannot be written: {error.strerror}")
    return place


@pytest.fixture
async def sleepers() -> AsyncIterator[list[int]]:
    """Two processes that do nothing, the second in a session of its own."""
    running = [
        await asyncio.create_subprocess_exec("sleep", "600", start_new_session=is_apart) for is_apart in (False, True)
    ]
    try:
        yield [process.pid for process in running]
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@pytest.mark.parametrize("kind", cgroups.KINDS)
async def test_a_real_group_holds_kills_and_is_removed(kind: str, sleepers: list[int]) -> None:
    place = writable(kind)
    group = cgroups.enter(sleepers[0], f"test-{os.getpid()}", {kind: place})
    assert group is not None
    try:
        assert group.pids() == [sleepers[0]]
        assert not group.remove()
        group.kill()
        await trees.until(lambda: trees.is_gone(sleepers[0]))
        assert not trees.is_gone(sleepers[1])
    finally:
        group.kill()
        await trees.until(group.remove)
    assert not Path(group.folder).exists()


async def test_a_shims_tree_is_born_in_a_group_that_is_gone_after_it(tmp_path: Path, started: list[ShimHandle]) -> None:
    if not any(os.access(place, os.W_OK) for place in cgroups.places().values()):
        pytest.skip("no hierarchy can be written here")
    handle = await run(trees.spec_of(tmp_path, trees.HIDDEN_FAMILY), started)
    notes = tmp_path / "notes"
    pids = [await trees.until(lambda name=name: trees.pid_in(notes / name)) for name in ("up", "child", "grandchild")]
    record = shim_client.read_record(tmp_path / "record")
    assert record is not None
    assert record.group is not None
    assert sorted(record.group.pids()) == sorted(pids)
    assert record.status.shim is not None
    assert record.status.shim.pid not in record.group.pids()
    await handle.stop(0.1)
    assert not Path(record.group.folder).exists()


async def test_a_tree_whose_every_link_was_killed_is_found_by_its_group(
    tmp_path: Path, started: list[ShimHandle]
) -> None:
    """Shim, leader and child are killed before anything was noted: nothing but the group leads to the grandchild."""
    if not any(os.access(place, os.W_OK) for place in cgroups.places().values()):
        pytest.skip("no hierarchy can be written here")
    spec = trees.spec_of(tmp_path, trees.HIDDEN_FAMILY)
    handle = await run(spec, started)
    notes = tmp_path / "notes"
    pids = [await trees.until(lambda name=name: trees.pid_in(notes / name)) for name in ("up", "child", "grandchild")]
    shim = (await handle.status()).shim
    assert shim is not None
    for pid in (shim.pid, pids[0], pids[1]):
        os.kill(pid, signal.SIGKILL)
        await trees.until(lambda pid=pid: trees.is_gone(pid))
    assert processes.mark(pids[2]) is not None
    record = shim_client.read_record(spec.record_dir)
    assert await shim_client.sweep(spec.record_dir) == 1
    assert trees.is_gone(pids[2])
    assert record is not None
    assert record.group is not None
    assert not Path(record.group.folder).exists()


@pytest.fixture
def limited() -> Iterator[Path]:
    """A real memory group with a limit of 200 MiB, below our own."""
    folder = Path(writable("memory"), f"slice.limited-{os.getpid()}")
    folder.mkdir()
    try:
        (folder / "memory.limit_in_bytes").write_text(str(200 * 1024**2))
        yield folder
    finally:
        Group("memory", str(folder)).kill()
        waiting.until(Group("memory", str(folder)).remove)


HUNGRY = """
    import signal
    held = []
    while True:
        held.append(b"x" * 4_000_000)
"""


async def test_an_engine_that_the_kernel_kills_for_memory_is_told_of_with_the_reason(
    tmp_path: Path, started: list[ShimHandle], limited: Path
) -> None:
    starter = tmp_path / "python"
    starter.write_text(f'#!/bin/sh\necho 0 > {limited}/cgroup.procs\nexec {sys.executable} "$@"\n')
    starter.chmod(0o700)
    spec = trees.spec_of(tmp_path, HUNGRY)
    handle = await shim_client.start(spec, str(starter))
    started.append(handle)
    async with asyncio.timeout(30):
        status = await handle.wait_exit()
    assert (status.exit_signal, status.out_of_memory) == (signal.SIGKILL, "cgroup")
    assert json.loads((spec.record_dir / "record.json").read_text())["out_of_memory"] == "cgroup"
    await handle.stop(0)
    await handle.release()
    started.remove(handle)
    await trees.until(lambda: not spec.socket_path.exists() and not (limited / "cgroup.procs").read_text())


async def test_a_replica_whose_engine_ran_out_of_memory_is_reported_so(tmp_path: Path, limited: Path) -> None:
    node = Node(tmp_path)
    try:
        async with controllers.serving(node.control, Controller()) as controller:
            await node.start()
            await trees.until(lambda: controller.hellos)
            assert node.process is not None
            (limited / "cgroup.procs").write_text(str(node.process.pid))
            await controller.want(nodes.desired(1, nodes.want(memory_bytes=1024**3)))
            report = await nodes.until_state(controller, "backoff")
            assert (report.code, report.exit_signal) == ("engine.out_of_memory", signal.SIGKILL)
            assert "memory limit" in report.message
    finally:
        await node.close()


async def test_a_kill_by_hand_is_no_want_of_memory(tmp_path: Path, started: list[ShimHandle]) -> None:
    handle = await run(trees.spec_of(tmp_path, trees.QUIET), started)
    status = await handle.status()
    assert status.leader is not None
    os.kill(status.leader.pid, signal.SIGKILL)
    assert (await handle.wait_exit()).out_of_memory == ""


# -- a pretended machine -----------------------------------------------------------------------------------------------


def pretended(tmp_path: Path, cgroup: str, *mounts: str) -> dict[str, str]:
    (tmp_path / "cgroup").write_text(cgroup)
    (tmp_path / "mountinfo").write_text("\n".join(mounts))
    return cgroups.places(str(tmp_path))


V2 = "30 20 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
MEMORY = "31 20 0:27 / /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory"
FREEZER = "32 20 0:28 /docker/abc /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer"
PLACES = {
    "unified": (
        "0::/system.slice/slice-node.service\n",
        (V2,),
        {"v2": "/sys/fs/cgroup/system.slice/slice-node.service"},
    ),
    "hybrid": (
        "4:memory:/one\n2:freezer:/docker/abc\n1:name=systemd:/x\n0::/\n",
        (V2.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified "), MEMORY, FREEZER),
        {"v2": "/sys/fs/cgroup/unified", "memory": "/sys/fs/cgroup/memory/one", "freezer": "/sys/fs/cgroup/freezer"},
    ),
    "a part that is not ours": ("2:freezer:/other\n", (FREEZER,), {}),
    "none": ("", ("1 1 0:1 / / rw - ext4 /dev/x rw", "odd", "a - b"), {}),
}


@pytest.mark.parametrize(("cgroup", "mounts", "wanted"), PLACES.values(), ids=PLACES.keys())
def test_our_place_is_read_from_proc(
    tmp_path: Path, cgroup: str, mounts: tuple[str, ...], wanted: dict[str, str]
) -> None:
    assert pretended(tmp_path, cgroup, *mounts) == wanted


def test_a_machine_without_groups_has_none(tmp_path: Path) -> None:
    assert cgroups.places(str(tmp_path / "no")) == {}
    assert cgroups.enter(os.getpid(), "x", {}) is None
    assert cgroups.enter(os.getpid(), "x", {"v2": str(tmp_path / "no"), "freezer": "/proc"}) is None


def test_a_group_of_that_name_is_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "slice.x").mkdir()
    assert cgroups.enter(os.getpid(), "x", {"v2": str(tmp_path)}) is None
    assert (tmp_path / "slice.x").is_dir()


@pytest.mark.parametrize(
    ("kind", "folder"),
    [("v2", "/sys/fs/cgroup"), ("v2", "/sys/fs/cgroup/system.slice"), ("odd", "/slice.x"), ("v2", 3), (None, None)],
)
def test_a_record_names_no_group_but_one_of_ours(kind: object, folder: object) -> None:
    assert cgroups.known(kind, folder) is None


def test_a_new_kernel_is_asked_to_kill_at_once(tmp_path: Path) -> None:
    (tmp_path / "cgroup.kill").write_text("")
    (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n")
    Group("v2", str(tmp_path)).kill()
    assert (tmp_path / "cgroup.kill").read_text() == "1"


async def test_an_old_kernel_is_given_each_process(tmp_path: Path, sleepers: list[int]) -> None:
    """As v2 before Linux 5.14 has no cgroup.kill; groups below count, too, and pid 0 is one of another namespace."""
    below = tmp_path / "below"
    below.mkdir()
    (tmp_path / "cgroup.procs").write_text(f"0\n{sleepers[0]}\n999999999\n")
    (below / "cgroup.procs").write_text(f"{sleepers[1]}\n")
    Group("v2", str(tmp_path)).kill()
    await trees.until(lambda: all(trees.is_gone(pid) for pid in sleepers))


def events(folder: Path, **values: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("memory.events", "memory.events.local"):
        (folder / name).write_text("".join(f"{key} {value}\n" for key, value in values.items()))


def test_a_limit_above_the_tree_is_told_from_the_machines_memory(tmp_path: Path) -> None:
    service, own = tmp_path / "service", tmp_path / "service" / "slice.x"
    events(service, oom=3, oom_kill=9)
    events(own, oom=0, oom_kill=0)
    group = Group("v2", str(own))
    before = cgroups.counts(group, {})
    assert (before.kills, before.hits[:2], before.is_own) == (0, (0, 3), True)
    events(own, oom=0, oom_kill=1)
    assert cgroups.out_of_memory(before, cgroups.counts(group, {}), was_killed=False) == "host"
    events(service, oom=4, oom_kill=10)
    assert cgroups.out_of_memory(before, cgroups.counts(group, {}), was_killed=False) == "cgroup"


def test_a_service_without_its_own_counters_uses_those_above(tmp_path: Path) -> None:
    own = tmp_path / "service" / "slice.x"
    own.mkdir(parents=True)
    events(tmp_path / "service", oom=0, oom_kill=2)
    found = cgroups.counts(Group("v2", str(own)), {})
    assert (found.kills, found.is_own) == (2, False)


def test_without_a_memory_controller_the_machine_counts(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("nr_free_pages 1\noom_kill 7\n")
    found = cgroups.counts(None, {}, str(vmstat))
    assert (found.kills, found.hits, found.is_own) == (7, (), False)


@pytest.mark.parametrize(
    ("kills", "is_own", "was_killed", "reason"),
    [(0, True, True, ""), (1, True, False, "host"), (1, False, False, ""), (1, False, True, "host")],
    ids=["nothing counted", "a worker of ours", "a stranger", "our leader"],
)
def test_a_shared_counter_blames_memory_for_a_killed_leader_alone(
    kills: int, reason: str, *, is_own: bool, was_killed: bool
) -> None:
    before, after = Counts(0, (), is_own=is_own), Counts(kills, (), is_own=is_own)
    assert cgroups.out_of_memory(before, after, was_killed=was_killed) == reason
