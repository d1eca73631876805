"""Which bytes have come and what an answer means: tables and properties, no network."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.files import ranges
from node_agent.files.ranges import Meaning

RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12)


def bytes_of(some: list[tuple[int, int]]) -> set[int]:
    return {at for start, end in some for at in range(start, end)}


@given(RANGES)
def test_joined_ranges_are_the_same_bytes_sorted_and_apart(some: list[tuple[int, int]]) -> None:
    out = ranges.joined(some)
    assert bytes_of(list(out)) == bytes_of(some)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(out))
    assert all(start < end for start, end in out)


@given(RANGES, st.integers(0, 70), st.integers(1, 9))
def test_what_is_missing_is_what_nobody_brought_in_pieces_that_are_small_enough(
    some: list[tuple[int, int]], size: int, piece: int
) -> None:
    gaps = ranges.missing(some, size)
    assert bytes_of(list(gaps)) == set(range(size)) - bytes_of(some)
    cut = list(ranges.pieces(gaps, piece))
    assert bytes_of(cut) == bytes_of(list(gaps))
    assert sum(end - start for start, end in cut) == len(bytes_of(cut))
    assert all(0 < end - start <= piece for start, end in cut)


@pytest.mark.parametrize(
    ("status", "content_range", "validator", "size", "known", "meaning"),
    [
        (206, "bytes 10-19/100", '"a"', 100, '"a"', Meaning.PART),
        (206, "bytes 10-14/100", '"a"', 100, '"a"', Meaning.PART),
        (206, "bytes 10-19/100", "", 100, '"a"', Meaning.PART),
        (206, "bytes 10-19/100", '"b"', 100, '"a"', Meaning.CHANGED),
        (206, "bytes 10-19/90", '"a"', 100, '"a"', Meaning.CHANGED),
        (206, "bytes 10-19/*", '"a"', 100, '"a"', Meaning.PART),
        (206, "bytes 0-19/100", '"a"', 100, '"a"', Meaning.WRONG),
        (206, "bytes 10-29/100", '"a"', 100, '"a"', Meaning.WRONG),
        (206, "bytes 10-9/100", '"a"', 100, '"a"', Meaning.WRONG),
        (206, "", '"a"', 100, '"a"', Meaning.WRONG),
        (206, "bytes 10-19/100\n", '"a"', 100, '"a"', Meaning.WRONG),
        (200, "", '"b"', 100, '"a"', Meaning.WHOLE),
        (416, "bytes */5", "", 100, '"a"', Meaning.CHANGED),
    ],
)
def test_an_answer_to_a_request_for_a_range_is_understood(
    status: int, content_range: str, validator: str, size: int, known: str, meaning: Meaning
) -> None:
    offer = ranges.meaning_of(
        status=status,
        content_range=content_range,
        length=None,
        validator=validator,
        asked=(10, 20),
        size=size,
        known=known,
    )
    assert offer.meaning is meaning


@given(st.text(max_size=40), st.integers(100, 599))
def test_any_head_has_a_meaning_and_a_part_is_never_outside_what_was_asked(content_range: str, status: int) -> None:
    offer = ranges.meaning_of(
        status=status, content_range=content_range, length=5, validator="", asked=(3, 8), size=None, known=""
    )
    assert offer.meaning in Meaning


@pytest.mark.parametrize(("tag", "kept"), [('"a"', '"a"'), ('W/"a"', ""), ("a", ""), ('""', ""), ("", "")])
def test_only_strong_validators_are_kept(tag: str, kept: str) -> None:
    assert ranges.strong(tag) == kept
