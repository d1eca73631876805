"""Answers end in OpenAI's words and without the stop string, whatever the engine leaves there and however it comes."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.contract import Dialect, Endpoint
from gateway.openai.finishing import FinishedStream, Finishing, finishing
from gateway.openai.stream import DONE, Ending, EventStream, ModelName
from tests.gateway.test_stream import cut

DIALECT = Dialect(
    paths={Endpoint.CHAT: "/v1/chat/completions"},
    finish_reasons={"stop_sequence": "stop", "": None},
    keeps_stop=True,
)


def wanted(*stops: str) -> Finishing:
    made = finishing(json.dumps({"stop": list(stops)}).encode(), DIALECT)
    assert made is not None
    return made


def stream_of(*stops: str) -> FinishedStream:
    return FinishedStream(EventStream(ModelName("m", "m")), wanted(*stops))


def chunk(text: str | None, finish: str | None = None, index: int = 0) -> bytes:
    choice = {"index": index, "delta": {} if text is None else {"content": text}, "finish_reason": finish}
    return b"data:" + json.dumps({"id": "x", "choices": [choice]}).encode() + b"\n\n"


def chunks_in(sent: bytes) -> list[dict]:
    *events, last = sent.split(b"\n\n")
    assert last == b""
    return [json.loads(event.removeprefix(b"data: ")) for event in events if event != b"data: [DONE]"]


def told(sent: bytes, index: int = 0) -> tuple[str, list[str]]:
    choices = [choice for one in chunks_in(sent) for choice in one["choices"] if choice["index"] == index]
    text = "".join(choice["delta"].get("content", "") for choice in choices)
    return text, [choice["finish_reason"] for choice in choices if choice["finish_reason"] is not None]


LETTERS = st.text(alphabet="abc", max_size=30)


@settings(deadline=None)
@given(
    st.lists(LETTERS), st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3), st.lists(st.integers(0))
)
def test_a_stream_says_all_but_its_stop_string(pieces: list[str], stops: list[str], at: list[int]) -> None:
    text = "".join(pieces)
    sent = b"".join(map(chunk, pieces)) + chunk("", "stop_sequence") + b"data:[DONE]\n\n"
    events = stream_of(*stops)
    got = b"".join(events.feed(piece) for piece in cut(sent, at)) + events.finish()
    ends = [stop for stop in stops if text.endswith(stop)]
    assert told(got) == (text[: len(text) - max(map(len, ends), default=0)], ["stop"])
    assert got.endswith(DONE)
    assert events.ending() is Ending.DONE


@settings(deadline=None)
@given(LETTERS, st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_no_more_is_held_back_than_may_begin_a_stop_string(text: str, stops: list[str]) -> None:
    events = stream_of(*stops)
    passed = told(b"".join(events.feed(chunk(letter)) for letter in text))[0]
    held = text[len(passed) :]
    assert text == passed + held
    assert any(stop.startswith(held) for stop in stops)


@settings(deadline=None)
@given(LETTERS, st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3))
def test_nothing_is_lost_when_the_engine_breaks_off(text: str, stops: list[str]) -> None:
    events = stream_of(*stops)
    passed = b"".join(events.feed(chunk(letter)) for letter in text)
    assert told(passed + events.separator())[0] == text


def test_what_is_held_comes_before_an_error() -> None:
    events = stream_of("bcd")
    passed = events.feed(chunk("ab")) + events.feed(b'data:{"error":{"message":"x"}}\n\n')
    assert told(passed) == ("ab", [])
    assert events.engine_error == b'{"error":{"message":"x"}}'
    assert events.separator() == b""


def test_each_choice_has_its_own_end() -> None:
    events = stream_of("xy")
    sent = chunk("ax", index=0) + chunk("bx", index=1) + chunk("y", "stop_sequence", 1) + chunk("z", "length", 0)
    passed = events.feed(sent)
    assert told(passed, 0) == ("axz", ["length"])
    assert told(passed, 1) == ("b", ["stop"])


def test_a_reason_that_is_none_goes_on() -> None:
    passed = stream_of().feed(chunk("a", "") + chunk("b", "stop_sequence"))
    assert told(passed) == ("ab", ["stop"])


def test_a_stop_string_at_the_limit_ended_the_answer() -> None:
    assert told(stream_of("b").feed(chunk("a") + chunk("b", "length"))) == ("a", ["stop"])


def test_what_is_no_chunk_passes() -> None:
    sent = b': ping\n\ndata: {"choices": [], "usage": {}}\n\ndata: nonsense\n\nevent: x\r\ndata: []\r\n\r\n'
    got = stream_of("a").feed(sent)
    assert got == b': ping\n\ndata: {"choices":[],"usage":{}}\n\ndata: nonsense\n\nevent: x\ndata: []\n\n'


def test_a_stream_that_is_only_its_end_stays_that() -> None:
    assert stream_of("a").feed(b"data:[DONE]\n\n") == DONE


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"message": {"content": "one."}, "finish_reason": "stop_sequence"}, "one"),
        ({"text": "one.", "finish_reason": "stop_sequence"}, "one"),
        ({"text": ".", "finish_reason": "stop_sequence"}, ""),
        ({"text": "one. two", "finish_reason": "eos"}, "one. two"),
        ({"message": {"content": None, "tool_calls": []}, "finish_reason": "stop_sequence"}, None),
    ],
    ids=["chat", "completion", "nothing else", "not at its end", "a call"],
)
def test_a_whole_answer_is_cut_too(choice: dict, expected: str | None) -> None:
    (found,) = json.loads(wanted(".").whole(json.dumps({"choices": [choice]}).encode()))["choices"]
    assert (found["message"]["content"] if "message" in found else found["text"]) == expected
    assert found["finish_reason"] == ("eos" if expected == "one. two" else "stop")


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[]", b'{"data": 1.50}', b'{"choices": 7}'])
def test_what_is_no_answer_stays_as_it_is(body: bytes) -> None:
    assert wanted(".").whole(body) == body


@pytest.mark.parametrize("stop", [None, 5, [5], "", [], [""]])
def test_a_stop_that_is_no_text_cuts_nothing(stop: object) -> None:
    made = finishing(json.dumps({"stop": stop}).encode(), DIALECT)
    assert made is not None
    assert made.stops == ()


def test_an_engine_that_ends_as_openai_s_is_left_alone() -> None:
    assert finishing(b'{"stop": "a"}', Dialect(paths={})) is None
