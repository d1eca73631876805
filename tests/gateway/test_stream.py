"""Properties of the pure parts of a stream: whole bytes whatever the cuts, names put back, endings told."""

import json
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.openai.stream import Ending, EventStream, ModelName
from tests.gateway.scripted import chat_chunk

DONE = b"data: [DONE]\n\n"
LINES = st.lists(
    st.one_of(
        st.text().map(lambda text: chat_chunk(text, model="served/m.gguf")),
        st.sampled_from([b": ping\n\n", b"event: a\r\ndata: b\r\n\r\n", b"\n", DONE, b'data: {"error":null}\n\n']),
        st.text(alphabet='"model:served/.gguf\\ {}').map(lambda text: b"data: " + json.dumps(text).encode() + b"\n\n"),
    )
)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(one, len(data)) for one in at), len(data)]
    return [data[low:high] for low, high in pairwise(edges)]


def passed(events: EventStream, pieces: list[bytes]) -> bytes:
    return b"".join(events.feed(piece) for piece in pieces) + events.finish()


@settings(deadline=None)
@given(LINES, st.lists(st.integers(0, 2000)), st.binary(max_size=20).filter(lambda data: b"error" not in data))
def test_a_stream_passes_byte_for_byte_however_it_is_cut(lines: list[bytes], at: list[int], rest: bytes) -> None:
    sent = b"".join(lines) + rest
    assert passed(EventStream(ModelName("m", "m")), cut(sent, at)) == sent


@settings(deadline=None)
@given(LINES, st.lists(st.integers(0, 2000)))
def test_the_public_name_is_put_back_however_the_stream_is_cut(lines: list[bytes], at: list[int]) -> None:
    sent = b"".join(lines)
    got = passed(EventStream(ModelName("served/m.gguf", "public")), cut(sent, at))
    assert got == sent.replace(b'"model":"served/m.gguf"', b'"model":"public"')


@settings(deadline=None)
@given(LINES, st.lists(st.integers(0, 2000)))
def test_what_is_passed_before_the_end_ends_with_whole_lines(lines: list[bytes], at: list[int]) -> None:
    events = EventStream(ModelName("m", "m"))
    for piece in cut(b"".join(lines), at):
        assert events.feed(piece)[-1:] in (b"", b"\n")


@settings(deadline=None)
@given(st.text(), st.lists(st.integers(0, 2000)))
def test_text_that_looks_like_an_error_or_a_name_is_left_alone(text: str, at: list[int]) -> None:
    sent = chat_chunk(text + '"model":"served" \ndata: {"error":{"message":1}}')
    events = EventStream(ModelName("served", "public"))
    assert passed(events, cut(sent, at)) == sent
    assert events.engine_error is None


@settings(deadline=None)
@example([chat_chunk("0")], [len(chat_chunk("0")) + len(b'data: {"error":{"message":"x"}}\n\nd')])
@given(LINES, st.lists(st.integers(0, 3000)))
def test_an_error_event_is_caught_and_nothing_after_it_passes(lines: list[bytes], at: list[int]) -> None:
    before, error = b"".join(lines), b'{"error":{"message":"x"}}'
    if before and not before.endswith(b"\n"):
        before += b"\n"
    events = EventStream(ModelName("m", "m"))
    assert passed(events, cut(before + b"data: " + error + b"\n\n" + DONE, at)) == before
    assert events.engine_error == error


@pytest.mark.parametrize(
    "error",
    [
        b'{"id":"x","error":{"code":502,"message":"died"},"choices":[{"index":0,"finish_reason":"error"}]}',
        b'{"type":"error","error":{"message":"secret"}}',
        b'{"error":"died","error_type":"generation"}',
        b'{"object":"error","message":"died"}',
    ],
)
def test_an_error_is_seen_wherever_it_stands_in_its_event(error: bytes) -> None:
    events = EventStream(ModelName("m", "m"))
    assert passed(events, [chat_chunk("x") + b"data: " + error + b"\r\n\r\n" + DONE]) == chat_chunk("x")
    assert events.engine_error == error


@pytest.mark.parametrize(
    "event",
    [
        b'{"id":"x","error": null,"choices":[]}',
        b'{"id":"x","choices":[{"finish_reason":"error","error":{"message":"of a part"}}]}',
        b'{"id":"x","content":"\\"error\\":{}"}',
        b'{"id":"x","error":{"cut',
    ],
)
def test_an_event_that_only_mentions_an_error_passes(event: bytes) -> None:
    events = EventStream(ModelName("m", "m"))
    assert passed(events, [b"data: " + event + b"\n\n"]) == b"data: " + event + b"\n\n"
    assert events.engine_error is None


@pytest.mark.parametrize(
    "sent, ending, separator",
    [
        (b"", Ending.CUT, b""),
        (chat_chunk("x"), Ending.CUT, b""),
        (chat_chunk("x", finish="stop"), Ending.FINISHED, b""),
        (chat_chunk("x", finish="stop")[:-1], Ending.FINISHED, b"\n"),
        (chat_chunk("x") + DONE, Ending.DONE, b""),
        (chat_chunk("x") + b"data:[DONE]", Ending.DONE, b"\n\n"),
        (chat_chunk("data: [DONE]"), Ending.CUT, b""),
        (chat_chunk("x", finish=""), Ending.CUT, b""),
        (chat_chunk("x" * 9000, finish="length"), Ending.FINISHED, b""),
    ],
)
def test_the_ending_is_seen_in_the_last_lines(sent: bytes, ending: Ending, separator: bytes) -> None:
    events = EventStream(ModelName("m", "m"))
    passed(events, [sent])
    assert (events.ending(), events.separator()) == (ending, separator)


@pytest.mark.parametrize(
    "line",
    [
        b'data: {"id":"c","model":"m","error":{"message":"it died"},"choices":[]}\n\n',
        b'data: {"type":"error","error":{"message":"it died"}}\n\n',
    ],
    ids=["in a chunk", "behind a type"],
)
def test_an_error_is_caught_wherever_it_stands_in_its_event(line: bytes) -> None:
    events = EventStream(ModelName("m", "m"))
    assert events.feed(line) == b""
    assert events.engine_error is not None
    assert b"it died" in events.engine_error


def test_a_text_that_speaks_of_an_error_passes() -> None:
    line = b'data: {"choices":[{"delta":{"content":"\\"error\\": {"}}],"error":null}\n\n'
    events = EventStream(ModelName("m", "m"))
    assert events.feed(line) == line
    assert events.engine_error is None
