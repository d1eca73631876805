"""Engine logs: cleaned tails and followed streams."""

import asyncio
import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent import logs
from tests.node_agent import trees


@pytest.mark.parametrize(
    ("line", "cleaned"),
    [
        ("plain", "plain"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("bell\x07 and \x9bnull\x00", "bell and null"),
        ("tab\tstays", "tab\tstays"),
        ("x" * 600, "x" * 500),
    ],
    ids=["plain", "colour", "title", "controls", "tab", "long"],
)
def test_a_line_for_people_has_no_control_characters(line: str, cleaned: str) -> None:
    assert logs.cleaned(line) == cleaned


@given(st.text())
def test_no_text_keeps_an_escape(text: str) -> None:
    assert not {"\x1b", "\x00", "\x9b"} & set(logs.cleaned(text))


def test_the_last_lines_of_this_spawn_only(tmp_path: Path) -> None:
    file = tmp_path / "engine.log"
    file.write_text("old\n")
    since = logs.size_of(file)
    with file.open("a") as stream:
        stream.write("\n".join(f"line {number}" for number in range(30)) + "\n")
    assert logs.last_lines(file, 2, since) == ("line 28", "line 29")
    assert "old" not in logs.last_lines(file, 100, since)
    assert logs.last_lines(tmp_path / "none", 5) == ()


@given(
    lines=st.lists(st.integers(0, 9).map(lambda size: b"x" * size), max_size=12),
    is_ended=st.booleans(),
    count=st.integers(0, 15),
)
def test_the_offset_of_the_last_lines_is_that_of_a_plain_split(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], count: int, *, is_ended: bool
) -> None:
    file = tmp_path_factory.mktemp("log") / "engine.log"
    data = b"\n".join(lines) + (b"\n" if is_ended and lines else b"")
    file.write_bytes(data)
    wanted = b"".join(data.splitlines(keepends=True)[-count:]) if count else b""
    assert data[logs.offset_of_last_lines(file, count) :] == wanted


def test_the_offset_is_right_across_blocks(tmp_path: Path) -> None:
    file = tmp_path / "engine.log"
    data = b"\n".join(b"%06d" % number for number in range(40_000)) + b"\n"
    file.write_bytes(data)
    assert data[logs.offset_of_last_lines(file, 20_000) :].startswith(b"020000\n")


async def test_chunks_are_bounded_and_a_plain_read_ends(tmp_path: Path) -> None:
    file = tmp_path / "engine.log"
    file.write_bytes(b"y" * 200_000)
    sizes = [len(chunk) async for chunk in logs.chunks(file, 5, follow=False, ended=asyncio.Event())]
    assert sum(sizes) == 200_000
    assert max(sizes) <= logs.CHUNK_BYTES


async def test_a_follower_sees_growth_and_survives_the_cut(tmp_path: Path) -> None:
    file, ended, heard = tmp_path / "engine.log", asyncio.Event(), bytearray()
    file.write_bytes(b"before\n" * 10)

    async def follow() -> None:
        async for chunk in logs.chunks(file, 1, follow=True, ended=ended):
            heard.extend(chunk)

    following = asyncio.ensure_future(follow())
    with contextlib.suppress(asyncio.CancelledError):
        await trees.until(lambda: heard == b"before\n")
        file.write_bytes(b"cut\n")
        await trees.until(lambda: heard.endswith(b"cut\n"))
    ended.set()
    await following
