"""Tokens read, hidden and estimated; rows of visits. Pure tables and properties."""

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.contract import Dialect, Endpoint
from core.states import Outcome
from gateway.app import CLIENT_GONE, CLIENT_STALLED
from gateway.ollama.exchange import Exchange
from gateway.openai import requests
from gateway.openai.stream import Ending, EventStream, ModelName
from gateway.table import KeyEntry, Route, Target
from gateway.usage import counts
from gateway.usage.counts import Counts
from gateway.usage.row import Rows, outcome, plain
from gateway.visit import Tally, Visit
from gateway.words import words
from tests.gateway.scripted import chat_chunk

DONE = b"data: [DONE]\n\n"
TELLING = Dialect(paths={}, tells_stream_usage=True)
A_KEY = KeyEntry(kid="k1", digest=b"", project="p", expires_unix_s=0, is_revoked=False)
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def usage_event(given_: int, made: int, *, newline: bytes = b"\n", space: bytes = b" ") -> bytes:
    usage = {"prompt_tokens": given_, "completion_tokens": made, "prompt_tokens_details": {"cached_tokens": 1}}
    value = {"id": "c1", "choices": [], "usage": usage}
    return b"data:" + space + json.dumps(value).encode() + newline * 2


PASSED = st.one_of(
    st.text().map(chat_chunk),
    st.text(alphabet='"usage":{} choices[],\\').map(chat_chunk),
    st.sampled_from(
        [
            b": ping\n\n",
            b"\n",
            b'data: {"choices":[{"text":"x"}],"usage":null}\r\n\r\n',
            b'data: {"choices":[{"text":"x"}],"usage":{"prompt_tokens":7,"completion_tokens":1}}\n\n',
            b'data: {"choices":[],"prompt_filter_results":[]}\n\n',
            b'data: {"choices":[],"usage":{"prompt_tokens":-1}}\n\n',
            b'data: {"choices":[],"usage":"none"}\n\n',
        ]
    ),
)
HIDDEN = st.builds(
    usage_event,
    st.integers(0, 9),
    st.integers(0, 9),
    newline=st.sampled_from([b"\n", b"\r\n"]),
    space=st.sampled_from([b"", b" "]),
)


def pieces(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(one, len(data)) for one in at), len(data)]
    return [data[low:high] for low, high in pairwise(edges)]


def passed(events: EventStream, cut: list[bytes]) -> bytes:
    return b"".join(events.feed(piece) for piece in cut) + events.finish()


@settings(deadline=None)
@given(st.lists(st.tuples(PASSED, st.none() | HIDDEN)), st.lists(st.integers(0, 2000)))
def test_a_client_that_did_not_ask_gets_every_byte_but_the_usage_however_it_is_cut(
    lines: list[tuple[bytes, bytes | None]], at: list[int]
) -> None:
    sent = b"".join(one + (hidden or b"") for one, hidden in lines) + DONE
    wanted = b"".join(one for one, _ in lines) + DONE
    events = EventStream(ModelName("m", "m"), hides_usage=True)
    assert passed(events, pieces(sent, at)) == wanted
    assert events.ending() is Ending.DONE


def test_a_stream_cut_at_every_byte_is_the_same_stream() -> None:
    shown = chat_chunk("a") + chat_chunk("", finish="stop")
    sent = shown + usage_event(5, 3) + DONE
    for step in (1, 2, 3, 7, len(sent)):
        events = EventStream(ModelName("m", "m"), hides_usage=True)
        assert passed(events, pieces(sent, list(range(0, len(sent), step)))) == shown + DONE
        assert (events.counts, events.chunks) == (Counts(5, 3, 1), 2)


@settings(deadline=None)
@given(st.lists(st.one_of(PASSED, HIDDEN)), st.lists(st.integers(0, 2000)))
def test_a_client_that_asked_gets_every_byte(lines: list[bytes], at: list[int]) -> None:
    sent = b"".join(lines)
    assert passed(EventStream(ModelName("m", "m")), pieces(sent, at)) == sent


def test_usage_in_the_last_piece_of_an_answer_is_read_and_left_there() -> None:
    last = b'data: {"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\n'
    events = EventStream(ModelName("m", "m"), hides_usage=True)
    assert passed(events, [last]) == last
    assert events.counts == Counts(7, 2)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}', Counts(3, 4)),
        (b'{"usage":{"prompt_tokens":3}}', Counts(3, 0)),
        (b'{"usage":{"prompt_tokens":3,"prompt_tokens_details":{"cached_tokens":2}}}', Counts(3, 0, 2)),
        (b'{"usage":{"prompt_tokens":3,"prompt_tokens_details":{"cached_tokens":null}}}', Counts(3, 0)),
        (b'{"choices":[{"usage":{"prompt_tokens":3}}]}', None),
        (b'{"usage":{"prompt_tokens":-3}}', None),
        (b'{"usage":{"prompt_tokens":99999999999999999999}}', None),
        (b'{"usage":null}', None),
        (b"{}", None),
        (b"[]", None),
        (b"", None),
        (b"\xff", None),
        (b'{"data":[' + b"0.1," * 20_000 + b'0],"usage":{"prompt_tokens":8,"total_tokens":8}}', Counts(8, 0)),
        (b'{"usage":{"prompt_tokens":8,"total_tokens":8},"data":[' + b"0.1," * 20_000 + b"0]}", Counts(8, 0)),
        (b'{"data":[' + b"0.1," * 20_000 + b"0]}", None),
    ],
    ids=lambda value: str(value)[:60],
)
def test_the_tokens_of_a_whole_answer_are_read_where_it_tells_them(body: bytes, expected: Counts | None) -> None:
    assert counts.of_answer(body) == expected


def test_what_an_engine_did_not_tell_is_estimated_and_marked() -> None:
    tally = Tally()
    counts.note(tally, None, b'{"messages":"' + b"x" * 400 + b";base64," + b"A" * 100_000 + b'"}', 17)
    assert tally.is_estimated
    assert (tally.input_tokens, tally.output_tokens, tally.cached_tokens) == (103, 17, 0)
    counts.note(tally := Tally(), Counts(5, 6, 2), b"{}", 17)
    assert (tally.input_tokens, tally.output_tokens, tally.cached_tokens, tally.is_estimated) == (5, 6, 2, False)


@pytest.mark.parametrize(
    ("body", "is_hidden", "options"),
    [
        (b'{"model":"m","prompt":"x","stream":true} \n', True, {"include_usage": True}),
        (b'{"model":"m","prompt":"x","stream":true,"stream_options":null}', True, {"include_usage": True}),
        (
            b'{"model":"m","prompt":"x","stream":true,"stream_options":{"a":1,"include_usage":false,"continuous_usage_stats":true}}',
            True,
            {"a": 1, "include_usage": True},
        ),
        (
            b'{"model":"m","prompt":"x","stream":true,"stream_options":{"include_usage":true}}',
            False,
            {"include_usage": True},
        ),
        (b'{"model":"m","prompt":"x","stream":true,"stream_options":{"include_usage":7}}', False, {"include_usage": 7}),
        (b'{"model":"m","prompt":"x"}', False, None),
    ],
    ids=["not asked", "null", "declined", "asked", "nonsense", "no stream"],
)
def test_an_engine_is_asked_for_usage_exactly_when_a_streams_client_did_not_ask(
    body: bytes, is_hidden: bool, options: object
) -> None:
    asked = requests.asked(Endpoint.COMPLETIONS, body)
    said = words(Endpoint.COMPLETIONS, body, asked, a_route(), TELLING)
    assert json.loads(said.body).get("stream_options") == options
    assert (json.loads(said.body) | {"stream_options": 0}) == (json.loads(body) | {"stream_options": 0})
    assert passed(said.events(ModelName("m", "m")), [usage_event(1, 1)]) == (b"" if is_hidden else usage_event(1, 1))


def test_an_engine_that_does_not_know_the_option_is_not_asked() -> None:
    body = b'{"model":"m","prompt":"x","stream":true}'
    asked = requests.asked(Endpoint.COMPLETIONS, body)
    assert words(Endpoint.COMPLETIONS, body, asked, a_route(), Dialect(paths={})).body == body
    assert words(Endpoint.COMPLETIONS, body, asked, a_route(), None).body == body


def test_an_engine_that_speaks_ollamas_api_tells_in_its_last_line() -> None:
    body = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}'
    events = Exchange(Endpoint.CHAT, body, "m", "m").events(ModelName("m", "m"))
    events.feed(b'{"message":{"content":"a"}}\n')
    assert (events.counts, events.chunks) == (None, 1)
    events.feed(b'{"message":{"content":""},"done":true,"prompt_eval_count":12,"eval_count":-4}\n')
    assert events.counts == Counts(12, 0)


@pytest.mark.parametrize(
    ("tally", "expected"),
    [
        (Tally(status=200, first_byte_s=0.1), Outcome.ANSWERED),
        (Tally(status=200), Outcome.ANSWERED),
        (Tally(), Outcome.GONE),
        (Tally(status=200, first_byte_s=0.1, code="door.engine_failed"), Outcome.CUT),
        (Tally(status=502, first_byte_s=0.1, code="door.engine_failed"), Outcome.FAILED),
        (Tally(status=404, code="registry.model_not_found"), Outcome.REFUSED),
        (Tally(status=429, code="door.engine_busy"), Outcome.REFUSED),
        (Tally(status=503, code="door.not_ready"), Outcome.FAILED),
        (Tally(code=CLIENT_GONE), Outcome.GONE),
        (Tally(status=200, first_byte_s=0.1, code=CLIENT_GONE, is_whole=True), Outcome.ANSWERED),
        (Tally(status=200, first_byte_s=0.1, code=CLIENT_STALLED), Outcome.GONE),
    ],
    ids=lambda value: getattr(value, "code", value) or "none",
)
def test_how_a_request_ended_is_one_word(tally: Tally, expected: Outcome) -> None:
    assert outcome(tally) is expected


def test_a_row_tells_who_asked_what_of_whom_and_when() -> None:
    visit = a_visit((b"x-request-id", b"r-\x01\xff"), (b"traceparent", f"00-{TRACE}-{'a' * 16}-01".encode()))
    visit.caller = A_KEY
    visit.tally = Tally(
        endpoint="chat",
        model="alias",
        is_stream=True,
        route=a_route(),
        target=Target(replica_id="rep_a", incarnation=1, host="h", port=1, engine_key=""),
        attempts=2,
        status=200,
        first_byte_s=0.25,
        input_tokens=5,
        output_tokens=6,
        cached_tokens=1,
    )
    row = Rows("seed1234").of(visit, now_unix_s=1000.0, now_s=12.0)
    assert row is not None
    assert (row.row_id, row.request_id, row.trace_id) == ("seed1234-1", "r-?ÿ", TRACE)
    assert (row.kid, row.project, row.public_name, row.arm) == ("k1", "p", "alias", "m")
    assert (row.model, row.version, row.deployment, row.replica_id) == ("model", 3, "dep", "rep_a")
    assert (row.endpoint, row.is_stream, row.outcome, row.status, row.attempts) == ("chat", True, "answered", 200, 2)
    assert (row.input_tokens, row.output_tokens, row.cached_tokens, row.is_estimated) == (5, 6, 1, False)
    assert (row.started_unix_us, row.first_byte_us, row.total_us) == (998_000_000, 250_000, 2_000_000)


def test_lists_and_strangers_leave_no_row() -> None:
    rows, visit = Rows("seed1234"), a_visit()
    visit.tally.endpoint = "chat"
    assert rows.of(visit, now_unix_s=1000.0, now_s=12.0) is None
    visit.caller = A_KEY
    assert rows.of(visit, now_unix_s=1000.0, now_s=12.0) is not None
    visit.tally.endpoint = ""
    assert rows.of(visit, now_unix_s=1000.0, now_s=12.0) is None


@given(st.text())
def test_a_clients_text_is_short_and_printable(text: str) -> None:
    assert len(plain(text)) <= 128
    assert plain(text).isprintable()
    plain(text).encode()


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00-1-2-01",
        f"00-{'0' * 32}-{'a' * 16}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{'a' * 16}-01",
        f"00-{TRACE.upper()}-{'a' * 16}-01",
        f"00-{TRACE}-{'a' * 16}",
    ],
)
def test_a_malformed_trace_is_replaced_by_one_of_its_own(value: str) -> None:
    visit = a_visit((b"traceparent", value.encode()))
    assert re.fullmatch("[0-9a-f]{32}", visit.trace_id)
    assert visit.trace_id not in value
    assert visit.trace_id == visit.trace_id


def test_two_requests_without_a_trace_get_two() -> None:
    assert a_visit().trace_id != a_visit().trace_id


def a_visit(*headers: tuple[bytes, bytes]) -> Visit:
    async def nothing(*_: object) -> None:
        raise AssertionError

    return Visit({"path": "/v1/x", "method": "POST", "headers": headers}, nothing, nothing, 10.0)  # type: ignore[arg-type]


def a_route() -> Route:
    return Route(
        public_name="m",
        deployment="dep",
        served_name="m",
        engine="fake",
        endpoints=frozenset({"chat"}),
        targets=(),
        waiting="",
        created_unix_s=0,
        model="model",
        version=3,
    )
