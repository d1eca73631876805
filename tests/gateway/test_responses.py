"""OpenAI's responses API on engines that chat: the official client, whole and streamed, and every event by the spec."""

import asyncio
import itertools
import json
from datetime import UTC, datetime

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from gateway.responses.answers import Writer
from gateway.responses.requests import wanted
from tests.gateway.conftest import RoutesServer, RunningDoor, route, target
from tests.gateway.raw import call
from tests.gateway.scripted import Exchange, ScriptedEngine, answering
from tests.standins.specs import check

USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 4,
    "total_tokens": 13,
    "prompt_tokens_details": {"cached_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 1},
}
TOOL = {
    "type": "function",
    "name": "weather",
    "description": "tells it",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    "strict": False,
}
EVENTS = {
    "response.created": "ResponseCreatedEvent",
    "response.in_progress": "ResponseInProgressEvent",
    "response.output_item.added": "ResponseOutputItemAddedEvent",
    "response.content_part.added": "ResponseContentPartAddedEvent",
    "response.output_text.delta": "ResponseTextDeltaEvent",
    "response.output_text.done": "ResponseTextDoneEvent",
    "response.content_part.done": "ResponseContentPartDoneEvent",
    "response.output_item.done": "ResponseOutputItemDoneEvent",
    "response.function_call_arguments.delta": "ResponseFunctionCallArgumentsDeltaEvent",
    "response.function_call_arguments.done": "ResponseFunctionCallArgumentsDoneEvent",
    "response.reasoning_text.delta": "ResponseReasoningTextDeltaEvent",
    "response.reasoning_text.done": "ResponseReasoningTextDoneEvent",
    "response.completed": "ResponseCompletedEvent",
    "response.incomplete": "ResponseIncompleteEvent",
    "response.failed": "ResponseFailedEvent",
}
TEXT = [
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]
CALL = [
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
]
BEGUN = ["response.created", "response.in_progress"]


def delta(finish: str | None = None, **members: object) -> dict:
    return {"choices": [{"index": 0, "delta": members, "finish_reason": finish}]}


def piece(index: int, arguments: str = "", **more: object) -> dict:
    return delta(
        tool_calls=[{"index": index, "function": {"arguments": arguments, **more.pop("function", {})}, **more}]
    )


def answered(finish: str = "stop", usage: dict | None = USAGE, **message: object) -> dict:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return {"choices": [choice], "usage": usage}


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def playing(*events: dict, whole: dict | None = None, is_cut: bool = False):
    async def script(exchange: Exchange) -> None:
        if not exchange.json.get("stream"):
            await exchange.reply(json.dumps(whole or {}).encode())
            return
        await exchange.begin_stream()
        for one in events:
            await exchange.chunk(event(one))
        if is_cut:
            await exchange.line.drained()
            exchange.die()
            return
        await exchange.chunk(b"data: [DONE]\n\n")
        await exchange.end_stream()

    return script


@pytest.fixture
async def ready(door: RunningDoor, routes: RoutesServer, engine: ScriptedEngine) -> RunningDoor:
    await routes.applied(routes.push(route(target(engine))))
    return door


async def post(door: RunningDoor, **fields: object):
    return await call(door.port, "POST", "/v1/responses", {"model": "smollm2", "input": "hi", **fields})


def told(body: bytes) -> list[dict]:
    """Return the events of a stream, each checked by the spec, in the order of their numbers."""
    found = []
    for block in body.decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        check("responses", EVENTS[value["type"]], value)
        found.append(value)
    assert [one["sequence_number"] for one in found] == list(range(len(found)))
    return found


def kinds(events: list[dict]) -> list[str]:
    """Return the kinds of events, one of each run of pieces."""
    return [kind for kind, _ in itertools.groupby(one["type"] for one in events)]


# The official client


async def test_the_official_client_gets_a_response(ready: RunningDoor, engine: ScriptedEngine) -> None:
    engine.script = playing(whole=answered(content="Hello"))
    async with ready.client() as client:
        answer = await client.responses.create(
            model="smollm2", input="hi", instructions="be kind", max_output_tokens=20, metadata={"a": "b"}, top_p=0.5
        )
    assert (answer.output_text, answer.status, answer.model) == ("Hello", "completed", "smollm2")
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (9, 4, 13)
    assert answer.usage.input_tokens_details.cached_tokens == 2
    assert answer.usage.output_tokens_details.reasoning_tokens == 1
    assert (answer.metadata, answer.instructions, answer.top_p) == ({"a": "b"}, "be kind", 0.5)
    assert engine.exchanges[0].path == "/v1/chat/completions"
    assert engine.exchanges[0].json == {
        "model": "smollm2",
        "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
        "max_completion_tokens": 20,
        "top_p": 0.5,
    }


async def test_the_official_client_streams_and_puts_the_response_together(
    ready: RunningDoor, engine: ScriptedEngine
) -> None:
    usage = {"choices": [], "usage": USAGE}
    engine.script = playing(delta(role="assistant"), delta(content="Hel"), delta(content="lo"), delta("stop"), usage)
    async with ready.client() as client, client.responses.stream(model="smollm2", input="hi") as stream:
        seen = [one.type async for one in stream]
        final = await stream.get_final_response()
    assert [kind for kind, _ in itertools.groupby(seen)] == [*BEGUN, *TEXT, "response.completed"]
    assert (final.output_text, final.usage.total_tokens) == ("Hello", 13)
    assert engine.exchanges[0].json["stream_options"] == {"include_usage": True}


async def test_a_tool_is_called_and_its_result_is_heard(ready: RunningDoor, engine: ScriptedEngine) -> None:
    asked = {"id": "c9", "type": "function", "function": {"name": "weather", "arguments": '{"place":"here"}'}}
    engine.script = playing(whole=answered("tool_calls", content=None, tool_calls=[asked]))
    async with ready.client() as client:
        first = await client.responses.create(model="smollm2", input="weather?", tools=[TOOL], tool_choice="required")
        made = first.output[0]
        assert (made.type, made.call_id, made.name, made.arguments) == (
            "function_call",
            "c9",
            "weather",
            '{"place":"here"}',
        )
        engine.script = playing(whole=answered(content="sunny"))
        items = [
            {"role": "user", "content": "weather?"},
            *(one.model_dump(exclude_none=True) for one in first.output),
            {"type": "function_call_output", "call_id": "c9", "output": "sun"},
        ]
        second = await client.responses.create(model="smollm2", input=items, tools=[TOOL])
    assert second.output_text == "sunny"
    function = {name: value for name, value in TOOL.items() if name != "type"}
    assert engine.exchanges[0].json["tools"] == [{"type": "function", "function": function}]
    assert engine.exchanges[0].json["tool_choice"] == "required"
    assert engine.exchanges[1].json["messages"] == [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [asked]},
        {"role": "tool", "tool_call_id": "c9", "content": "sun"},
    ]


async def test_the_official_client_parses_a_schema(ready: RunningDoor, engine: ScriptedEngine) -> None:
    class Point(BaseModel):
        x: int

    engine.script = playing(whole=answered(content='{"x": 3}'))
    async with ready.client() as client:
        answer = await client.responses.parse(model="smollm2", input="hi", text_format=Point)
    assert answer.output_parsed == Point(x=3)
    form = engine.exchanges[0].json["response_format"]
    assert (form["type"], form["json_schema"]["name"], form["json_schema"]["strict"]) == ("json_schema", "Point", True)
    assert form["json_schema"]["schema"]["required"] == ["x"]


async def test_log_probabilities_come_whole_and_in_pieces(ready: RunningDoor, engine: ScriptedEngine) -> None:
    token = {"token": "é", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "a", "logprob": -1.0}]}
    logprobs = {"content": [token], "refusal": None}
    whole = answered(content="é")
    whole["choices"][0]["logprobs"] = logprobs
    part = delta(content="é")
    part["choices"][0]["logprobs"] = logprobs
    engine.script = playing(part, delta("stop"), whole=whole)
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    answer = json.loads((await post(ready, **fields)).body)
    check("responses", "Response", answer)
    found = answer["output"][0]["content"][0]["logprobs"]
    assert found == [
        {
            "token": "é",
            "logprob": -0.5,
            "bytes": [195, 169],
            "top_logprobs": [{"token": "a", "logprob": -1.0, "bytes": [97]}],
        }
    ]
    events = told((await post(ready, stream=True, **fields)).body)
    assert [one["logprobs"] for one in events if one["type"] == "response.output_text.delta"] == [found]
    assert events[-1]["response"]["output"] == [
        {**answer["output"][0], "id": events[-1]["response"]["output"][0]["id"]}
    ]
    assert (engine.exchanges[0].json["logprobs"], engine.exchanges[0].json["top_logprobs"]) == (True, 1)


# Streams, event by event

TWO_CALLS = [
    delta(content="Let me "),
    delta(content="see"),
    piece(0, id="c1", function={"name": "weather"}),
    piece(0, '{"place":'),
    piece(0, '"here"}'),
    piece(1, "{}", id="c2", function={"name": "clock"}),
    delta("tool_calls"),
]


async def test_each_item_is_done_before_the_next_begins(ready: RunningDoor, engine: ScriptedEngine) -> None:
    engine.script = playing(delta(reasoning_content="hm"), *TWO_CALLS, {"choices": [], "usage": USAGE})
    events = told((await post(ready, stream=True, tools=[TOOL])).body)
    thought = [kind.replace("output_text", "reasoning_text") for kind in TEXT]
    assert kinds(events) == [*BEGUN, *thought, *TEXT, *CALL, *CALL, "response.completed"]
    final = events[-1]["response"]
    assert [one["type"] for one in final["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert final["output"][1]["content"][0]["text"] == "Let me see"
    assert [(one["call_id"], one["name"], one["arguments"]) for one in final["output"][2:]] == [
        ("c1", "weather", '{"place":"here"}'),
        ("c2", "clock", "{}"),
    ]
    done = [one["item"] for one in events if one["type"] == "response.output_item.done"]
    assert done == final["output"]
    assert len({one["id"] for one in done}) == 4
    for one in events:
        if "item_id" in one:
            assert one["item_id"] == final["output"][one["output_index"]]["id"]


@pytest.mark.parametrize("reason, told_as", [("length", "max_output_tokens"), ("content_filter", "content_filter")])
async def test_a_cut_answer_is_incomplete(
    ready: RunningDoor, engine: ScriptedEngine, reason: str, told_as: str
) -> None:
    engine.script = playing(delta(content="Hel"), delta(reason), whole=answered(reason, content="Hel"))
    events = told((await post(ready, stream=True)).body)
    whole = json.loads((await post(ready)).body)
    check("responses", "Response", whole)
    assert kinds(events)[-1] == "response.incomplete"
    for answer in (events[-1]["response"], whole):
        assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": told_as})
        assert (answer["output"][0]["status"], answer["output"][0]["content"][0]["text"]) == ("incomplete", "Hel")


async def test_an_answer_of_nothing_is_an_empty_message(ready: RunningDoor, engine: ScriptedEngine) -> None:
    engine.script = playing(delta(role="assistant", content=""), delta("stop"), whole=answered(content=""))
    events = told((await post(ready, stream=True)).body)
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == ""
    assert json.loads((await post(ready)).body)["output"][0]["content"][0]["text"] == ""


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(playing(delta(content="Hel"), is_cut=True), id="dies"),
        pytest.param(playing(delta(content="Hel"), {"error": {"message": "no memory", "type": "x"}}), id="says so"),
        pytest.param(playing(delta(content="Hel"), {"choices": 3}, delta("stop")), id="talks nonsense"),
        pytest.param(
            playing(delta(content="Hel"), piece(0, "{", id="a"), piece(1, "{", id="b"), piece(0, "}"), delta("stop")),
            id="goes back to a call",
        ),
    ],
)
async def test_a_stream_that_breaks_off_ends_with_failed(ready: RunningDoor, engine: ScriptedEngine, script) -> None:
    engine.script = script
    events = told((await post(ready, stream=True)).body)
    assert kinds(events)[-1] == "response.failed"
    last = events[-1]["response"]
    assert (last["status"], last["error"]["code"]) == ("failed", "server_error")
    assert "smollm2" in last["error"]["message"]
    assert "memory" not in last["error"]["message"]
    assert last["output"][0]["content"][0]["text"] == "Hel"
    async with ready.client() as client:
        stream = await client.responses.create(model="smollm2", input="hi", stream=True)
        assert [one.type async for one in stream][-1] == "response.failed"


async def test_a_failure_before_the_first_byte_is_a_status(ready: RunningDoor, engine: ScriptedEngine) -> None:
    async def refusing(exchange: Exchange) -> None:
        await exchange.reply(b'{"error":{"message":"too odd","type":"invalid"}}', status=400)

    for script, status, code in (
        (playing(whole={"choices": []}), 502, "engine_failed"),
        (refusing, 400, "invalid_request"),
    ):
        engine.script = script
        refused = await post(ready)
        assert (refused.status, refused.error["code"]) == (status, code)


async def test_an_overflow_names_the_input(ready: RunningDoor, engine: ScriptedEngine) -> None:
    async def full(exchange: Exchange) -> None:
        body = {"error": {"message": "too long", "type": "exceed_context_size_error", "code": 400}}
        await exchange.reply(json.dumps(body).encode(), status=400)

    engine.script = full
    async with ready.client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(model="smollm2", input="hi", stream=True)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")


async def test_an_engine_that_does_not_stream_is_told_as_a_stream(ready: RunningDoor, engine: ScriptedEngine) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.reply(json.dumps(answered(content="Hello"), indent=1).encode())

    engine.script = script
    events = told((await post(ready, stream=True)).body)
    assert kinds(events) == [*BEGUN, *TEXT, "response.completed"]
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "Hello"


async def test_a_client_that_leaves_frees_the_engine(ready: RunningDoor, engine: ScriptedEngine) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(event(delta(content="a")))
        await exchange.closed.wait()

    engine.script = script
    async with ready.client() as client:
        stream = await client.responses.create(model="smollm2", input="hi", stream=True)
        await anext(aiter(stream))
        await stream.close()
        async with asyncio.timeout(5):
            await engine.exchanges[0].closed.wait()


# What is refused


@pytest.mark.parametrize(
    "fields, code, param",
    [
        pytest.param(
            {"previous_response_id": "resp_1"}, "unsupported_parameter", "previous_response_id", id="previous"
        ),
        pytest.param({"conversation": "c"}, "unsupported_parameter", "conversation", id="conversation"),
        pytest.param({"background": True}, "unsupported_parameter", "background", id="background"),
        pytest.param({"store": True}, "unsupported_parameter", "store", id="store"),
        pytest.param({"prompt": {"id": "p"}}, "unsupported_parameter", "prompt", id="prompt"),
        pytest.param({"truncation": "auto"}, "unsupported_parameter", "truncation", id="truncation"),
        pytest.param({"tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools", id="built-in tool"),
        pytest.param({"tools": [{"type": "function"}]}, "invalid_value", "tools", id="tool without a name"),
        pytest.param({"tool_choice": "required"}, "invalid_value", "tool_choice", id="choice without tools"),
        pytest.param(
            {"tools": [TOOL], "tool_choice": {"type": "mcp"}},
            "unsupported_parameter",
            "tool_choice",
            id="choice of mcp",
        ),
        pytest.param({"tools": [TOOL], "tool_choice": "any"}, "invalid_value", "tool_choice", id="choice unknown"),
        pytest.param({"input": []}, "invalid_value", "input", id="no items"),
        pytest.param({"input": None}, "invalid_value", "input", id="no input"),
        pytest.param({"input": [3]}, "invalid_value", "input", id="no item"),
        pytest.param({"input": [{"role": "tool", "content": "x"}]}, "invalid_value", "input", id="role"),
        pytest.param({"input": [{"role": "user", "content": 3}]}, "invalid_value", "input", id="content"),
        pytest.param(
            {"input": [{"type": "item_reference", "id": "x"}]}, "unsupported_parameter", "input", id="reference"
        ),
        pytest.param({"input": [{"type": "computer_call"}]}, "unsupported_parameter", "input", id="another item"),
        pytest.param(
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "unsupported_parameter",
            "input",
            id="file",
        ),
        pytest.param({"input": [{"type": "function_call", "name": "f"}]}, "invalid_value", "input", id="call"),
        pytest.param({"text": {"format": {"type": "xml"}}}, "invalid_value", "text.format", id="format"),
        pytest.param({"text": {"format": {"type": "json_schema"}}}, "invalid_value", "text.format", id="no schema"),
        pytest.param({"text": "json"}, "invalid_value", "text", id="text"),
        pytest.param({"max_output_tokens": 0}, "out_of_range", "max_output_tokens", id="limit"),
        pytest.param({"temperature": 3}, "out_of_range", "temperature", id="temperature"),
        pytest.param({"metadata": {"a": 1}}, "invalid_value", "metadata", id="metadata"),
        pytest.param({"api_base": "http://x"}, "unknown_field", "api_base", id="unknown"),
        pytest.param({"model": ""}, "invalid_value", "model", id="no model"),
        pytest.param({"model": "lama"}, "model_not_found", "model", id="another model"),
    ],
)
async def test_what_a_stateless_door_cannot_do_is_refused_by_name(
    ready: RunningDoor, engine: ScriptedEngine, fields: dict, code: str, param: str
) -> None:
    refused = await post(ready, **fields)
    assert refused.status in (400, 404)
    assert (refused.error["code"], refused.error["param"]) == (code, param)
    assert set(refused.error) == {"message", "type", "param", "code"}
    assert engine.exchanges == []


async def test_fields_that_ask_for_nothing_pass(ready: RunningDoor, engine: ScriptedEngine) -> None:
    engine.script = answering
    harmless = {
        "store": False,
        "background": False,
        "previous_response_id": None,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k",
        "service_tier": "auto",
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "truncation": "disabled",
        "parallel_tool_calls": True,
        "seed": 3,
    }
    answer = await post(ready, **harmless)
    check("responses", "Response", json.loads(answer.body))
    assert engine.exchanges[0].json == {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "hi"}],
        "seed": 3,
        "reasoning_effort": "low",
    }


async def test_a_key_and_a_method_are_asked_for_as_everywhere(ready: RunningDoor) -> None:
    refused = await call(ready.port, "POST", "/v1/responses", {"model": "smollm2"}, {"authorization": "Bearer x"})
    assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
    assert (await call(ready.port, "GET", "/v1/responses")).status == 405
    assert (await call(ready.port, "GET", "/v1/responses/resp_1")).status == 404


# Pure

IMAGE = "data:image/png;base64,aGk="


@pytest.mark.parametrize(
    "items, messages",
    [
        pytest.param(
            [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]}],
            [{"role": "user", "content": "a"}],
            id="parts of text are a text",
        ),
        pytest.param(
            [
                {"role": "developer", "content": "a"},
                {"role": "system", "content": "b"},
                {"role": "user", "content": "c"},
                {"role": "developer", "content": "d"},
            ],
            [
                {"role": "system", "content": "a\n\nb"},
                {"role": "user", "content": "c"},
                {"role": "system", "content": "d"},
            ],
            id="leading system messages are one",
        ),
        pytest.param(
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "a"},
                        {"type": "input_image", "image_url": IMAGE, "detail": "low"},
                    ],
                }
            ],
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "a"},
                        {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}},
                    ],
                }
            ],
            id="an image",
        ),
        pytest.param(
            [
                {"role": "assistant", "content": [{"type": "output_text", "text": "a", "annotations": []}]},
                {"type": "reasoning", "id": "r", "summary": []},
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                {"type": "function_call", "call_id": "2", "name": "g", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "x"}]},
            ],
            [
                {
                    "role": "assistant",
                    "content": "a",
                    "tool_calls": [
                        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                        {"id": "2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
                    ],
                },
                {"role": "tool", "tool_call_id": "1", "content": "x"},
            ],
            id="a turn is one message",
        ),
    ],
)
def test_items_become_messages(items: list, messages: list) -> None:
    body = json.dumps({"model": "m", "input": items}).encode()
    assert json.loads(wanted(body).body)["messages"] == messages


class Still:
    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return 0.0


STREAM = b": hello\r\n\r\n" + b"".join(map(event, TWO_CALLS)) + event({"choices": [], "usage": USAGE})


def written(pieces: list[bytes]) -> bytes:
    writer = Writer(wanted(b'{"model":"m","input":"x"}').echo, token="0" * 24, clock=Still())
    return b"".join([writer.feed(one) for one in pieces]) + writer.finish()


def test_cut_at_every_byte_a_stream_is_the_same_and_fits_the_spec() -> None:
    whole = written([STREAM])
    assert told(whole)[-1]["type"] == "response.completed"
    for cut in range(len(STREAM)):
        assert written([STREAM[:cut], STREAM[cut:]]) == whole
    assert written([STREAM[index : index + 1] for index in range(len(STREAM))]) == whole


WORDS = st.one_of(
    st.builds(lambda text: delta(content=text), st.text()),
    st.builds(lambda text: delta(reasoning=text), st.text()),
    st.builds(lambda index, text: piece(index, text, function={"name": "f"}), st.integers(0, 3), st.text()),
    st.builds(delta, st.sampled_from(["stop", "length", "tool_calls", "odd"])),
    st.just({"choices": [], "usage": USAGE}),
    st.just({"choices": None}),
    st.just({"error": {"message": "x"}}),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(WORDS, max_size=8), st.lists(st.integers(0, 900), max_size=4))
def test_whatever_an_engine_says_the_stream_fits_the_spec_and_ends_once(said: list[dict], cuts: list[int]) -> None:
    data = b"".join(map(event, said))
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    events = told(written([data[start:end] for start, end in itertools.pairwise(places)]))
    ends = [one["type"] for one in events if one["type"].split(".")[1] in ("completed", "incomplete", "failed")]
    assert ends == [events[-1]["type"]]
    opened = [one["output_index"] for one in events if one["type"] == "response.output_item.added"]
    closed = [one["output_index"] for one in events if one["type"] == "response.output_item.done"]
    assert opened == closed == list(range(len(events[-1]["response"]["output"])))
