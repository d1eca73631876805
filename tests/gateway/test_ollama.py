"""What an OpenAI client gets from a door whose engine speaks Ollama's API, played by a script."""

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.contract import Endpoint
from adapters.registry import adapter
from core.errors import Failure
from gateway.ollama import requests
from gateway.ollama.exchange import Exchange as Translated
from gateway.openai.stream import Ending, ModelName
from tests.gateway.conftest import RoutesServer, RunningDoor, door_config, route, running_door, target
from tests.gateway.raw import call
from tests.gateway.scripted import Exchange, ScriptedEngine
from tests.standins.specs import check

MESSAGES = [{"role": "user", "content": "hi"}]
COUNTS = {"prompt_eval_count": 4, "eval_count": 2}
DIALECT = adapter("ollama").dialect
FAR_IMAGE = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
CUT_CALL = {"function": {"name": "f", "arguments": "{"}}


def piece(text: str = "", **more: object) -> dict:
    created = "2026-11-25T03:30:04.240788123Z"
    message = {"role": "assistant", "content": text, **more.pop("message", {})}
    return {"model": "served", "created_at": created, "message": message, "done": False, **more}


def last(text: str = "", reason: str = "stop", **more: object) -> dict:
    return {**piece(text, **more), "done": True, "done_reason": reason, **COUNTS}


def playing(*lines: dict, whole: dict | None = None):
    """Stream `lines`, or answer `whole`, as the request asks."""

    async def script(exchange: Exchange) -> None:
        if not exchange.json.get("stream"):
            await exchange.reply(json.dumps(whole or {}).encode())
            return
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
        await exchange.write(head)
        for line in lines:
            await exchange.chunk(json.dumps(line).encode() + b"\n")
        await exchange.end_stream()

    return script


@pytest.fixture
async def door(tmp_path: Path, routes: RoutesServer, engine: ScriptedEngine) -> AsyncIterator[RunningDoor]:
    async with running_door(door_config(tmp_path), {"fake": DIALECT}.get) as running:
        endpoints = ("chat", "completions", "embeddings")
        await routes.applied(routes.push(route(target(engine), name="public", served="served", endpoints=endpoints)))
        yield running


async def chat(door: RunningDoor, **fields: object):
    return await call(door.port, "POST", "/v1/chat/completions", {"model": "public", "messages": MESSAGES, **fields})


def events(body: bytes) -> list[str]:
    return [line[6:] for line in body.decode().split("\n") if line.startswith("data: ")]


# Whole answers


async def test_a_whole_answer_is_openai_s(door: RunningDoor, engine: ScriptedEngine) -> None:
    engine.script = playing(whole=last("hello", "length"))
    answer = json.loads((await chat(door)).body)
    check("openai", "CreateChatCompletionResponse", answer)
    assert answer["model"] == "public"
    assert answer["created"] == 1795577404
    assert answer["choices"][0]["message"]["content"] == "hello"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
    sent = engine.exchanges[0]
    assert (sent.path, sent.json["model"], sent.json["stream"], sent.json["truncate"]) == (
        "/api/chat",
        "served",
        False,
        False,
    )


async def test_tool_calls_come_back_with_arguments_as_text(door: RunningDoor, engine: ScriptedEngine) -> None:
    calls = [{"function": {"index": 0, "name": "weather", "arguments": {"city": "Berlin"}}}]
    engine.script = playing(whole=last(message={"tool_calls": calls}))
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    answer = json.loads((await chat(door, tools=[tool])).body)
    check("openai", "CreateChatCompletionResponse", answer)
    (called,) = answer["choices"][0]["message"]["tool_calls"]
    assert json.loads(called["function"]["arguments"]) == {"city": "Berlin"}
    assert called["id"].startswith("call_")
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert engine.exchanges[0].json["tools"] == [tool]


async def test_logprobs_are_openai_s(door: RunningDoor, engine: ScriptedEngine) -> None:
    top = {"token": "no", "logprob": -2.0, "bytes": [110, 111]}
    engine.script = playing(whole=last("yes", logprobs=[{"token": "yes", "logprob": -0.1, "top_logprobs": [top]}]))
    answer = json.loads((await chat(door, logprobs=True, top_logprobs=1)).body)
    check("openai", "CreateChatCompletionResponse", answer)
    assert answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == [top]
    assert (engine.exchanges[0].json["logprobs"], engine.exchanges[0].json["top_logprobs"]) == (True, 1)


async def test_a_completion_continues_its_prompt_without_a_template(door: RunningDoor, engine: ScriptedEngine) -> None:
    engine.script = playing(whole={"response": "three", "done": True, "done_reason": "stop", **COUNTS})
    answer = await call(door.port, "POST", "/v1/completions", {"model": "public", "prompt": "one two", "max_tokens": 5})
    check("openai", "CreateCompletionResponse", json.loads(answer.body))
    assert json.loads(answer.body)["choices"][0]["text"] == "three"
    sent = engine.exchanges[0]
    assert (sent.path, sent.json["raw"], sent.json["options"]["num_predict"]) == ("/api/generate", True, 5)
    assert sent.json["think"] is False, "the thoughts of a thinking model are its text here"


@pytest.mark.parametrize("form", ["float", "base64"])
async def test_embeddings_come_as_the_client_wants_them(door: RunningDoor, engine: ScriptedEngine, form: str) -> None:
    engine.script = playing(whole={"embeddings": [[0.5, -1.0], [0.25, 2.0]], "prompt_eval_count": 3})
    asked = {"model": "public", "input": ["a", "b"], "encoding_format": form}
    answer = json.loads((await call(door.port, "POST", "/v1/embeddings", asked)).body)
    assert (answer["model"], answer["usage"]) == ("public", {"prompt_tokens": 3, "total_tokens": 3})
    first = answer["data"][0]["embedding"]
    assert (list(struct.unpack("<2f", base64.b64decode(first))) if form == "base64" else first) == [0.5, -1.0]
    assert engine.exchanges[0].json == {"model": "served", "input": ["a", "b"], "truncate": False}


async def test_the_official_client_gets_embeddings(door: RunningDoor, engine: ScriptedEngine) -> None:
    engine.script = playing(whole={"embeddings": [[0.5, -1.0]], "prompt_eval_count": 3})
    async with door.client() as client:
        found = await client.embeddings.create(model="public", input="a")
    assert found.data[0].embedding == [0.5, -1.0]


async def test_an_answer_that_is_none_is_a_502(door: RunningDoor, engine: ScriptedEngine) -> None:
    async def nonsense(exchange: Exchange) -> None:
        await exchange.reply(b"<html>")

    engine.script = nonsense
    assert (await chat(door)).status == 502


@pytest.mark.parametrize("whole", [{"error": "model runner has stopped"}, piece("Hel"), {}])
async def test_an_answer_that_is_not_whole_is_a_502(door: RunningDoor, engine: ScriptedEngine, whole: dict) -> None:
    engine.script = playing(whole=whole)
    assert (await chat(door)).status == 502


# Streams


async def test_a_stream_is_openai_s_and_ends_with_usage_and_done(door: RunningDoor, engine: ScriptedEngine) -> None:
    engine.script = playing(piece("Hel"), piece("lo"), last("", "length"))
    answer = await chat(door, stream=True, stream_options={"include_usage": True})
    *chunks, done = events(answer.body)
    assert done == "[DONE]"
    for chunk in chunks:
        check("openai", "CreateChatCompletionStreamResponse", json.loads(chunk))
    found = [json.loads(chunk) for chunk in chunks]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in found[:-1]) == "Hello"
    assert [c["choices"][0]["finish_reason"] for c in found[:-1]] == [None, None, "length"]
    assert found[0]["choices"][0]["delta"]["role"] == "assistant"
    assert found[-1]["choices"] == []
    assert found[-1]["usage"]["total_tokens"] == 6
    assert len({c["id"] for c in found}) == 1


async def test_a_stream_without_the_option_tells_no_usage(door: RunningDoor, engine: ScriptedEngine) -> None:
    engine.script = playing(piece("x"), last())
    assert b"usage" not in (await chat(door, stream=True)).body


async def test_the_official_client_streams_tool_calls(door: RunningDoor, engine: ScriptedEngine) -> None:
    call_ = {"id": "call_9", "function": {"name": "f", "arguments": {"a": 1}}}
    engine.script = playing(piece(message={"tool_calls": [call_, call_]}), last())
    async with door.client() as client:
        stream = await client.chat.completions.create(model="public", messages=MESSAGES, stream=True)
        chunks = [chunk async for chunk in stream]
    assert [one.index for one in chunks[0].choices[0].delta.tool_calls] == [0, 1]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


async def test_a_stream_of_a_completion_is_text(door: RunningDoor, engine: ScriptedEngine) -> None:
    engine.script = playing({"response": "a", "done": False}, {"response": "b", "done": True, "done_reason": "stop"})
    asked = {"model": "public", "prompt": "x", "stream": True}
    answer = await call(door.port, "POST", "/v1/completions", asked)
    *chunks, done = events(answer.body)
    assert "".join(json.loads(chunk)["choices"][0]["text"] for chunk in chunks) == "ab"
    assert done == "[DONE]"


async def test_an_error_inside_a_stream_ends_it_with_an_error(door: RunningDoor, engine: ScriptedEngine) -> None:
    engine.script = playing(piece("Hel"), {"error": "an error was encountered while running the model: unexpected EOF"})
    answer = await chat(door, stream=True)
    assert json.loads(events(answer.body)[-1])["error"]["code"] == "engine_failed"
    assert b"[DONE]" not in answer.body
    assert b"EOF" not in answer.body


async def test_a_stream_that_breaks_off_ends_with_an_error(door: RunningDoor, engine: ScriptedEngine) -> None:
    engine.script = playing(piece("Hel"))
    async with door.client() as client:
        stream = await client.chat.completions.create(model="public", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="ended before its answer"):
            [chunk async for chunk in stream]


async def test_a_client_that_leaves_closes_the_engine_s_connection(door: RunningDoor, engine: ScriptedEngine) -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        await exchange.chunk(json.dumps(piece("x")).encode() + b"\n")

    engine.script = endless
    async with door.client() as client:
        stream = await client.chat.completions.create(model="public", messages=MESSAGES, stream=True)
        await anext(aiter(stream))
        await stream.close()
    async with asyncio.timeout(2):
        await engine.exchanges[0].closed.wait()


# A prompt that does not fit


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    "text",
    [
        "the input length exceeds the context length",
        '{"error":{"code":400,"message":"request (9 tokens) exceeds the available context size (4 tokens), try'
        ' increasing it","type":"exceed_context_size_error","n_prompt_tokens":9,"n_ctx":4}}',
    ],
    ids=["before 0.30", "since 0.30"],
)
async def test_a_prompt_that_does_not_fit_is_told_so(
    door: RunningDoor, engine: ScriptedEngine, text: str, is_stream: bool
) -> None:
    async def refusing(exchange: Exchange) -> None:
        await exchange.reply(json.dumps({"error": text}).encode(), status=400)

    engine.script = refusing
    answer = await chat(door, stream=is_stream)
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    assert len(engine.exchanges) == 1


async def test_a_refusal_of_its_llama_cpp_is_shown_in_its_words(door: RunningDoor, engine: ScriptedEngine) -> None:
    async def refusing(exchange: Exchange) -> None:
        inner = json.dumps({"error": {"code": 400, "message": "the schema is odd", "type": "invalid_request_error"}})
        await exchange.reply(json.dumps({"error": inner}).encode(), status=400)

    engine.script = refusing
    assert "the schema is odd" in (await chat(door)).error["message"]


# Requests


def sent(endpoint: Endpoint = Endpoint.CHAT, **fields: object) -> dict:
    body = {"messages": MESSAGES} if endpoint is Endpoint.CHAT else {}
    return json.loads(requests.asked(endpoint, json.dumps({"model": "m", **body, **fields}).encode(), "served").body)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["num_ctx", "keep_alive", "options", "truncate", "shift", "raw", "user"]),
        st.none() | st.integers(),
    )
)
def test_nothing_reaches_the_engine_that_reloads_unloads_or_cuts(extra: dict) -> None:
    native = sent(**extra)
    assert native["truncate"] is False
    assert set(native) == {"messages", "model", "truncate", "stream", "options"}
    assert set(native["options"]) == {"temperature", "top_p"}


def test_limits_seeds_and_stops_become_options() -> None:
    native = sent(max_completion_tokens=5, max_tokens=9, seed=3, stop="x", temperature=0, presence_penalty=1)
    assert native["options"] == {
        "num_predict": 5,
        "seed": 3,
        "stop": ["x"],
        "temperature": 0,
        "top_p": 1.0,
        "presence_penalty": 1,
    }


@pytest.mark.parametrize(
    ("form", "native"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, "json"),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}, {"type": "object"}),
    ],
    ids=["text", "object", "schema"],
)
def test_a_form_of_the_answer_becomes_its_format(form: dict, native: object) -> None:
    assert sent(response_format=form).get("format") == native


def test_no_tool_choice_means_no_tools() -> None:
    assert "tools" not in sent(tools=[{"type": "function"}], tool_choice="none")


def test_a_conversation_with_tools_keeps_ids_names_and_arguments() -> None:
    called = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    native = sent(
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "assistant", "content": None, "tool_calls": [called]},
            {"role": "tool", "tool_call_id": "call_1", "content": "2"},
        ]
    )
    assert native["messages"] == [
        {"role": "system", "content": "be brief"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call_1", "function": {"name": "f", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "content": "2", "tool_call_id": "call_1", "tool_name": "f"},
    ]


def test_parts_are_one_message_and_images_are_taken_out_of_their_url() -> None:
    parts = [
        {"type": "text", "text": "what is "},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
        {"type": "text", "text": "this?"},
    ]
    assert sent(messages=[{"role": "user", "content": parts}])["messages"] == [
        {"role": "user", "content": "what is this?", "images": ["aGk="]}
    ]


@pytest.mark.parametrize(
    ("endpoint", "fields", "param"),
    [
        ("chat", {"messages": [{"content": "x"}]}, "messages"),
        ("chat", {"messages": [{"role": "user", "content": None}]}, "messages"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages"),
        ("chat", {"messages": [{"role": "user", "content": [FAR_IMAGE]}]}, "messages"),
        ("chat", {"messages": [{"role": "assistant", "tool_calls": [CUT_CALL]}]}, "messages"),
        ("chat", {"messages": [{"role": "assistant", "tool_calls": ["f"]}]}, "messages"),
        ("chat", {"messages": [{"role": "assistant", "tool_calls": 5}]}, "messages"),
        ("chat", {"response_format": {"type": "json_schema"}}, "response_format"),
        ("chat", {"reasoning_effort": "wild"}, "reasoning_effort"),
        ("chat", {"seed": "x"}, "seed"),
        ("completions", {"prompt": ["a", "b"]}, "prompt"),
        ("completions", {"prompt": [1, 2]}, "prompt"),
        ("embeddings", {"input": [[1, 2]]}, "input"),
        ("embeddings", {"input": ["", "x"]}, "input"),
    ],
)  # fmt: skip
def test_what_cannot_be_said_in_ollama_s_words_is_refused_by_field(endpoint: str, fields: dict, param: str) -> None:
    with pytest.raises(Failure) as caught:
        sent(Endpoint(endpoint), **fields)
    assert (caught.value.code, caught.value.param) == ("request.invalid_field", param)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
async def test_a_tool_that_must_be_called_is_refused(door: RunningDoor, engine: ScriptedEngine, choice: object) -> None:
    answer = await chat(door, tools=[{"type": "function"}], tool_choice=choice)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "unsupported_parameter", "tool_choice")
    assert engine.exchanges == []


# Cuts


@settings(deadline=None)
@given(st.lists(st.text(), max_size=8), st.lists(st.integers(0, 2000)), st.booleans())
def test_a_stream_is_the_same_however_it_is_cut(texts: list[str], at: list[int], is_ended: bool) -> None:
    lines = [json.dumps(piece(text), ensure_ascii=False).encode() + b"\n" for text in texts]
    data = b"".join([*lines, json.dumps(last()).encode() + (b"\n" if is_ended else b"")])
    edges = [0, *sorted(min(one, len(data)) for one in at), len(data)]
    body = json.dumps({"model": "m", "messages": MESSAGES, "stream": True}).encode()
    view = Translated(Endpoint.CHAT, body, "served", "public").events(ModelName("served", "public"))
    got = b"".join(view.feed(data[low:high]) for low, high in pairwise(edges)) + view.finish()
    assert view.ending() is Ending.DONE
    *chunks, done = events(got)
    assert done == "[DONE]"
    assert "".join(json.loads(one)["choices"][0]["delta"].get("content", "") for one in chunks) == "".join(texts)
