"""The line that is pasted on a machine to make it a node."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Failure
from core.joining import JoinLine, parse_line, secret_digest

PIN = "0123456789abcdef" * 2
SECRET = "A-_z" * 10 + "abc"

hosts = st.one_of(
    st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,60}[A-Za-z0-9])?", fullmatch=True),
    st.ip_addresses().map(str),
)
lines = st.builds(
    JoinLine,
    host=hosts,
    port=st.integers(1, 65534),
    token_id=st.from_regex(r"jtk_[0-9a-z]{20}", fullmatch=True),
    secret=st.from_regex(r"[A-Za-z0-9_-]{43}", fullmatch=True),
    pin=st.from_regex(r"[0-9a-f]{32}", fullmatch=True),
)


@given(lines)
def test_a_line_says_what_was_put_into_it_with_and_without_the_command(line: JoinLine) -> None:
    assert parse_line(line.text()) == line
    assert parse_line(f"  {line.text().removeprefix('slice node join ')}\n") == line
    assert line.join_port == line.port + 1


@given(lines, st.text(max_size=10))
def test_a_line_with_something_behind_it_is_refused_and_never_repeated(line: JoinLine, more: str) -> None:
    if not more.split():
        return
    with pytest.raises(Failure) as caught:
        parse_line(f"{line.text()}/{more}")
    assert caught.value.code == "node.join_line_invalid"
    assert line.secret not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "slice node join",
        f"10.0.0.1/jtk_1.{SECRET}.{PIN}",
        f"10.0.0.1:0/jtk_1.{SECRET}.{PIN}",
        f"10.0.0.1:65535/jtk_1.{SECRET}.{PIN}",
        f"10.0.0.1:7082/jtk_1.{SECRET[:-1]}.{PIN}",
        f"10.0.0.1:7082/jtk_1.{SECRET}.{PIN[:-1]}",
        f"10.0.0.1:7082/jtk_1.{SECRET}.{PIN.upper()}",
        f"10.0.0.1:7082/jtk_1.{SECRET}",
        f"https://10.0.0.1:7082/jtk_1.{SECRET}.{PIN}",
        f"a b:7082/jtk_1.{SECRET}.{PIN}",
        f"fe80::1:7082/jtk_1.{SECRET}.{PIN}",
    ],
)
def test_a_cut_or_changed_line_is_refused(text: str) -> None:
    with pytest.raises(Failure) as caught:
        parse_line(text)
    assert caught.value.code == "node.join_line_invalid"


def test_a_line_pins_an_authority_by_the_beginning_of_its_hash() -> None:
    line = parse_line(f"10.0.0.1:7082/jtk_1.{SECRET}.{PIN}")
    assert line.is_pinned(PIN + "f" * 32)
    assert not line.is_pinned("f" + PIN[1:] + "f" * 32)
    assert SECRET not in repr(line)


def test_only_a_hash_of_a_secret_is_stored() -> None:
    assert len(secret_digest(SECRET)) == 32
    assert secret_digest(SECRET) != secret_digest(SECRET[:-1])
