"""Downloads over real sockets from a server on loopback that misbehaves in every way the tests name."""

import asyncio
import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import Failure
from core.infra.clock import SystemClock
from core.infra.logs import Log
from node_agent.files.download import Downloader
from node_agent.files.http_get import Bounds, HttpGet, Token
from node_agent.files.lines import PublicLines
from node_agent.files.reach import Origin, Reach, origin_of
from node_agent.files.transfer import Remote, Watch
from tests.fakes import web
from tests.fakes.web import Site, Thing
from tests.node_agent import trees
from tests.node_agent.benches import QUICK, sha256

DATA = bytes(os.urandom(1)) + b"".join(index.to_bytes(4, "big") for index in range(25_000))
PATH = "/model"


class Line:
    """A downloader, and what it was told to watch."""

    def __init__(self, trusted: list[Origin], bounds: Bounds = QUICK) -> None:
        clock = SystemClock()
        lines = PublicLines(reach=Reach(trusted=trusted), environment={}, bounds=bounds)
        http = HttpGet(lines=lines, bounds=bounds, monotonic=clock.monotonic)
        self.downloader = Downloader(http=http, monotonic=clock.monotonic, log=Log("test", clock, io.StringIO()))
        self.done = 0
        self.admitted: list[int] = []
        self.heads: list[bytes] = []
        self.watch = Watch(admit=self.admitted.append, told=self._told, look=self.heads.append)

    def _told(self, done: int, total: int) -> None:
        self.done = done

    async def fetch(self, site: Site, place: Path, **more: object) -> str:
        remote = Remote(name="model", **{"url": site.url + PATH, **more})
        return await self.downloader.fetch(remote, place, self.watch)


@contextmanager
def served(**more: object) -> Iterator[tuple[Site, Thing, Line]]:
    with web.site() as site:
        thing = site.put(PATH, DATA, **more)
        line = Line([origin_of(site.url)])
        try:
            yield site, thing, line
        finally:
            line.downloader.close()


@pytest.mark.parametrize(
    "faults",
    [
        {},
        {"knows_ranges": False},
        {"etag": ""},
        {"etag": 'W/"weak"'},
        {"is_chunked": True, "knows_ranges": False},
        {"is_chunked": True, "knows_ranges": False, "headers": {"content-length": "0"}},
        {"cuts": 3, "cut_after": 700},
        {"cuts": 2, "cut_after": 70_000, "knows_ranges": False},
        {"cuts": 2, "cut_after": 70_000, "knows_ranges": False, "is_chunked": True},
    ],
    ids=[
        "plain",
        "no ranges",
        "no etag",
        "weak etag",
        "chunked",
        "chunked and a length",
        "cut",
        "cut without ranges",
        "cut in chunks",
    ],
)
@pytest.mark.parametrize("is_known", [True, False], ids=["size and digest known", "nothing known"])
async def test_a_file_comes_whole_however_its_server_sends_it(tmp_path: Path, faults: dict, is_known: bool) -> None:
    known = {"size_bytes": len(DATA), "sha256": sha256(DATA)} if is_known else {}
    with served(**faults) as (site, _, line):
        assert await line.fetch(site, tmp_path / "x", **known) == sha256(DATA)
        assert (tmp_path / "x").read_bytes() == DATA
        assert line.done == len(DATA)
        assert line.heads[-1] == DATA[:64]


async def test_a_large_file_comes_in_several_ranges_at_once_each_byte_once(tmp_path: Path) -> None:
    with served() as (site, _, line):
        # The first answer tells that ranges are known; the ranges after it are held until four of them are open.
        site.answer = lambda path, query: Thing(data=DATA, hold_after=0 if len(site.seen) > 1 else -1)
        running = asyncio.ensure_future(line.fetch(site, tmp_path / "x", size_bytes=len(DATA)))
        await trees.until(lambda: len(site.seen) == 5)
        site.go_on.set()
        assert await running == sha256(DATA)
    asked = [tuple(map(int, one.range.removeprefix("bytes=").split("-"))) for one in site.seen]
    assert asked[0] == (0, QUICK.first_bytes - 1)
    assert sum(end + 1 - start for start, end in asked) == len(DATA)


async def test_a_cut_download_asks_only_for_the_rest_of_the_same_file(tmp_path: Path) -> None:
    with served(cuts=1, cut_after=600) as (site, thing, line):
        await line.fetch(site, tmp_path / "x", size_bytes=len(DATA))
        assert site.seen[1].range == "bytes=600-999"
        assert thing.cuts == 0


async def test_what_a_cancelled_download_brought_is_not_asked_for_again(tmp_path: Path) -> None:
    with served(hold_after=900) as (site, thing, line):
        running = asyncio.ensure_future(line.fetch(site, tmp_path / "x", sha256=sha256(DATA)))
        await trees.until(lambda: line.done == 900)
        running.cancel()
        since = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert time.monotonic() - since < 0.5  # at once: it waited for bytes that do not come
        thing.hold_after = -1
        await line.fetch(site, tmp_path / "x", sha256=sha256(DATA))
        assert site.seen[1].range.startswith("bytes=900-")


async def test_a_file_that_changed_meanwhile_comes_anew(tmp_path: Path) -> None:
    with served(hold_after=900) as (site, thing, line):
        running = asyncio.ensure_future(line.fetch(site, tmp_path / "x"))
        await trees.until(lambda: line.done == 900)
        running.cancel()
        await asyncio.wait({running})
        thing.hold_after, thing.data = -1, DATA[::-1]
        assert await line.fetch(site, tmp_path / "x") == sha256(DATA[::-1])


async def test_a_server_that_mixes_two_files_is_found_out(tmp_path: Path) -> None:
    with served(hold_after=900, minds_if_range=False, etag='"same"') as (site, thing, line):
        running = asyncio.ensure_future(line.fetch(site, tmp_path / "x", sha256=sha256(DATA)))
        await trees.until(lambda: line.done == 900)
        running.cancel()
        await asyncio.wait({running})
        # What lies here was damaged meanwhile: the digest tells, and the file is brought anew, whole.
        with (tmp_path / "x").open("r+b") as stream:
            stream.write(b"damage")
        thing.hold_after = -1
        assert await line.fetch(site, tmp_path / "x", sha256=sha256(DATA)) == sha256(DATA)


@pytest.mark.parametrize(
    ("known", "faults", "code"),
    [
        ({"sha256": "0" * 64}, {}, "source.digest_mismatch"),
        ({"git_sha1": "0" * 40}, {}, "source.digest_mismatch"),
        ({"size_bytes": len(DATA) - 1}, {}, "source.digest_mismatch"),
        ({"size_bytes": len(DATA) + 1}, {}, "source.digest_mismatch"),
        ({"size_bytes": len(DATA) + 1}, {"is_chunked": True, "knows_ranges": False}, "source.digest_mismatch"),
        ({"size_bytes": 50_000}, {"is_chunked": True, "knows_ranges": False}, "source.digest_mismatch"),
        ({}, {"status": 404}, "source.not_found"),
        ({}, {"headers": {"content-encoding": "gzip"}}, "source.invalid"),
    ],
    ids=["digest", "git digest", "longer", "shorter", "ends early", "endless", "absent", "packed"],
)
async def test_a_lie_or_an_absence_leaves_nothing_behind(tmp_path: Path, known: dict, faults: dict, code: str) -> None:
    with served(**faults) as (site, _, line):
        with pytest.raises(Failure) as caught:
            await line.fetch(site, tmp_path / "x", **known)
        assert caught.value.code == code
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "faults",
    [
        {"status": 503},
        {"announce": len(DATA) * 2, "knows_ranges": False},
        {"cuts": 1000, "cut_after": 0},
        {"cuts": 1000, "cut_after": 60_000, "knows_ranges": False},
        {"drip": True},
    ],
    ids=["503", "announces too much", "nothing but cuts", "always cut in the middle", "drips"],
)
async def test_a_server_that_never_gets_there_is_unreachable_and_may_be_tried_later(
    tmp_path: Path, faults: dict
) -> None:
    with served(**faults) as (site, _, line):
        with pytest.raises(Failure) as caught:
            await line.fetch(site, tmp_path / "x")
        assert caught.value.code == "source.unreachable"
        assert caught.value.retry.value == "later"
        assert len(site.seen) >= QUICK.attempts


async def test_a_server_that_is_busy_for_a_moment_is_asked_again(tmp_path: Path) -> None:
    with served(status=429, headers={"retry-after": "0"}) as (site, thing, line):
        running = asyncio.ensure_future(line.fetch(site, tmp_path / "x"))
        await trees.until(lambda: len(site.seen) >= 2)
        thing.status = 0
        assert await running == sha256(DATA)


async def test_a_refusing_watcher_ends_the_download_after_the_first_bytes(tmp_path: Path) -> None:
    with served() as (site, _, line):

        def look(head: bytes) -> None:
            raise Failure("format.refused", "no")

        remote = Remote(name="model", url=site.url + PATH, size_bytes=len(DATA))
        with pytest.raises(Failure, match="no"):
            await line.downloader.fetch(
                remote, tmp_path / "x", Watch(admit=lambda more: None, told=line._told, look=look)
            )
        assert len(site.seen) == 1
        assert list(tmp_path.iterdir()) == []


async def test_no_byte_is_written_before_it_was_admitted(tmp_path: Path) -> None:
    with served(knows_ranges=False) as (site, _, line):

        def admit(more: int) -> None:
            raise Failure("disk.full", "full")

        remote = Remote(name="model", url=site.url + PATH)
        with pytest.raises(Failure, match="full"):
            await line.downloader.fetch(remote, tmp_path / "x", Watch(admit=admit, told=line._told, look=line._told))
        assert list(tmp_path.iterdir()) == []


# -- who hears what ---------------------------------------------------------------------------------------------------


async def test_a_token_is_said_to_its_own_origin_and_never_after_a_redirect(tmp_path: Path) -> None:
    with web.site() as elsewhere, served() as (site, thing, _):
        elsewhere.put("/blob", DATA, location=f"{site.url}/back")
        site.put("/back", DATA)
        thing.location = f"{elsewhere.url}/blob"
        line = Line([origin_of(site.url), origin_of(elsewhere.url)])
        token = Token(origin=origin_of(site.url), secret="s3cret")
        await line.fetch(site, tmp_path / "x", token=token, size_bytes=len(DATA), sha256=sha256(DATA))
        assert {one.authorization for one in site.asked(PATH)} == {"Bearer s3cret"}
        assert {one.authorization for one in elsewhere.seen} == {""}
        assert {one.authorization for one in site.asked("/back")} == {""}


async def test_a_gated_file_says_what_is_needed(tmp_path: Path) -> None:
    with served(secret="s3cret") as (site, _, line):
        with pytest.raises(Failure, match="hf_token_file") as caught:
            await line.fetch(site, tmp_path / "x")
        assert caught.value.code == "source.needs_token"
        assert list(tmp_path.iterdir()) == []


REFUSED = "the source leads to an address that is not public, or not over https"


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://169.254.169.254/latest/meta-data",
        "https://127.0.0.1:1/x",
        "https://localhost:1/x",
        "https://[::1]:1/x",
        "https://[::ffff:10.0.0.1]/x",
        "https://10.1.2.3/x",
        "https://2130706433/x",
        "http://models.example/x",
        "ftp://models.example/x",
        "file:///etc/passwd",
        "https://user:word@models.example/x",
    ],
)
async def test_a_redirect_to_what_is_not_public_is_refused_with_the_same_words(tmp_path: Path, target: str) -> None:
    with served(location=target) as (site, _, line):
        with pytest.raises(Failure) as caught:
            await line.fetch(site, tmp_path / "x")
        assert (caught.value.code, caught.value.message) == ("source.not_allowed", REFUSED)
        assert list(tmp_path.iterdir()) == []


async def test_a_circle_of_redirects_ends(tmp_path: Path) -> None:
    with served(location=PATH) as (site, _, line):
        with pytest.raises(Failure) as caught:
            await line.fetch(site, tmp_path / "x")
        assert caught.value.code == "source.unreachable"
        assert len(site.seen) == QUICK.redirects + 1


# -- any order of faults --------------------------------------------------------------------------------------------

FAULTS = st.fixed_dictionaries(
    {
        "knows_ranges": st.booleans(),
        "minds_if_range": st.booleans(),
        "is_chunked": st.booleans(),
        "etag": st.sampled_from([None, "", 'W/"w"', '"constant"']),
        "cuts": st.integers(0, 3),
        "cut_after": st.integers(0, 12_000),
    }
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=FAULTS, second=FAULTS, stop_at=st.integers(0, 60_000), is_new=st.booleans())
def test_whatever_breaks_and_changes_the_file_is_right_or_there_is_a_failure(
    tmp_path: Path, first: dict, second: dict, stop_at: int, is_new: bool
) -> None:
    """A download under some faults, cancelled somewhere, gone on with under others, of a file known by its digest."""
    place = tmp_path / "x"
    for left in tmp_path.iterdir():
        left.unlink()

    async def run() -> None:
        with served(**first) as (site, thing, line):
            running = asyncio.ensure_future(line.fetch(site, place, sha256=sha256(DATA)))
            await trees.until(lambda: line.done >= stop_at or running.done())
            running.cancel()
            await asyncio.wait({running})
            for name, value in second.items():
                setattr(thing, name, value)
            thing.data = DATA[::-1] if is_new else DATA
            found: Failure | None = None
            try:
                await line.fetch(site, place, sha256=sha256(thing.data))
            except Failure as failure:
                found = failure
            assert found is not None or place.read_bytes() == thing.data
            assert found is None or found.code in {"source.unreachable", "source.digest_mismatch"}
            assert found is None or found.code == "source.unreachable" or not place.exists()

    asyncio.run(run())
