"""Requests and answers of engines whose API is OpenAI's but for what their dialect says."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adapters.contract import Dialect
from adapters.registry import adapter
from gateway.openai import errors, requests
from gateway.openai.stream import ModelName
from tests.gateway.conftest import DIALECT, RoutesServer, RunningDoor, door_config, route, running_door, target
from tests.gateway.raw import call
from tests.gateway.scripted import Exchange, ScriptedEngine, chat_chunk

MESSAGES = [{"role": "user", "content": "hi"}]
ODD = Dialect(
    paths=DIALECT.paths,
    renames={"max_completion_tokens": "max_tokens"},
    refused={"n": (1,), "logit_bias": ({},), "suffix": ()},
    defaults={"max_tokens": 512},
    name_tag=":latest",
)


@pytest.fixture
async def odd(tmp_path: Path, routes: RoutesServer, engine: ScriptedEngine) -> AsyncIterator[RunningDoor]:
    """A door whose only engine speaks `ODD`."""
    async with running_door(door_config(tmp_path), {"fake": ODD}.get) as running:
        await routes.applied(routes.push(route(target(engine))))
        yield running


async def chat(door: RunningDoor, **fields: object):
    return await call(door.port, "POST", "/v1/chat/completions", {"model": "smollm2", "messages": MESSAGES, **fields})


async def test_a_field_reaches_the_engine_under_the_engine_s_name(odd: RunningDoor, engine: ScriptedEngine) -> None:
    assert (await chat(odd, max_completion_tokens=7)).status == 200
    assert engine.exchanges[0].json == {"model": "smollm2", "messages": MESSAGES, "max_tokens": 7}


async def test_a_field_given_under_both_names_stays_as_it_is(odd: RunningDoor, engine: ScriptedEngine) -> None:
    await chat(odd, max_completion_tokens=7, max_tokens=9)
    assert (engine.exchanges[0].json["max_tokens"], engine.exchanges[0].json["max_completion_tokens"]) == (9, 7)


async def test_a_default_is_added_only_where_none_was_given(odd: RunningDoor, engine: ScriptedEngine) -> None:
    for given in ({}, {"max_tokens": None}, {"max_tokens": 3}):
        await chat(odd, **given)
    assert [one.json["max_tokens"] for one in engine.exchanges] == [512, 512, 3]


async def test_other_members_keep_their_bytes(odd: RunningDoor, engine: ScriptedEngine) -> None:
    body = b'{"model":"smollm2","messages":[{"role":"user","content":"\\u00e9"}],"seed":1.0e2,"x":[ 1 ]}'
    assert (await call(odd.port, "POST", "/v1/chat/completions", body)).status == 200
    sent = engine.exchanges[0].body
    assert b'"content":"\\u00e9"' in sent
    assert b'"seed":1.0e2' in sent
    assert b"[ 1 ]" in sent


@pytest.mark.parametrize("given", [{"logit_bias": {"5": 1}}, {"suffix": "x"}], ids=lambda one: next(iter(one)))
async def test_what_the_engine_would_ignore_is_refused_by_name(odd: RunningDoor, engine: ScriptedEngine, given) -> None:
    answer = await chat(odd, **given)
    (name,) = given
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "unsupported_parameter", name)
    assert "served by fake" in answer.error["message"]
    assert "leave it out" in answer.error["message"]
    assert engine.exchanges == []


@pytest.mark.parametrize("given", [{"n": 1}, {"n": None}, {"logit_bias": {}}, {"suffix": None}])
async def test_a_harmless_value_passes(odd: RunningDoor, given) -> None:
    assert (await chat(odd, **given)).status == 200


async def test_the_engine_s_tag_is_taken_off_the_name(odd: RunningDoor, engine: ScriptedEngine) -> None:
    async def tagging(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(chat_chunk("x", model="smollm2:latest", finish="stop") + b"data: [DONE]\n\n")
        await exchange.end_stream()

    engine.script = tagging
    async with odd.client() as client:
        chunks = [
            c async for c in await client.chat.completions.create(model="smollm2", messages=MESSAGES, stream=True)
        ]
    assert {chunk.model for chunk in chunks} == {"smollm2"}


async def test_an_engine_with_one_name_for_every_model_gets_that_name(
    tmp_path: Path, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    dialect = Dialect(paths=DIALECT.paths, fixed_model="tgi")
    async with running_door(door_config(tmp_path), {"fake": dialect}.get) as running:
        await routes.applied(routes.push(route(target(engine))))
        assert (await chat(running)).status == 200
    assert engine.exchanges[0].json["model"] == "tgi"


@pytest.mark.parametrize("end", [b"data: [DONE]\n\n", b"data:[DONE]\n\n"])
async def test_a_stream_that_is_nothing_but_its_end_is_a_failed_engine(
    odd: RunningDoor, engine: ScriptedEngine, end: bytes
) -> None:
    """Some releases of TGI drop an error in a stream and send [DONE] alone."""

    async def empty(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(end)
        await exchange.end_stream()

    engine.script = empty
    answer = await chat(odd, stream=True)
    assert (answer.status, answer.error["code"]) == (502, "engine_failed")


async def test_values_that_the_engine_will_not_hear_are_left_out_and_texts_wrapped(
    tmp_path: Path, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    dialect = Dialect(paths=DIALECT.paths, dropped={"top_p": (1,)}, lists=frozenset({"stop"}))
    async with running_door(door_config(tmp_path), {"fake": dialect}.get) as running:
        await routes.applied(routes.push(route(target(engine))))
        for given in ({"top_p": 1.0, "stop": 'a"b'}, {"top_p": 0.5, "stop": ["c"]}, {"stop": None}):
            assert (await chat(running, **given)).status == 200
    bodies = [one.json for one in engine.exchanges]
    assert [one.get("top_p") for one in bodies] == [None, 0.5, None]
    assert [one["stop"] for one in bodies] == [['a"b'], ["c"], None]


async def test_a_schema_is_put_where_the_engine_looks_for_it(
    tmp_path: Path, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    dialect = Dialect(paths=DIALECT.paths, schema_member="value")
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}
    async with running_door(door_config(tmp_path), {"fake": dialect}.get) as running:
        await routes.applied(routes.push(route(target(engine))))
        await chat(running, response_format=form)
        await chat(running, response_format={"type": "text"})
    assert engine.exchanges[0].json["response_format"] == {"type": "json_schema", "value": form["json_schema"]}
    assert engine.exchanges[1].json["response_format"] == {"type": "text"}


async def test_a_stream_that_swallowed_its_error_ends_with_one(odd: RunningDoor, engine: ScriptedEngine) -> None:
    """Ollama's imitation of OpenAI turns an error into an empty chunk, and ends without a reason or [DONE]."""

    async def swallowing(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(chat_chunk("Hel") + chat_chunk("", model=""))
        await exchange.end_stream()

    engine.script = swallowing
    answer = await chat(odd, stream=True)
    last = answer.body.decode().strip().splitlines()[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_failed"
    assert b"[DONE]" not in answer.body


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, b'{"error":"the input length exceeds the context length"}', "door.context_length_exceeded"),
        (400, b'{"error":"{\\"error\\":{\\"message\\":\\"too odd\\"}}"}', "door.engine_refused"),
        (422, b'{"error":"Input validation error","error_type":"validation"}', "door.engine_refused"),
        (429, b'{"error":"Model is overloaded","error_type":"overloaded"}', "door.engine_busy"),
        (503, b'{"error":"server busy, please try again."}', "door.engine_busy"),
        (424, b'{"error":"Request failed during generation","error_type":"generation"}', "door.engine_failed"),
        (200, b'{"error":{"message":"bad","http_status_code":422}}', "door.engine_refused"),
        (200, b'{"error":{"message":"bad","type":"BadRequestError","code":400}}', "door.engine_refused"),
        (200, b'{"error":"an error was encountered while running the model"}', "door.engine_failed"),
    ],
)
def test_errors_of_every_shape_are_understood(status, body, code) -> None:
    phrases = ("input length exceeds",)
    failure = errors.engine_failure(status, body, frozenset(), "m", overflow_phrases=phrases)
    assert failure.code == code


@pytest.mark.parametrize(
    "error",
    [
        {"message": "Your input is too long.", "type": "invalid_request_error", "code": "context_length_exceeded"},
        {"message": "This model's maximum context length is 8192 tokens", "type": "invalid_request_error"},
        {"message": "Your input exceeds the context window of this model.", "type": "invalid_request_error"},
        {"message": "request (9 tokens) exceeds the available context size (4 tokens)", "code": 400},
        {"message": "too long", "type": "exceed_context_size_error", "code": 400},
    ],
)
def test_a_prompt_that_does_not_fit_a_remote_endpoint_is_known_by_code_type_or_words(error) -> None:
    dialect = adapter("openai").dialect
    body, phrases = json.dumps({"error": error}).encode(), dialect.overflow_phrases
    failure = errors.engine_failure(400, body, dialect.overflow_types, "m", overflow_phrases=phrases)
    assert failure.code == "door.context_length_exceeded"


def test_an_error_inside_an_error_is_shown_as_its_own_words() -> None:
    body = json.dumps({"error": json.dumps({"error": {"message": "too odd", "type": "x"}})}).encode()
    assert "too odd" in errors.engine_failure(400, body, frozenset(), "m").message
    assert "{" not in errors.engine_failure(400, body, frozenset(), "m").message


def test_a_name_with_its_tag_is_put_back_even_when_the_names_are_the_same() -> None:
    name = ModelName("m", "m", ":latest")
    assert name.restore(b'{"model": "m:latest"}{"model":"m"}{"model":"mm:latest"}') == (
        b'{"model":"m"}{"model":"m"}{"model":"mm:latest"}'
    )


def test_of_a_refused_field_given_twice_the_last_counts() -> None:
    with pytest.raises(Exception, match="cannot take 'n' = 2"):
        requests.check_refused(b'{"n":1,"n":2}', {"n": (1,)}, "m", "fake")


PICKS = Dialect(paths=DIALECT.paths, refused={"tool_choice": ("none", "auto", "required")})
TWO_TOOLS = [{"type": "function", "function": {"name": name, "strict": None}} for name in ("a", "b")]


def by_name(name: object) -> dict:
    return {"type": "function", "function": {"name": name}}


async def test_a_tool_by_name_is_the_only_one_for_an_engine_that_knows_no_names(
    tmp_path: Path, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    async with running_door(door_config(tmp_path), {"fake": PICKS}.get) as door:
        await routes.applied(routes.push(route(target(engine))))
        assert (await chat(door, tools=TWO_TOOLS, tool_choice=by_name("b"), seed=1)).status == 200
        assert (await chat(door, tools=TWO_TOOLS, tool_choice="auto")).status == 200
        for wrong in (by_name("c"), by_name(3), {"type": "allowed_tools"}):
            refused = await chat(door, tools=TWO_TOOLS, tool_choice=wrong)
            assert (refused.status, refused.error["param"]) == (400, "tool_choice")
    first, second = (one.json for one in engine.exchanges)
    assert (first["tools"], first["tool_choice"], first["seed"]) == (TWO_TOOLS[1:], "required", 1)
    assert (second["tools"], second["tool_choice"]) == (TWO_TOOLS, "auto")


async def test_an_engine_that_requires_no_tools_refuses_a_name(
    tmp_path: Path, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    never = Dialect(paths=DIALECT.paths, refused={"tool_choice": ("none", "auto")})
    async with running_door(door_config(tmp_path), {"fake": never}.get) as door:
        await routes.applied(routes.push(route(target(engine))))
        refused = await chat(door, tools=TWO_TOOLS, tool_choice=by_name("b"))
    assert (refused.status, refused.error["param"]) == (400, "tool_choice")
    assert engine.exchanges == []
