"""Ollama's own client against a door whose engines speak OpenAI's API, and Ollama's paths byte by byte."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import ollama
import pytest
from pydantic import BaseModel

from protos.slice.routes.v1 import routes_pb2
from tests.gateway.conftest import (
    KEY,
    KID,
    OTHER_KEY,
    RoutesServer,
    RunningDoor,
    door_config,
    key_entry,
    route,
    running_door,
    target,
)
from tests.gateway.raw import RawAnswer, call
from tests.gateway.scripted import Exchange, ScriptedEngine, chat_chunk
from tests.standins.specs import check
from tests.waiting import until_async

USER = [{"role": "user", "content": "hi"}]
DIGEST = "0123456789abcdef" * 4
CARD = routes_pb2.Card(
    digest=DIGEST,
    size_bytes=270_000_000,
    format="gguf",
    architecture="llama",
    quantization="Q8_0",
    parameters=134_515_008,
    context_length=8192,
    served_context=4096,
    embedding_length=576,
    capabilities=["chat", "completions", "embeddings", "tools", "seed"],
    memory_bytes=400_000_000,
    device_bytes=0,
)
ALL = ("chat", "completions", "embeddings")


def described(*targets: routes_pb2.Target, **more: object) -> routes_pb2.Route:
    made = route(*targets, endpoints=more.pop("endpoints", ALL), **more)
    made.card.CopyFrom(CARD)
    return made


@pytest.fixture
async def ready(door: RunningDoor, routes: RoutesServer, engine: ScriptedEngine) -> RunningDoor:
    await routes.applied(routes.push(described(target(engine)), described(name="idle", waiting="it is being fetched")))
    return door


@asynccontextmanager
async def official(door: RunningDoor, key: str = KEY) -> AsyncIterator[ollama.AsyncClient]:
    """The official client, which has the key in its host's path alone."""
    async with ollama.AsyncClient(host=f"http://127.0.0.1:{door.port}/k/{key}") as client:
        yield client


def playing(*events: dict, whole: dict | None = None):
    async def script(exchange: Exchange) -> None:
        if not exchange.json.get("stream"):
            await exchange.reply(json.dumps(whole or {}).encode())
            return
        await exchange.begin_stream()
        for one in events:
            await exchange.chunk(b"data: " + json.dumps(one).encode() + b"\n\n")
        await exchange.chunk(b"data: [DONE]\n\n")
        await exchange.end_stream()

    return script


def delta(finish: str | None = None, **members: object) -> dict:
    return {"choices": [{"index": 0, "delta": members, "finish_reason": finish}]}


USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


def answered(usage: dict | None = USAGE, **message: object) -> dict:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    return {"choices": [choice], "usage": usage}


async def post(door: RunningDoor, path: str, body: object, **headers: str) -> RawAnswer:
    return await call(door.port, "POST", path, body, headers or None)


# Chat


async def test_the_official_client_chats(ready: RunningDoor, engine: ScriptedEngine) -> None:
    engine.script = playing(whole=answered(content="Hello"))
    async with official(ready) as client:
        answer = await client.chat("smollm2:latest", USER, options={"num_predict": 8, "num_ctx": 2048}, keep_alive="1h")
    assert (answer.message.content, answer.message.role) == ("Hello", "assistant")
    assert (answer.model, answer.done, answer.done_reason) == ("smollm2:latest", True, "stop")
    assert (answer.prompt_eval_count, answer.eval_count) == (9, 4)
    assert answer.total_duration > 0
    assert engine.exchanges[0].path == "/v1/chat/completions"
    assert engine.exchanges[0].json == {"model": "smollm2", "messages": USER, "max_tokens": 8}


async def test_the_official_client_streams(ready: RunningDoor, engine: ScriptedEngine) -> None:
    usage = {"choices": [], "usage": USAGE}
    engine.script = playing(delta(role="assistant"), delta(content="Hel"), delta(content="lo"), delta("stop"), usage)
    async with official(ready) as client:
        parts = [part async for part in await client.chat("smollm2", USER, stream=True)]
    assert [part.message.content for part in parts] == ["Hel", "lo", ""]
    assert [part.done for part in parts] == [False, False, True]
    assert (parts[-1].prompt_eval_count, parts[-1].eval_count, parts[-1].done_reason) == (9, 4, "stop")


async def test_a_stream_is_lines_of_json_and_fits_the_spec(ready: RunningDoor, engine: ScriptedEngine) -> None:
    answer = await post(ready, "/api/chat", {"model": "smollm2", "messages": USER, "options": {"num_ctx": 1, "a b": 1}})
    assert answer.status == 200
    assert answer.header("content-type") == "application/x-ndjson"
    assert answer.header("x-slice-ignored-options") == "num_ctx"
    assert answer.header("x-slice-replica") == "rep_a"
    assert answer.header("openai-processing-ms") is None
    found = [json.loads(line) for line in answer.body.splitlines()]
    assert "".join(line["message"]["content"] for line in found) == "Hello"
    for line in found:
        check("ollama", "ChatStreamEvent", line)
    assert engine.exchanges[0].json["stream_options"] == {"include_usage": True}


async def test_tools_are_called_and_answered(ready: RunningDoor, engine: ScriptedEngine) -> None:
    def add(a: int, b: int) -> int:
        """Add two numbers.

        Args:
            a: one
            b: the other
        """
        return a + b

    piece = {"index": 0, "id": "call_7", "type": "function", "function": {"name": "add", "arguments": '{"a": 2,'}}
    more = {"index": 0, "function": {"arguments": ' "b": 3}'}}
    engine.script = playing(delta(tool_calls=[piece]), delta(tool_calls=[more]), delta("tool_calls"))
    async with official(ready) as client:
        # Without a type of tool the fake engine's dialect of the tests takes everything.
        parts = [part async for part in await client.chat("smollm2", USER, tools=[add], stream=True)]
        called = parts[0].message.tool_calls[0].function
        assert (called.name, add(**called.arguments)) == ("add", 5)
        assert parts[-1].done_reason == "stop"
        engine.script = playing(whole=answered(content="5"))
        result = {"role": "tool", "tool_name": "add", "content": "5"}
        await client.chat("smollm2", [*USER, parts[0].message, result])
    asked = engine.exchanges[0].json["tools"][0]
    assert (asked["type"], asked["function"]["name"]) == ("function", "add")
    assistant, answer = engine.exchanges[1].json["messages"][1:]
    assert assistant["tool_calls"][0]["id"] == answer["tool_call_id"]


async def test_a_schema_and_thoughts(ready: RunningDoor, engine: ScriptedEngine) -> None:
    class Answer(BaseModel):
        a: int

    engine.script = playing(whole=answered(content='{"a": 1}', reasoning="hm"))
    async with official(ready) as client:
        answer = await client.chat("smollm2", USER, format=Answer.model_json_schema(), think="low")
    assert Answer.model_validate_json(answer.message.content).a == 1
    assert answer.message.thinking == "hm"
    asked = engine.exchanges[0].json
    assert asked["response_format"]["json_schema"]["schema"] == Answer.model_json_schema()
    assert asked["reasoning_effort"] == "low"


@pytest.mark.parametrize("how", ["dies", "says so", "sends nonsense"])
async def test_a_stream_that_breaks_ends_with_an_error(ready: RunningDoor, engine: ScriptedEngine, how: str) -> None:
    async def breaking(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(chat_chunk("Hel"))
        if how == "says so":
            await exchange.chunk(b'data: {"error":{"message":"cuda out of memory at /x/y","type":"server_error"}}\n\n')
        elif how == "sends nonsense":
            await exchange.chunk(b'data: {"choices":[{"delta":{"content":1}}]}\n\ndata: [DONE]\n\n')
            await exchange.end_stream()
        else:
            await exchange.line.drained()
            exchange.die()

    engine.script = breaking
    parts: list[str] = []

    async def read(client: ollama.AsyncClient) -> None:
        async for part in await client.chat("smollm2", USER, stream=True):
            parts.append(part.message.content)

    async with official(ready) as client:
        with pytest.raises(ollama.ResponseError) as broken:
            await read(client)
    assert parts == ["Hel"]
    assert "smollm2" in broken.value.error
    assert "cuda" not in broken.value.error
    answer = await post(ready, "/api/chat", {"model": "smollm2", "messages": USER})
    assert set(json.loads(answer.body.splitlines()[-1])) == {"error"}


async def test_an_engine_s_answer_that_is_none_is_a_502(ready: RunningDoor, engine: ScriptedEngine) -> None:
    engine.script = playing(whole={"choices": []})
    answer = await post(ready, "/api/chat", {"model": "smollm2", "messages": USER, "stream": False})
    assert answer.status == 502
    check("ollama", "ErrorResponse", json.loads(answer.body))


async def test_a_client_that_leaves_closes_the_engine_s_connection(ready: RunningDoor, engine: ScriptedEngine) -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(chat_chunk("x"))

    engine.script = endless
    async with official(ready) as client:
        stream = await client.chat("smollm2", USER, stream=True)
        await anext(aiter(stream))
        await stream.aclose()
    async with asyncio.timeout(2):
        await engine.exchanges[0].closed.wait()


# Generate and embed


async def test_the_official_client_generates(ready: RunningDoor, engine: ScriptedEngine) -> None:
    engine.script = playing(delta(content="a"), delta(content="b"), delta("length"), whole=answered(content="ab"))
    async with official(ready) as client:
        answer = await client.generate("smollm2", "hi", system="Be brief.")
        assert (answer.response, answer.done_reason) == ("ab", "stop")
        parts = [part async for part in await client.generate("smollm2", "hi", stream=True)]
    assert ["".join(part.response for part in parts), parts[-1].done_reason] == ["ab", "length"]
    system = {"role": "system", "content": "Be brief."}
    assert engine.exchanges[0].json == {"model": "smollm2", "messages": [system, *USER]}


async def test_a_raw_prompt_is_completed_as_it_is(ready: RunningDoor, engine: ScriptedEngine) -> None:
    engine.script = playing(whole={"choices": [{"index": 0, "text": "!", "finish_reason": "stop"}], "usage": USAGE})
    async with official(ready) as client:
        answer = await client.generate("smollm2", "<s>hi", raw=True)
    assert answer.response == "!"
    assert (engine.exchanges[0].path, engine.exchanges[0].json["prompt"]) == ("/v1/completions", "<s>hi")


async def test_the_official_client_embeds(ready: RunningDoor, engine: ScriptedEngine) -> None:
    data = [{"object": "embedding", "index": index, "embedding": [0.5, index]} for index in (1, 0)]
    engine.script = playing(whole={"object": "list", "data": data, "model": "smollm2", "usage": {"prompt_tokens": 2}})
    async with official(ready) as client:
        many = await client.embed("smollm2", ["a", "b"], dimensions=2)
        old = await client.embeddings("smollm2", "a")
    assert [list(one) for one in many.embeddings] == [[0.5, 0], [0.5, 1]]
    assert (many.model, many.prompt_eval_count) == ("smollm2", 2)
    assert list(old.embedding) == [0.5, 0]
    assert engine.exchanges[0].json == {"model": "smollm2", "input": ["a", "b"], "dimensions": 2}
    assert engine.exchanges[1].json == {"model": "smollm2", "input": "a"}


async def test_a_request_without_a_prompt_says_whether_the_model_is_loaded(
    ready: RunningDoor, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    async with official(ready) as client:
        loaded = await client.chat("smollm2")
        assert (loaded.done, loaded.done_reason, loaded.message.content) == (True, "load", "")
        assert (await client.generate("smollm2")).done_reason == "load"
        assert (await client.embed("smollm2", [])).embeddings == []
        assert list((await client.embeddings("smollm2")).embedding) == []
        with pytest.raises(ollama.ResponseError, match="being fetched") as waiting:
            await client.generate("idle")
        assert waiting.value.status_code == 503
        with pytest.raises(ollama.ResponseError, match="slice stop"):
            await client.generate("smollm2", keep_alive=0)
    assert not engine.exchanges

    async def is_told() -> bool:
        return any(report.demand.get("idle") for _, report in routes.reports)

    await until_async(is_told, 5, "the controller to hear that somebody wanted the model")


# What there is


async def test_the_official_client_lists_and_shows(ready: RunningDoor) -> None:
    async with official(ready) as client:
        models = (await client.list()).models
        loaded = (await client.ps()).models
        shown = await client.show("smollm2")
    assert [model.model for model in models] == ["idle:latest", "smollm2:latest"]
    assert (models[1].digest, models[1].size) == (DIGEST, 270_000_000)
    assert models[1].details.parameter_size == "134.5M"
    assert [model.model for model in loaded] == ["smollm2:latest"]
    assert (loaded[0].size, loaded[0].size_vram, loaded[0].context_length) == (400_000_000, 0, 4096)
    assert shown.capabilities == ["completion", "embedding", "tools"]
    assert shown.modelinfo["llama.context_length"] == 8192
    assert (shown.details.format, shown.details.family, shown.details.quantization_level) == ("gguf", "llama", "Q8_0")


async def test_lists_fit_the_spec_also_of_models_of_which_nothing_is_known(
    ready: RunningDoor, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    await routes.applied(routes.push(described(target(engine)), route(target(engine), name="far")))
    for path, schema in (("/api/tags", "ListResponse"), ("/api/ps", "PsResponse"), ("/api/version", "VersionResponse")):
        answer = await call(ready.port, "GET", path)
        check("ollama", schema, json.loads(answer.body))
        assert answer.header("content-type") == "application/json; charset=utf-8"
    for name in ("smollm2", "far"):
        check("ollama", "ShowResponse", json.loads((await post(ready, "/api/show", {"name": name})).body))
    far = json.loads((await call(ready.port, "GET", "/api/tags")).body)["models"][0]
    assert far["digest"] == "0" * 64, "Ollama's own client cuts its first twelve off"


async def test_the_version_is_ollama_s_with_ours_beside_it(ready: RunningDoor) -> None:
    found = json.loads((await call(ready.port, "GET", "/api/version")).body)
    assert found == {"version": "0.33.0", "slice": "0"}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_root_greets_everybody_as_ollama_does(ready: RunningDoor, method: str) -> None:
    for path in ("/", f"/k/{KEY}", f"/k/{KEY}/"):
        answer = await call(ready.port, method, path, headers={"authorization": None})
        assert (answer.status, answer.body) == (200, b"Ollama is running" if method == "GET" else b"")


async def test_an_alias_that_splits_its_requests_is_described_by_its_heaviest_arm(
    ready: RunningDoor, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    split = routes_pb2.Route(public_name="chat", endpoints=ALL, created_unix_s=1)
    split.arms.add(route="new", weight=10)
    split.arms.add(route="old", weight=90)
    old, new = described(target(engine), name="old"), route(name="new", waiting="no")
    old.is_internal = new.is_internal = True
    await routes.applied(routes.push(split, old, new))
    async with official(ready) as client:
        assert [(one.model, one.digest) for one in (await client.list()).models] == [("chat:latest", DIGEST)]
        assert [one.model for one in (await client.ps()).models] == ["chat:latest"]


# Refusals


@pytest.mark.parametrize(
    ("method", "path", "command"),
    [
        ("POST", "/api/pull", "slice pull"),
        ("POST", "/api/push", "slice export"),
        ("POST", "/api/create", "slice deploy"),
        ("POST", "/api/copy", "slice cp"),
        ("DELETE", "/api/delete", "slice rm"),
        ("POST", "/api/blobs/sha256:00", "slice pull"),
    ],
)
async def test_what_is_the_operator_s_is_refused_with_the_command_that_does_it(
    ready: RunningDoor, method: str, path: str, command: str
) -> None:
    answer = await call(ready.port, method, path, {"model": "x"})
    assert answer.status == 403
    check("ollama", "ErrorResponse", json.loads(answer.body))
    assert f"`{command}" in answer.error
    nobody = await call(ready.port, method, path, {"model": "x"}, {"authorization": None})
    assert nobody.status == 401


async def test_the_official_client_says_why_a_pull_is_refused(ready: RunningDoor) -> None:
    async with official(ready) as client:
        with pytest.raises(ollama.ResponseError, match="slice pull") as refused:
            await client.pull("smollm2")
        assert refused.value.status_code == 403
        with pytest.raises(ollama.ResponseError, match="slice pull"):
            [one async for one in await client.pull("smollm2", stream=True)]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/api/chat", {"model": "smolm2", "messages": USER}, 404, "not found. Did you mean 'smollm2'?"),
        ("POST", "/api/chat", {"messages": USER}, 400, "'model' is missing"),
        ("POST", "/api/chat", b"{", 400, "JSON"),
        ("POST", "/api/chat", {"model": "idle", "messages": USER}, 503, "being fetched"),
        ("POST", "/api/generate", {"model": "smollm2", "prompt": "x", "template": "y"}, 400, "template"),
        ("POST", "/api/show", {"model": "nothing"}, 404, "not found"),
        ("POST", "/api/show", {}, 400, "'model' is missing"),
        ("GET", "/api/chat", b"", 405, "use POST"),
        ("POST", "/api/nothing", {}, 404, "not part of this API"),
    ],
)
async def test_refusals_are_one_sentence(
    ready: RunningDoor, method: str, path: str, body: object, status: int, words: str
) -> None:
    answer = await call(ready.port, method, path, body)
    assert answer.status == status
    assert list(json.loads(answer.body)) == ["error"]
    assert words in answer.error
    assert (answer.header("allow") == "POST") is (status == 405)
    assert bool(answer.header("retry-after")) is (status == 503)


async def test_a_model_that_the_door_may_not_tell_a_key_of_does_not_exist_for_it(
    ready: RunningDoor, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    keys = [key_entry(), key_entry(OTHER_KEY, models=["other"])]
    await routes.applied(routes.push(described(target(engine)), described(target(engine), name="other"), keys=keys))
    async with official(ready, OTHER_KEY) as client:
        assert [one.model for one in (await client.list()).models] == ["other:latest"]
        assert (await client.show("other:latest")).details
        for refused in (client.show("smollm2"), client.chat("smollm2", USER), client.generate("smollm2")):
            with pytest.raises(ollama.ResponseError, match="not found"):
                await refused


# The key


async def test_the_key_may_stand_in_the_header_or_in_the_path_which_wins(ready: RunningDoor) -> None:
    statuses = [
        (await call(ready.port, "GET", path, headers={"authorization": header})).status
        for path, header in (
            ("/api/tags", f"Bearer {KEY}"),
            (f"/k/{KEY}/api/tags", None),
            (f"/k/{KEY}/api/tags", "Bearer for-somebody-else"),
            (f"/k/{OTHER_KEY}/api/tags", f"Bearer {KEY}"),
            ("/k//api/tags", f"Bearer {KEY}"),
            ("/api/tags", None),
        )
    ]
    assert statuses == [200, 200, 200, 401, 401, 401]


async def test_a_missing_key_is_answered_with_both_ways_to_send_it(ready: RunningDoor) -> None:
    answer = await call(ready.port, "GET", "/api/tags", headers={"authorization": None})
    assert "Bearer" in answer.error
    assert "OLLAMA_HOST" in answer.error


async def test_openai_s_paths_take_a_key_before_them_too(ready: RunningDoor) -> None:
    answer = await call(ready.port, "GET", f"/k/{KEY}/v1/models", headers={"authorization": None})
    assert answer.status == 200


async def test_the_official_client_finds_host_and_key_in_the_environment(
    ready: RunningDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", f"http://127.0.0.1:{ready.port}/k/{KEY}/")
    async with ollama.AsyncClient() as client:
        assert (await client.list()).models
    monkeypatch.setenv("OLLAMA_HOST", f"http://127.0.0.1:{ready.port}")
    monkeypatch.setenv("OLLAMA_API_KEY", KEY)
    async with ollama.AsyncClient() as client:
        assert (await client.list()).models


async def test_a_key_in_a_path_is_never_logged_nor_shown(tmp_path: Path, routes: RoutesServer) -> None:
    def failing(engine: str) -> None:
        raise RuntimeError(engine)

    async with running_door(door_config(tmp_path), failing) as door:
        await routes.applied(routes.push(described(target(9))))
        failed = await call(door.port, "POST", f"/k/{KEY}/api/chat", {"model": "smollm2", "messages": USER})
        shown = [failed, await call(door.port, "GET", f"/k/{KEY}/api/x"), await call(door.port, "GET", f"/k/{KEY}/x")]
    assert failed.status == 500
    assert "request_failed" in door.logged.getvalue()
    told = door.logged.getvalue() + str([(one.headers, one.body) for one in shown])
    assert KEY not in told
    assert KEY.removeprefix(f"slice_{KID}_") not in told


async def test_what_is_counted_of_a_request(ready: RunningDoor, engine: ScriptedEngine) -> None:
    tallies = []
    ready.door.app._on_end = lambda visit: tallies.append((visit.caller.kid, visit.tally))
    await post(ready, "/api/chat", {"model": "smollm2:latest", "messages": USER})

    async def is_over() -> bool:
        return bool(tallies)

    await until_async(is_over, 5, "the request to end")
    kid, tally = tallies[0]
    assert (kid, tally.endpoint, tally.model, tally.is_stream, tally.status) == (KID, "chat", "smollm2", True, 200)
    assert tally.route.public_name == "smollm2"
    assert tally.first_byte_s is not None
