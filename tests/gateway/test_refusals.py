"""Every way in which a door says no, in OpenAI's words."""

import json

import openai
import pytest

from core.apikeys import render_key
from tests.gateway.conftest import KEY, OTHER_KEY, RoutesServer, RunningDoor, instant, key_entry, route, target
from tests.gateway.raw import call
from tests.gateway.scripted import ScriptedEngine

MESSAGES = [{"role": "user", "content": "hi"}]
ASKED = {"model": "smollm2", "messages": MESSAGES}
CHAT = "/v1/chat/completions"


def four_fields(error: dict) -> bool:
    return set(error) == {"message", "type", "param", "code"} and isinstance(error["code"], str | None)


@pytest.mark.parametrize(
    "given, code",
    [
        pytest.param(None, "invalid_api_key", id="none"),
        pytest.param("Bearer ", "invalid_api_key", id="empty"),
        pytest.param("Basic abc", "invalid_api_key", id="another scheme"),
        pytest.param("Bearer sk-nonsense", "invalid_api_key", id="another form"),
        pytest.param(f"Bearer {KEY[:-1]}x", "invalid_api_key", id="wrong checksum"),
        pytest.param(f"Bearer {OTHER_KEY}", "invalid_api_key", id="unknown kid"),
    ],
)
async def test_a_wrong_key_is_401(ready: RunningDoor, given: str | None, code: str) -> None:
    for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/v1/models/smollm2")):
        answer = await call(ready.port, method, path, ASKED if method == "POST" else b"", {"authorization": given})
        assert answer.status == 401
        assert answer.error["code"] == code
        assert four_fields(answer.error)


async def test_a_known_kid_with_another_secret_is_401_without_a_word_about_revocation(
    ready: RunningDoor, routes: RoutesServer
) -> None:
    kid_twin = render_key(bytes(range(8)) + b"z" * 32)[1]
    await routes.applied(routes.push(route(), keys=[key_entry(is_revoked=True)]))
    answer = await call(ready.port, "GET", "/v1/models", headers={"authorization": f"Bearer {kid_twin}"})
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")


async def test_a_revoked_key_is_refused_as_soon_as_the_table_says_so(ready: RunningDoor, routes: RoutesServer) -> None:
    assert (await call(ready.port, "GET", "/v1/models")).status == 200
    await routes.applied(routes.push(route(), keys=[key_entry(is_revoked=True)]))
    answer = await call(ready.port, "GET", "/v1/models")
    assert (answer.status, answer.error["code"]) == (401, "key_revoked")
    async with ready.client() as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def test_a_key_expires_by_the_clock(ready: RunningDoor, routes: RoutesServer) -> None:
    await routes.applied(routes.push(route(), keys=[key_entry(expires_unix_s=instant(60))]))
    assert (await call(ready.port, "GET", "/v1/models")).status == 200
    ready.clock.ahead_s = 61
    answer = await call(ready.port, "GET", "/v1/models")
    assert (answer.status, answer.error["code"]) == (401, "key_expired")


@pytest.mark.parametrize(
    "method, path, status, code, allow",
    [
        ("GET", "/v2", 404, "unknown_url", None),
        ("POST", "/v1/files", 404, "unknown_url", None),
        ("GET", CHAT, 405, "method_not_allowed", "POST"),
        ("POST", "/v1/models", 405, "method_not_allowed", "GET"),
        ("DELETE", "/v1/models/smollm2", 405, "method_not_allowed", "GET"),
        ("POST", "/health", 405, "method_not_allowed", "GET, HEAD"),
    ],
)
async def test_unknown_paths_and_methods_are_refused(
    ready: RunningDoor, method: str, path: str, status: int, code: str, allow: str | None
) -> None:
    answer = await call(ready.port, method, path)
    assert (answer.status, answer.error["code"], answer.header("allow")) == (status, code, allow)
    assert four_fields(answer.error)


@pytest.mark.parametrize(
    "body, param, words",
    [
        pytest.param(b'{"model": "smollm2",\n "messages": [}', None, "line 2, column 15", id="malformed"),
        pytest.param(b'{"model": "smollm2"', None, "line 1, column 20", id="cut off"),
        pytest.param(b"", None, "line 1", id="empty"),
        pytest.param(b"[]", None, "object", id="a list"),
        pytest.param(b'{"model": "\xff"}', None, "UTF-8", id="no UTF-8"),
        pytest.param(b'{"messages": [{}]}', "model", "missing", id="no model"),
        pytest.param(b'{"model": 3, "messages": [{}]}', "model", "expected str", id="model a number"),
        pytest.param(b'{"model": "smollm2"}', "messages", "at least one", id="no messages"),
        pytest.param(b'{"model": "smollm2", "messages": []}', "messages", "at least one", id="messages empty"),
        pytest.param(b'{"model": "smollm2", "messages": "hi"}', "messages", "expected array", id="messages text"),
        pytest.param(b'{"model": "smollm2", "messages": ["hi"]}', "messages", "expected object", id="message text"),
        pytest.param(b'{"model": "smollm2", "messages": [{}], "n": 9}', "n", "between 1 and 8", id="n"),
        pytest.param(b'{"model": "smollm2", "messages": [{}], "n": 0}', "n", "between 1 and 8", id="n zero"),
        pytest.param(b'{"model": "smollm2", "messages": [{}], "temperature": 2.1}', "temperature", "2", id="hot"),
        pytest.param(b'{"model": "smollm2", "messages": [{}], "top_p": -1}', "top_p", "0 and 1", id="top_p"),
        pytest.param(b'{"model": "smollm2", "messages": [{}], "max_tokens": 0}', "max_tokens", "least 1", id="tokens"),
        pytest.param(
            b'{"model": "smollm2", "messages": [{}], "max_completion_tokens": -5}',
            "max_completion_tokens",
            "least 1",
            id="completion tokens",
        ),
        pytest.param(
            b'{"model": "smollm2", "messages": [{}], "temperature": NaN}', "temperature", "between 0 and 2", id="NaN"
        ),
        pytest.param(b'{"model": "smollm2", "messages": [{}], "x": -Infinity}', "x", "finite number", id="infinity"),
        pytest.param(b'{"model": "smollm2", "messages": [{}], "top_p": 1e999}', "top_p", "0 and 1", id="huge"),
        pytest.param(b'{"model": "smollm2", "messages": [{}], "x": [NaN]}', None, "line 1", id="NaN in a list"),
        pytest.param(b'{"model": "smollm2", "messages": [{}], "x": Nothing}', None, "line 1", id="no NaN"),
        pytest.param(b'{"model": "smollm2", "messages": [{}], "max_tokens": -1}', "max_tokens", "least 1", id="minus"),
        pytest.param(
            b'{"model": "smollm2", "messages": [{}], "api_base": "http://x"}', "api_base", "not accepted", id="api_base"
        ),
        pytest.param(
            b'{"model": "smollm2", "messages": [{}], "user_config": {"api_base": "http://x"}}',
            "user_config.api_base",
            "not accepted",
            id="nested api_base",
        ),
        pytest.param(
            b'{"model": "smollm2", "messages": [{}], "user_config": "x"}', "user_config", "not accepted", id="config"
        ),
        pytest.param(
            b'{"model": "smollm2", "messages": [{}], "extra_headers": {"a": "b"}}', "extra_headers", "not", id="headers"
        ),
        pytest.param(b'{"model": "smollm2", "messages": [{}], "stream": "yes"}', "stream", "bool", id="stream"),
        pytest.param(
            b'{"model":"smollm2","messages":[{}],"x":' + b"[" * 65 + b"]" * 65 + b"}", None, "deeper than 64", id="deep"
        ),
        pytest.param(b'{"x":' + b"[" * 50_000, None, "", id="very deep"),
    ],
)
async def test_a_wrong_body_is_400_naming_the_place(
    ready: RunningDoor, engine: ScriptedEngine, body: bytes, param: str | None, words: str
) -> None:
    answer = await call(ready.port, "POST", CHAT, body)
    assert (answer.status, answer.error["param"]) == (400, param), answer.error
    assert words.lower() in answer.error["message"].lower()
    assert four_fields(answer.error)
    assert not engine.exchanges


@pytest.mark.parametrize(
    "fields, code",
    [
        ({"n": 100_000}, "out_of_range"),
        ({"max_tokens": -1}, "out_of_range"),
        ({"user_config": {"api_base": "http://x"}}, "unknown_field"),
        ({"temperature": float("nan")}, "out_of_range"),
        ({"messages": []}, "invalid_value"),
    ],
    ids=["n", "max_tokens", "user_config", "NaN", "no messages"],
)
async def test_each_kind_of_wrong_field_has_a_code_of_its_own(ready: RunningDoor, fields: dict, code: str) -> None:
    answer = await call(ready.port, "POST", CHAT, {**ASKED, **fields})
    assert (answer.status, answer.error["code"]) == (400, code)


async def test_fields_that_would_steer_a_request_pass_when_they_are_null(ready: RunningDoor) -> None:
    assert (await call(ready.port, "POST", CHAT, {**ASKED, "api_base": None, "user_config": None})).status == 200


async def test_many_shallow_brackets_are_no_depth(ready: RunningDoor) -> None:
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "[{" * 100 + '\\"[['}] * 100}
    assert (await call(ready.port, "POST", CHAT, body)).status == 200


async def test_an_unknown_model_is_404_with_the_closest_name(ready: RunningDoor) -> None:
    async with ready.client() as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="smolm2", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    assert "Did you mean 'smollm2'?" in str(caught.value)


async def test_a_model_that_nothing_serves_is_503_with_the_reason_and_counted_as_demand(
    ready: RunningDoor, routes: RoutesServer
) -> None:
    await routes.applied(routes.push(route(waiting="its node has not been heard of for 9 s.")))
    answer = await call(ready.port, "POST", CHAT, ASKED)
    assert (answer.status, answer.error["code"]) == (503, "model_not_ready")
    assert "its node has not been heard of for 9 s" in answer.error["message"]
    assert int(answer.header("retry-after")) > 0
    assert ready.door.balance.drain_demand() == {"smollm2": 1}


async def test_a_body_over_the_limit_is_413_before_it_is_read(ready: RunningDoor) -> None:
    limit = ready.config.body_limit_bytes
    answer = await call(ready.port, "POST", CHAT, b"{", {"content-length": str(limit + 1)})
    assert (answer.status, answer.header("connection")) == (413, "close")


async def test_a_chunked_body_over_the_limit_is_413_while_it_comes(ready: RunningDoor) -> None:
    piece = b" " * 65536
    chunks = b"%x\r\n%s\r\n" % (len(piece), piece) * 17
    answer = await call(ready.port, "POST", CHAT, chunks, {"transfer-encoding": "chunked", "content-length": None})
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")


async def test_an_encoded_body_is_refused(ready: RunningDoor) -> None:
    assert (await call(ready.port, "POST", CHAT, b"xx", {"content-encoding": "gzip"})).status == 400


async def test_a_door_that_never_heard_a_controller_is_503(door: RunningDoor) -> None:
    answer = await call(door.port, "GET", "/v1/models")
    assert (answer.status, answer.error["code"]) == (503, "no_routes")
    assert (await call(door.port, "GET", "/health")).status == 200


async def test_nothing_that_was_written_or_asked_is_logged(
    ready: RunningDoor, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    async def broken(exchange) -> None:
        await exchange.reply(b'{"error": "secret engine text"}', status=500)

    engine.script = broken
    for asked in (ASKED, {**ASKED, "model": "prompt-in-the-wrong-place"}):
        await call(ready.port, "POST", CHAT, {**asked, "messages": [{"role": "user", "content": "my diary"}]})
    await routes.applied(routes.push(route(target(engine))))
    logged = ready.logged.getvalue()
    assert json.loads(logged.splitlines()[0])["part"] == "door"
    for secret in ("my diary", KEY, "secret engine text", "secret-rep_a", "prompt-in"):
        assert secret not in logged
