"""Disk pressure: pulls pause, say what is missing, and go on by themselves."""

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import Failure
from core.units import MIB
from node_agent.files import local, wiring
from node_agent.files.origins import SourceOrigins
from node_agent.files.room import RESERVE_BYTES, NoRoom, Room
from node_agent.files.wants import FileOrder
from tests.fakes import web
from tests.node_agent import trees, wheels
from tests.node_agent.benches import QUICK, bench, sha256

BIG = wheels.gguf_bytes(padding=60_000)


class Disk:
    """A disk whose free bytes the test decides."""

    def __init__(self, free: int) -> None:
        self.bytes = RESERVE_BYTES + free

    def free(self, path: Path) -> int:
        return self.bytes


def around(disk: Disk, site: web.Site, **more: object) -> dict[str, object]:
    return {
        "origins": SourceOrigins(source_hosts=site.url, **more),
        "outside": wiring.Outside(free=disk.free, look_s=0.05, bounds=QUICK),
    }


async def test_a_pull_that_does_not_fit_says_how_much_is_missing_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    disk = Disk(10_000)
    with web.site() as site:
        site.put("/demo.gguf", BIG)
        source = f"https://127.0.0.1:{site.port}/demo.gguf"
        async with bench(tmp_path, **around(disk, site)) as it:
            it.pulls.apply([FileOrder(source=source, want_id="pul_1")])
            await trees.until(lambda: "missing" in it.progress().message)
            paused = it.progress()
            assert paused.state == "running"
            assert f"{len(BIG) - 10_000} bytes are missing" in paused.message
            assert str(it.root) in paused.message
            assert it.pulls.stored() == ()
            disk.bytes += len(BIG)
            assert (await it.until("done")).sha256 == sha256(BIG)
            assert it.progress().message == ""


async def test_a_replica_that_needs_a_file_for_which_there_is_no_room_is_told_at_once(tmp_path: Path) -> None:
    with web.site() as site:
        site.put("/demo.gguf", BIG)
        source = f"https://127.0.0.1:{site.port}/demo.gguf"
        async with bench(tmp_path, **around(Disk(0), site)) as it:
            with pytest.raises(Failure, match="missing") as caught:
                await it.pulls.ensure(FileOrder(source=source, sha256=sha256(BIG), size_bytes=len(BIG)))
            assert (caught.value.code, caught.value.retry.value) == ("disk.full", "later")
            assert it.files() == []


async def test_a_pull_that_waits_too_long_for_room_fails(tmp_path: Path) -> None:
    with web.site() as site:
        site.put("/demo.gguf", BIG)
        source = f"https://127.0.0.1:{site.port}/demo.gguf"
        async with bench(tmp_path, **around(Disk(0), site, room_timeout_s=0.3)) as it:
            it.pulls.apply([FileOrder(source=source, want_id="pul_1")])
            failed = await it.until("failed")
            assert failed.code == "disk.full"
            assert "after waiting" in failed.message


async def test_a_disk_that_fills_up_in_the_middle_pauses_the_pull_and_what_has_come_is_kept(tmp_path: Path) -> None:
    with web.site() as site:
        thing = site.put("/demo.gguf", BIG)
        source = f"https://127.0.0.1:{site.port}/demo.gguf#file={sha256(BIG)}"
        disk = Disk(10**9)
        async with bench(tmp_path, **around(disk, site)) as it:
            thing.hold_after = 900
            it.pulls.apply([FileOrder(source=source, want_id="pul_1")])
            await trees.until(lambda: it.progress().bytes_done == 900)
            disk.bytes = RESERVE_BYTES + 5  # somebody else took it
            thing.hold_after = -1
            site.go_on.set()
            await trees.until(lambda: "missing" in it.progress().message)
            assert it.progress().bytes_done >= 900
            disk.bytes = RESERVE_BYTES + len(BIG) - 900  # what has come needs no room a second time
            assert (await it.until("done")).sha256 == sha256(BIG)
            assert not any(one.range.startswith("bytes=0-") for one in site.seen[1:])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MiB, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], check=False).returncode:
        pytest.skip("this user may mount no file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


async def test_a_real_disk_that_is_full_pauses_the_pull_and_it_goes_on_when_somebody_frees_space(
    small_disk: Path,
) -> None:
    data = wheels.gguf_bytes(padding=1_500_000)

    def optimistic(path: Path) -> int:  # so that it is the file system which says that it is full
        return shutil.disk_usage(path).free + RESERVE_BYTES + len(data)

    outside = wiring.Outside(free=optimistic, look_s=0.1, bounds=QUICK)
    with web.site() as site:
        site.put("/demo.gguf", data)
        source = f"https://127.0.0.1:{site.port}/demo.gguf#file={sha256(data)}"
        async with bench(small_disk, origins=SourceOrigins(source_hosts=site.url), outside=outside) as it:
            (small_disk / "filler").write_bytes(b"x" * 1_000_000)
            it.pulls.apply([FileOrder(source=source, want_id="pul_1")])
            await trees.until(lambda: "missing" in it.progress().message)
            assert it.pulls.stored() == ()
            (small_disk / "filler").unlink()
            assert (await it.until("done")).sha256 == sha256(data)


async def test_pulls_count_on_each_others_needs_and_a_small_one_goes_ahead(tmp_path: Path) -> None:
    small = wheels.gguf_bytes(padding=100)
    disk = Disk(len(BIG) + 500)
    with web.site() as site:
        site.put("/first.gguf", BIG, hold_after=2_000)
        site.put("/second.gguf", wheels.gguf_bytes(padding=50_000))
        site.put("/small.gguf", small)
        async with bench(tmp_path, **around(disk, site)) as it:
            orders = [
                FileOrder(source=f"https://127.0.0.1:{site.port}/{name}.gguf", want_id=name)
                for name in ("first", "second", "small")
            ]
            it.pulls.apply(orders[:1])
            await trees.until(lambda: it.progress("first").bytes_done > 2_000)
            it.pulls.apply(orders)
            await trees.until(lambda: "missing" in it.progress("second").message)
            assert (await it.until("done", "small")).sha256 == sha256(small)
            assert it.progress("second").state == "running"
            disk.bytes += 10**6
            site.go_on.set()
            await it.until("done", "first")
            await it.until("done", "second")


async def test_a_folder_of_which_only_a_part_fits_is_not_begun(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for number in (1, 2):
        (folder / f"big-0000{number}-of-00002.gguf").write_bytes(wheels.gguf_bytes(padding=9_000 + number))
    disk = Disk(10_000)
    outside = wiring.Outside(free=disk.free, look_s=0.05, bounds=QUICK)
    async with bench(tmp_path, outside=outside) as it:
        if not local.needs_room(folder / "big-00001-of-00002.gguf", it.root):
            pytest.skip("this file system shares blocks: a copy needs no room")
        it.pulls.apply([FileOrder(source=f"file:{folder}", want_id="pul_1")])
        await trees.until(lambda: "missing" in it.progress().message)
        assert it.files() == []
        disk.bytes += 10_000
        await it.until("done")


def test_what_one_promised_is_not_promised_to_another(tmp_path: Path) -> None:
    disk = Disk(100)
    room = Room(tmp_path, timeout_s=1, free=disk.free)
    one, other = room.promise(), room.promise()
    one.ask({"a": 50, "b": 20})
    with pytest.raises(NoRoom) as caught:
        other.ask({"c": 31})
    assert caught.value.missing_bytes == 1
    one.wrote("a", 10)
    disk.bytes -= 40  # as it was written
    other.ask({"c": 30})
    one.release()
    other.ask({"d": 30})
    assert room.left() == 0


async def test_room_that_is_made_is_noticed_at_once_when_it_was_we_who_made_it(tmp_path: Path) -> None:
    disk = Disk(0)
    room = Room(tmp_path, timeout_s=30, look_s=30, free=disk.free)
    waiting = asyncio.ensure_future(room.wait(MIB, 30, is_measured=True))
    await asyncio.sleep(0)
    disk.bytes += MIB
    room.freed()
    async with asyncio.timeout(5):
        await waiting
