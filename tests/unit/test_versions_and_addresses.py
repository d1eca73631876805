"""Versions of programs in their order, and which addresses are a machine's own."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.addresses import loopback_url
from core.errors import Failure
from core.versions import is_below, newest_first, version_key


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("0.9", "0.10"),
        ("0.33.0-rc2", "0.33.0"),
        ("0.33.0rc1", "0.33.0rc2"),
        ("0.33.0", "0.33.0.post1"),
        ("b8841", "b11865"),
        ("2026.9.1", "2026.10.11549"),
        ("3.3", "3.3.7"),
    ],
)
def test_the_older_version_is_below_the_newer(older: str, newer: str) -> None:
    assert is_below(older, newer)
    assert not is_below(newer, older)
    assert newest_first([older, newer, older]) == [newer, older]


@pytest.mark.parametrize("same", [("0.33", "0.33.0"), ("v1.2", "1.2.0")])
def test_zeros_and_letters_before_a_version_do_not_count(same: tuple[str, str]) -> None:
    assert version_key(same[0]) == version_key(same[1])


def test_a_version_without_numbers_is_below_nothing() -> None:
    assert not is_below("nightly", "9.9")


@given(st.lists(st.text(max_size=20)))
def test_any_texts_have_an_order(texts: list[str]) -> None:
    ordered = newest_first(texts)
    assert sorted(ordered) == sorted(set(texts))
    for first, second in itertools.pairwise(ordered):
        assert version_key(first) >= version_key(second)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("http://127.0.0.1:11434", "http://127.0.0.1:11434"),
        (" http://LOCALHOST:11434/ ", "http://localhost:11434"),
        ("http://[::1]:80", "http://[::1]:80"),
        ("http://127.9.9.9:1", "http://127.9.9.9:1"),
    ],
)
def test_a_loopback_address_has_one_form(text: str, form: str) -> None:
    assert loopback_url(text) == form


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:11434",
        "http://127.0.0.1",
        "https://127.0.0.1:1",
        "http://10.0.0.1:11434",
        "http://localhost.evil.test:1",
        "http://127.0.0.1@evil.test:1",
        "http://user:word@127.0.0.1:1",
        "http://127.0.0.1:1/api",
        "http://127.0.0.1:1?x",
        "http://127.0.0.1:99999",
        "http://0x7f.1:1",
        "http://[::ffff:10.0.0.1]:1",
    ],
)
def test_what_is_not_plainly_loopback_is_refused(text: str) -> None:
    with pytest.raises(Failure) as caught:
        loopback_url(text)
    assert caught.value.code == "request.invalid_field"
