"""Files from other nodes over real TLS: the best peer first, another or the source when it fails, no lie is kept."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from core.errors import Failure
from core.infra import certificates
from node_agent.files.origins import SourceOrigins
from node_agent.files.wants import FileOrder, Peer
from node_agent.files.wiring import Outside
from tests.fakes import web
from tests.node_agent import givers, trees
from tests.node_agent.benches import QUICK, Bench, bench, safetensors_bytes, sha256
from tests.node_agent.givers import Giver, giver

DATA = safetensors_bytes("w", 100_000)
LIE = safetensors_bytes("v", 100_000)
DIGEST = sha256(DATA)
NOWHERE = "https://127.0.0.1:9/model.safetensors"
"""A source that nobody answers at: this machine has no internet."""
BOUNDS = replace(QUICK, redirects=0, attempts=2)


@contextlib.asynccontextmanager
async def node(tmp_path: Path, tls: Path | None = None, sources: str = "127.0.0.1:9") -> AsyncIterator[Bench]:
    tls = tls or givers.tls_dir(tmp_path, "nod_mine")
    outside = Outside(look_s=0.05, bounds=QUICK, peer_bounds=BOUNDS)
    async with bench(tmp_path, origins=SourceOrigins(source_hosts=sources), outside=outside, tls_dir=tls) as it:
        yield it


def order(*having: Giver | Peer, source: str = NOWHERE, **more: object) -> FileOrder:
    found = tuple(one.peer if isinstance(one, Giver) else one for one in having)
    return FileOrder(source=source, sha256=DIGEST, size_bytes=len(DATA), path="model.safetensors", peers=found, **more)


async def test_a_machine_without_internet_gets_a_file_from_its_peer(tmp_path: Path) -> None:
    async with giver(tmp_path, "nod_a") as a, node(tmp_path) as it:
        a.put(DATA)
        stored = await it.pulls.ensure(order(a))
        assert it.store.path_of(stored.sha256).read_bytes() == DATA
        assert a.body_bytes == len(DATA)
        assert not [name for name in it.files() if "downloads" in name], "nothing is left beside the store"


async def test_a_cut_in_the_middle_moves_no_byte_twice(tmp_path: Path) -> None:
    async with giver(tmp_path, "nod_a") as a, node(tmp_path) as it:
        a.put(DATA)
        a.cut_after = len(DATA) // 2
        with pytest.raises(Failure) as caught:
            await it.pulls.ensure(order(a))
        assert caught.value.code == "source.unreachable"
        assert "before that, no node gave model.safetensors: nod_a: " in caught.value.message
        assert a.body_bytes == len(DATA) // 2
        a.cut_after = None
        await it.pulls.ensure(order(a))
        assert a.body_bytes == len(DATA)


async def test_another_peer_brings_only_what_the_first_did_not(tmp_path: Path) -> None:
    async with giver(tmp_path, "nod_a") as a, giver(tmp_path, "nod_b") as b, node(tmp_path) as it:
        a.put(DATA)
        b.put(DATA)
        a.cut_after = 30_000
        await it.pulls.ensure(order(a, b))
        assert (a.body_bytes, b.body_bytes) == (30_000, len(DATA) - 30_000)


async def test_the_source_brings_only_what_the_peers_did_not(tmp_path: Path) -> None:
    with web.site() as site:
        site.put("/model.safetensors", DATA)
        source = f"https://127.0.0.1:{site.port}/model.safetensors"
        async with giver(tmp_path, "nod_a") as a, node(tmp_path, sources=site.url) as it:
            a.put(DATA)
            a.cut_after = 60_000
            await it.pulls.ensure(order(a, source=source))
        asked = [tuple(map(int, one.range.removeprefix("bytes=").split("-"))) for one in site.seen]
        assert sum(end + 1 - start for start, end in asked) == len(DATA) - 60_000


async def test_of_a_peer_that_lies_nothing_is_kept_and_it_is_not_asked_again(tmp_path: Path) -> None:
    async with giver(tmp_path, "nod_a") as liar, giver(tmp_path, "nod_b") as b, node(tmp_path) as it:
        liar.put(LIE, DIGEST)
        b.put(DATA)
        await it.pulls.ensure(order(liar, b))
        assert (liar.body_bytes, b.body_bytes) == (len(DATA), len(DATA))
        it.store.remove(DIGEST)
        await it.pulls.remove(DIGEST)
        await it.pulls.ensure(order(liar, b))
        assert (liar.body_bytes, b.body_bytes) == (len(DATA), 2 * len(DATA))


async def test_when_every_peer_lies_nothing_is_left(tmp_path: Path) -> None:
    async with giver(tmp_path, "nod_a") as liar, node(tmp_path) as it:
        liar.put(DATA + b"more", DIGEST)
        with pytest.raises(Failure, match="no node gave"):
            await it.pulls.ensure(order(liar))
        assert not [name for name in it.files() if name.endswith(".partial") or DIGEST in name]


@pytest.mark.parametrize("fault", ["gone", "has it no more", "another node", "another cluster", "we have none"])
async def test_a_peer_that_cannot_be_used_is_passed_over(tmp_path: Path, fault: str) -> None:
    tls = None
    if fault == "another cluster":
        other = certificates.new_authority("clu_other", datetime.now(UTC))
        tls = givers.tls_dir(tmp_path, "nod_other", authority=other)
    elif fault == "we have none":
        tls = tmp_path / "nothing"
    with web.site() as site:
        site.put("/model.safetensors", DATA)
        source = f"https://127.0.0.1:{site.port}/model.safetensors"
        async with giver(tmp_path, "nod_a") as a, node(tmp_path, tls, sources=site.url) as it:
            peer = a.peer
            if fault != "has it no more":
                a.put(DATA)
            if fault == "another node":
                peer = replace(peer, node_id="nod_b")
            elif fault == "gone":
                peer = replace(peer, port=9)
            await it.pulls.ensure(order(peer, source=source))
            assert a.body_bytes == 0
        assert site.seen


async def test_what_another_node_brings_first_is_waited_for(tmp_path: Path) -> None:
    async with giver(tmp_path, "nod_a") as a, node(tmp_path) as it:
        a.put(DATA)
        waiting = order(source="", want_id="cpy_1.0")
        it.pulls.know([waiting])
        it.pulls.apply([waiting])
        replicas = asyncio.ensure_future(it.pulls.ensure(replace(waiting, want_id="")))
        await trees.until(lambda: it.progress("cpy_1.0").message == "another node brings it first")
        assert not replicas.done()
        it.pulls.know([order(a)])
        assert (await replicas).sha256 == DIGEST
        done = await it.until("done", "cpy_1.0")
        assert (done.sha256, done.bytes_done, done.facts_json) == (DIGEST, len(DATA), "")
        assert a.body_bytes == len(DATA), "both together"


async def test_a_copy_shows_how_far_it_is_and_ends_when_it_is_no_longer_wanted(tmp_path: Path) -> None:
    async with giver(tmp_path, "nod_a", bytes_per_s=40_000) as a, node(tmp_path) as it:
        a.put(DATA)
        wanted = order(a, want_id="cpy_1.0")
        it.pulls.know([wanted])
        it.pulls.apply([wanted])
        await trees.until(lambda: 0 < it.progress("cpy_1.0").bytes_done < len(DATA))
        assert it.progress("cpy_1.0").bytes_total == len(DATA)
        it.pulls.apply([])
        await trees.until(lambda: not [name for name in it.files() if name.endswith(".partial")])
        assert it.store.get(DIGEST) is None
