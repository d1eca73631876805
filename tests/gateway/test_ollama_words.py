"""Ollama's requests and answers as values: what an engine is asked, and how its chunks read to Ollama's clients."""

import contextlib
import itertools
import json
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.contract import Api, Dialect, Endpoint
from adapters.registry import adapter
from core.errors import Failure
from gateway.ollama_api import requests
from gateway.ollama_api.answers import Text, Vectors
from gateway.openai import requests as openai_requests
from gateway.visit import split_key
from tests.standins.specs import check

PNG = "iVBORw0KGgoAAAANSUhEUg=="
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "sum", "description": "adds", "parameters": SCHEMA}}
USER = {"role": "user", "content": "hi"}
PLAIN = Dialect(paths={})
KWARGS = Dialect(paths={}, takes_template_values=True)
OLLAMA = Dialect(paths={}, api=Api.OLLAMA)
STREAMING = {"stream": True, "stream_options": {"include_usage": True}}


class StillClock:
    """Always the same instant, and half a second more at each look at the other reading."""

    def __init__(self) -> None:
        self.looks = 0

    def now(self) -> datetime:
        return datetime(2026, 11, 25, 3, 30, 4, 240788, tzinfo=UTC)

    def monotonic(self) -> float:
        self.looks += 1
        return 10.0 + self.looks / 2


def asked(**fields: object) -> requests.Parsed:
    return requests.parsed(json.dumps({"model": "m:latest", **fields}).encode())


def chat(dialect: Dialect | None = PLAIN, **fields: object) -> dict:
    made = requests.chat(asked(**{"messages": [USER], **fields}), "m", dialect)
    openai_requests.asked(made.endpoint, made.body)
    return json.loads(made.body)


def generation(*, can_chat: bool = True, **fields: object) -> tuple[Endpoint, dict]:
    made = requests.generation(asked(**{"prompt": "hi", **fields}), "m", PLAIN, can_chat=can_chat)
    openai_requests.asked(made.endpoint, made.body)
    return made.endpoint, json.loads(made.body)


def test_a_conversation_with_tools_and_an_image_reads_so_to_an_engine() -> None:
    """The golden transcript of one request."""
    given_messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2+3 and this?", "images": [PNG]},
        {
            "role": "assistant",
            "thinking": "two sums",
            "content": "",
            "tool_calls": [
                {"function": {"name": "sum", "arguments": {"a": 2}}},
                {"id": "call_x", "function": {"name": "see", "arguments": {}}},
                {"function": {"name": "sum", "arguments": {"a": 3}}},
            ],
        },
        {"role": "tool", "tool_name": "sum", "content": "5"},
        {"role": "tool", "tool_call_id": "call_x", "content": "a cat"},
        {"role": "tool", "name": "sum", "content": "6"},
    ]
    options = {
        "temperature": 0.5,
        "top_k": 40,
        "min_p": 0.05,
        "seed": 7,
        "num_predict": 32,
        "stop": ["\n"],
        "repeat_penalty": 1.1,
        "num_ctx": 8192,
        "num_gpu": 99,
        "top_p": None,
    }
    wanted = asked(messages=given_messages, tools=[TOOL], format=SCHEMA, options=options, think=True, keep_alive="5m")
    made = requests.chat(wanted, "m", KWARGS)
    assert wanted.ignored == ["num_ctx", "num_gpu"]
    assert json.loads(made.body) == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "2+3 and this?"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                ],
            },
            {
                "role": "assistant",
                "content": "",
                "reasoning_content": "two sums",
                "tool_calls": [
                    {"id": "call_0", "type": "function", "function": {"name": "sum", "arguments": '{"a": 2}'}},
                    {"id": "call_x", "type": "function", "function": {"name": "see", "arguments": "{}"}},
                    {"id": "call_2", "type": "function", "function": {"name": "sum", "arguments": '{"a": 3}'}},
                ],
            },
            {"role": "tool", "content": "5", "tool_call_id": "call_0"},
            {"role": "tool", "content": "a cat", "tool_call_id": "call_x"},
            {"role": "tool", "content": "6", "tool_call_id": "call_2"},
        ],
        "temperature": 0.5,
        "top_k": 40,
        "min_p": 0.05,
        "seed": 7,
        "stop": ["\n"],
        "repeat_penalty": 1.1,
        "repetition_penalty": 1.1,
        "max_tokens": 32,
        **STREAMING,
        "chat_template_kwargs": {"enable_thinking": True},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA},
        },
        "tools": [TOOL],
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, STREAMING),
        ({"stream": None}, STREAMING),
        ({"stream": False}, {}),
        ({"format": "json", "stream": False}, {"response_format": {"type": "json_object"}}),
        ({"format": "", "stream": False}, {}),
        ({"tools": [], "stream": False}, {}),
        ({"options": {"num_predict": -1}, "stream": False}, {}),
        ({"options": {"num_predict": 0}, "stream": False}, {}),
        ({"logprobs": True, "top_logprobs": 2, "stream": False}, {"logprobs": True, "top_logprobs": 2}),
    ],
    ids=str,
)
def test_fields_of_a_chat(fields: dict, expected: dict) -> None:
    assert chat(**fields) == {"model": "m", "messages": [USER], **expected}


@pytest.mark.parametrize(
    ("dialect", "think", "expected"),
    [
        (KWARGS, True, {"chat_template_kwargs": {"enable_thinking": True}}),
        (KWARGS, False, {"chat_template_kwargs": {"enable_thinking": False}}),
        (KWARGS, "low", {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": True}}),
        (PLAIN, "max", {"reasoning_effort": "high"}),
        (PLAIN, True, {}),
        (PLAIN, False, {}),
        (None, False, {}),
        (OLLAMA, False, {"reasoning_effort": "none"}),
        (OLLAMA, True, {}),
        (OLLAMA, "max", {"reasoning_effort": "xhigh"}),
        (KWARGS, "", {}),
    ],
)
def test_thinking_is_asked_of_an_engine_in_its_own_words(dialect: Dialect, think: object, expected: dict) -> None:
    assert chat(dialect, think=think, stream=False) == {"model": "m", "messages": [USER], **expected}


def test_the_engines_whose_template_values_are_known_say_so() -> None:
    assert {name for name in ("llamacpp", "vllm", "ollama", "fake") if adapter(name).dialect.takes_template_values} == {
        "llamacpp",
        "vllm",
    }


@pytest.mark.parametrize(
    ("can_chat", "fields", "endpoint", "content"),
    [
        (True, {}, Endpoint.CHAT, [USER]),
        (True, {"system": "s"}, Endpoint.CHAT, [{"role": "system", "content": "s"}, USER]),
        (True, {"raw": True}, Endpoint.COMPLETIONS, "hi"),
        (True, {"suffix": "ho"}, Endpoint.COMPLETIONS, "hi"),
        (False, {}, Endpoint.COMPLETIONS, "hi"),
    ],
)
def test_a_generation_is_a_chat_unless_no_template_is_to_wrap_it(
    can_chat: bool, fields: dict, endpoint: Endpoint, content: object
) -> None:
    found, body = generation(can_chat=can_chat, **fields)
    assert found is endpoint
    assert body["messages" if endpoint is Endpoint.CHAT else "prompt"] == content
    assert body.get("suffix") == fields.get("suffix")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"template": "{{ .Prompt }}"}, "template"),
        ({"context": [1, 2]}, "context"),
        ({"raw": True, "system": "s"}, "system"),
        ({"raw": True, "images": [PNG]}, "images"),
        ({"raw": True, "format": "json"}, "format"),
        ({"format": "yaml"}, "format"),
        ({"format": 1}, "format"),
        ({"images": ["https://x/y.png"]}, "images"),
        ({"think": "hard"}, "think"),
        ({"options": {"num_predict": "many"}}, "num_predict"),
        ({"options": {"temperature": 9}}, "temperature"),
        ({"options": []}, "options"),
        ({"model": ""}, "model"),
        ({"model": 1}, "model"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_its_name(fields: dict, param: str) -> None:
    with pytest.raises(Failure) as refused:
        generation(**fields)
    assert refused.value.param == param


@pytest.mark.parametrize("arguments", ["[1]", '"text"', "null"])
def test_arguments_that_are_no_object_are_refused(arguments: str) -> None:
    call = {"function": {"name": "f", "arguments": json.loads(arguments)}}
    with pytest.raises(Failure, match="JSON object"):
        chat(messages=[{"role": "assistant", "tool_calls": [call]}])


def test_arguments_may_be_the_text_of_an_object() -> None:
    call = {"function": {"name": "f", "arguments": '{"a":1}'}}
    found = chat(messages=[{"role": "assistant", "tool_calls": [call]}])
    assert found["messages"][0]["tool_calls"][0]["function"]["arguments"] == '{"a":1}'


@pytest.mark.parametrize(
    ("body", "code"),
    [(b"{", "invalid_json"), (b"\xff", "invalid_json"), (b"[]", "invalid_json"), (b"{}", "invalid_field")],
)
def test_a_body_that_is_none_is_refused(body: bytes, code: str) -> None:
    with pytest.raises(Failure) as refused:
        requests.parsed(body)
    assert refused.value.code == f"request.{code}"


@settings(max_examples=100)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_whatever_stands_in_a_field_is_translated_or_refused(value: object) -> None:
    for name in ("messages", "options", "format", "tools", "think", "images", "prompt", "input", "stream"):
        fields = {"model": "m", "prompt": "x", name: value}
        with contextlib.suppress(Failure):
            parsed = requests.parsed(json.dumps(fields).encode())
            json.loads(requests.generation(parsed, "m", KWARGS, can_chat=True).body)
            json.loads(requests.chat(parsed, "m", OLLAMA).body)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/tags", ("/api/tags", None)),
        ("/k/slice_a/api/tags", ("/api/tags", "slice_a")),
        ("/k/slice_a/", ("/", "slice_a")),
        ("/k/slice_a", ("/", "slice_a")),
        ("/k//api/tags", ("/api/tags", "")),
        ("/kind", ("/kind", None)),
    ],
)
def test_a_key_in_a_path(path: str, expected: tuple[str, str | None]) -> None:
    assert split_key(path) == expected


# Answers


def event(**members: object) -> bytes:
    return b"data: " + json.dumps({"id": "c1", "object": "chat.completion.chunk", "model": "m", **members}).encode()


def delta(finish: str | None = None, **members: object) -> bytes:
    return event(choices=[{"index": 0, "delta": members, "finish_reason": finish}])


def piece_of_call(index: int, arguments: str, **more: object) -> dict:
    return {"index": index, "function": {"arguments": arguments, **more.pop("function", {})}, **more}


USAGE = event(choices=[], usage={"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13})
STREAM = b"\n\n".join(
    [
        delta(role="assistant", content=None),
        delta(reasoning_content="hm"),
        delta(content="Hé"),
        delta(content="llo"),
        delta(tool_calls=[piece_of_call(0, "", id="call_1", function={"name": "sum"})]),
        delta(tool_calls=[piece_of_call(0, '{"a":')]),
        delta(tool_calls=[piece_of_call(1, "{}", id="call_2", function={"name": "see"})]),
        b": a comment",
        delta(tool_calls=[piece_of_call(0, "1}")]),
        delta("tool_calls"),
        USAGE,
        b"data: [DONE]\n\n",
    ]
)
AT = "2026-11-25T03:30:04.240788Z"
HEAD = {"model": "m:latest", "created_at": AT}
LAST = {
    "done": True,
    "done_reason": "stop",
    "total_duration": 1_000_000_000,
    "load_duration": 0,
    "prompt_eval_duration": 500_000_000,
    "prompt_eval_count": 9,
    "eval_count": 4,
    "eval_duration": 500_000_000,
}
CALLS = [
    {"id": "call_1", "function": {"index": 0, "name": "sum", "arguments": {"a": 1}}},
    {"id": "call_2", "function": {"index": 1, "name": "see", "arguments": {}}},
]
LINES = [
    {**HEAD, "message": {"role": "assistant", "content": "", "thinking": "hm"}, "done": False},
    {**HEAD, "message": {"role": "assistant", "content": "Hé"}, "done": False},
    {**HEAD, "message": {"role": "assistant", "content": "llo"}, "done": False},
    {**HEAD, "message": {"role": "assistant", "content": "", "tool_calls": CALLS}, "done": False},
    {**HEAD, "message": {"role": "assistant", "content": ""}, **LAST},
]


def text(*, is_chat: bool = True) -> Text:
    return Text("m:latest", is_chat=is_chat, clock=StillClock(), started_s=10.0)


def lines(data: bytes) -> list[dict]:
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def test_a_stream_with_thoughts_text_and_calls_reads_so_to_a_client() -> None:
    """The golden transcript of one answer."""
    made = text()
    found = lines(made.feed(STREAM) + made.finish())
    assert found == LINES
    for line in found:
        check("ollama", "ChatStreamEvent", line)


@settings(max_examples=60)
@given(st.lists(st.integers(min_value=0, max_value=len(STREAM)), max_size=8))
def test_a_stream_reads_the_same_wherever_it_is_cut(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    made = text()
    parts = [made.feed(STREAM[a:b]) for a, b in itertools.pairwise(places)]
    assert lines(b"".join(parts) + made.finish()) == LINES
    assert all(part.endswith(b"\n") for part in parts if part)


def test_a_stream_reads_the_same_byte_by_byte() -> None:
    made = text()
    assert lines(b"".join([made.feed(STREAM[i : i + 1]) for i in range(len(STREAM))]) + made.finish()) == LINES


def test_a_generation_s_stream_is_responses_whichever_endpoint_gave_it() -> None:
    completion = event(choices=[{"index": 0, "text": "ab", "finish_reason": None}])
    end = event(choices=[{"index": 0, "text": "", "finish_reason": "length"}])
    for chunks in ([completion, end], [delta(content="ab"), delta("length")]):
        made = text(is_chat=False)
        found = lines(made.feed(b"\n\n".join([*chunks, USAGE, b"data: [DONE]\n\n"])) + made.finish())
        assert [line.get("response") for line in found] == ["ab", ""]
        assert found[-1] == {**HEAD, "response": "", **LAST, "done_reason": "length"}
        for line in found:
            check("ollama", "GenerateStreamEvent", line)


def test_an_engine_s_own_timings_are_told_when_it_gives_them() -> None:
    made = text()
    timed = event(choices=[], timings={"prompt_ms": 1.5, "predicted_ms": 20.25, "prompt_n": 1})
    found = lines(made.feed(b"\n\n".join([delta(content="a"), delta("stop"), timed, b"data: [DONE]\n\n"])))
    assert (found[-1]["prompt_eval_duration"], found[-1]["eval_duration"]) == (1_500_000, 20_250_000)
    assert "eval_count" not in found[-1], "nobody told it"


def test_a_broken_stream_ends_with_one_error_and_nothing_after_it() -> None:
    made = text()
    broken = event(
        error={"message": "The engine ended", "type": "server_error", "param": None, "code": "engine_failed"}
    )
    found = lines(made.feed(b"\n\n".join([delta(content="a"), broken, delta(content="b"), b"\n\n"])) + made.finish())
    assert found[1:] == [{"error": "The engine ended"}]
    assert made.failure is None, "the relay knows of it"


@pytest.mark.parametrize("nonsense", [b"data: {", b"data: []", b'data: {"choices":[{"delta":{"content":1}}]}'])
def test_a_chunk_that_is_none_ends_the_stream_with_an_error(nonsense: bytes) -> None:
    made = text()
    found = lines(made.feed(nonsense + b"\n\ndata: [DONE]\n\n") + made.finish())
    assert [list(line) for line in found] == [["error"]]
    assert made.failure is not None


@pytest.mark.parametrize(("finish", "last"), [("length", "done"), ("tool_calls", "error")])
def test_a_call_cut_off_by_the_length_is_left_out_and_any_other_that_is_none_an_error(finish: str, last: str) -> None:
    made = text()
    cut = delta(tool_calls=[piece_of_call(0, '{"a":', id="x", function={"name": "f"})])
    found = lines(made.feed(b"\n\n".join([cut, delta(finish), b"data: [DONE]\n\n"])))
    assert len(found) == 1
    assert last in found[0]


def test_log_probabilities_of_either_form_read_alike() -> None:
    top = {"token": "b", "logprob": -2.0}
    one = {"token": "a", "logprob": -1.0, "top_logprobs": [top]}
    in_chat = {"delta": {"content": "a"}, "logprobs": {"content": [one], "refusal": None}}
    old = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"b": -2.0}], "text_offset": [0]}
    for is_chat, choice in ((True, in_chat), (False, {"text": "a", "logprobs": old})):
        made = text(is_chat=is_chat)
        found = lines(made.feed(event(choices=[{"index": 0, **choice}]) + b"\n\n"))
        assert found[0]["logprobs"] == [one]


def test_a_whole_answer_is_one_object() -> None:
    said = {"role": "assistant", "content": "Hi", "reasoning_content": "hm", "refusal": None}
    calls = [
        {"id": "call_1", "type": "function", "function": {"name": "sum", "arguments": '{"a":1}'}},
        {"id": "call_2", "type": "function", "function": {"name": "see", "arguments": ""}},
    ]
    choice = {"index": 0, "message": {**said, "tool_calls": calls}, "finish_reason": "tool_calls", "logprobs": None}
    usage = {"prompt_tokens": 9, "completion_tokens": 4}
    found = json.loads(text().whole(json.dumps({"choices": [choice], "usage": usage}).encode()))
    check("ollama", "ChatResponse", found)
    message = {"role": "assistant", "content": "Hi", "thinking": "hm", "tool_calls": CALLS}
    assert found == {
        **HEAD,
        "message": message,
        **LAST,
        "total_duration": 500_000_000,
        "prompt_eval_duration": 0,
    }


@pytest.mark.parametrize("body", [b"", b"{}", b'{"choices":[]}', b'{"choices":[1]}', b"\xff"])
def test_a_whole_answer_that_is_none_is_a_failure(body: bytes) -> None:
    with pytest.raises(Failure, match="none"):
        text().whole(body)


def test_embeddings_come_in_order_with_their_digits_as_they_were() -> None:
    body = b'{"data":[{"index":1,"embedding":[3e-1]},{"index":0,"embedding":[0.10000000000000000001]}],"usage":null}'
    made = Vectors("m", is_old=False, clock=StillClock(), started_s=10.0).whole(body)
    assert b'"embeddings":[[0.10000000000000000001],[3e-1]]' in made
    check("ollama", "EmbedResponse", json.loads(made))
    assert Vectors("m", is_old=True, clock=StillClock(), started_s=0).whole(body) == (
        b'{"embedding":[0.10000000000000000001]}'
    )


@pytest.mark.parametrize("body", [b"{}", b'{"data":[]}', b'{"data":[{"embedding":"AAAA"}]}', b'{"data":[{}]}'])
def test_embeddings_that_are_none_are_a_failure(body: bytes) -> None:
    with pytest.raises(Failure):
        Vectors("m", is_old=False, clock=StillClock(), started_s=0).whole(body)


def test_a_stream_costs_one_decode_and_one_encode_a_chunk() -> None:
    """A piece of text is told with the bytes of its JSON string, whatever it holds."""
    content = 'quote " back \\ newline \n tab \t é 漢 \u2028 </s>'
    found = lines(text().feed(b"data: " + msgspec.json.encode({"choices": [{"delta": {"content": content}}]}) + b"\n"))
    assert found[0]["message"]["content"] == content
