"""Targets that run elsewhere: TLS with checked certificates, the path prefix, the key, the names, and no way inside."""

import json
from pathlib import Path

import aiohttp
import openai
import pytest

from gateway import upstream
from gateway.table import table_from
from protos.slice.routes.v1 import routes_pb2
from tests.gateway.conftest import KEY, RoutesServer, RunningDoor, route
from tests.gateway.scripted import Exchange, ScriptedEngine, answering, chat_answer
from tests.tls import Authority, in_front_of, swallowing_first

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    made = Authority(tmp_path / "tls")
    monkeypatch.setenv("SSL_CERT_FILE", str(made.file))
    return made


def far(base_url: str, replica_id: str = "rep_far") -> routes_pb2.Target:
    return routes_pb2.Target(replica_id=replica_id, incarnation=1, base_url=base_url, engine_key="sk-remote")


async def ask(door: RunningDoor, model: str, **more: object) -> openai.types.chat.ChatCompletion:
    async with door.client() as client:
        return await client.chat.completions.create(model=model, messages=MESSAGES, **more)


async def dated(exchange: Exchange) -> None:
    """A provider that answers under another name than it was asked for."""
    await exchange.reply(chat_answer("hello", model="gpt-4o-2024-08-06"))


async def test_a_request_goes_out_by_tls_with_our_key_and_comes_back_under_the_public_name(
    door: RunningDoor, routes: RoutesServer, engine: ScriptedEngine, authority: Authority
) -> None:
    engine.script = dated
    async with in_front_of(engine.port, authority.context) as port:
        await routes.applied(routes.push(route(far(f"https://localhost:{port}/deep"), name="gpt", served="gpt-4o")))
        answer = await ask(door, "gpt")
        assert answer.model == "gpt"
        seen = engine.exchanges[0]
        assert seen.path == "/deep/v1/chat/completions"
        assert seen.json["model"] == "gpt-4o"
        assert seen.headers["authorization"] == "Bearer sk-remote"
        assert seen.headers["host"] == f"localhost:{port}"


async def test_nothing_of_the_client_reaches_the_remote_but_its_request(
    door: RunningDoor, routes: RoutesServer, engine: ScriptedEngine, authority: Authority
) -> None:
    async with in_front_of(engine.port, authority.context) as port:
        await routes.applied(routes.push(route(far(f"https://localhost:{port}"))))
        headers = {"cookie": "a=b", "x-api-key": "mine", "openai-organization": "org", "x-forwarded-for": "10.0.0.1"}
        await ask(door, "smollm2", extra_headers=headers)
        seen = engine.exchanges[0]
        assert KEY not in str(seen.headers)
        assert not {*headers, "user-agent", "x-stainless-lang"} & seen.headers.keys()


async def test_a_stream_is_passed_on_and_its_connection_is_used_again(
    door: RunningDoor, routes: RoutesServer, engine: ScriptedEngine, authority: Authority
) -> None:
    async with in_front_of(engine.port, authority.context) as port:
        await routes.applied(routes.push(route(far(f"https://localhost:{port}"), name="gpt", served="far-name")))
        for _ in range(2):
            async with door.client() as client:
                stream = await client.chat.completions.create(model="gpt", messages=MESSAGES, stream=True)
                chunks = [chunk async for chunk in stream]
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello"
            assert {chunk.model for chunk in chunks} == {"gpt"}
        assert engine.connections == 1


async def test_a_certificate_that_is_not_trusted_is_unreachable_and_the_key_stays_here(
    door: RunningDoor, routes: RoutesServer, engine: ScriptedEngine, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "stranger")
    async with in_front_of(engine.port, stranger.context) as port:
        await routes.applied(routes.push(route(far(f"https://localhost:{port}"))))
        with pytest.raises(openai.InternalServerError) as caught:
            await ask(door, "smollm2")
        assert caught.value.status_code == 503
        assert not engine.exchanges


@pytest.mark.parametrize(("status", "extra"), [(401, ""), (302, "Location: http://127.0.0.1:1/\r\n"), (404, "")])
async def test_a_remote_that_refuses_us_is_our_fault_and_its_words_stay_here(
    door: RunningDoor, routes: RoutesServer, engine: ScriptedEngine, status: int, extra: str
) -> None:
    async def refusing(exchange: Exchange) -> None:
        body = json.dumps({"error": {"message": "Incorrect API key: sk-remote", "type": "invalid_request_error"}})
        await exchange.reply(body.encode(), status=status, extra=extra)

    engine.script = refusing
    await routes.applied(routes.push(route(far(f"http://127.0.0.1:{engine.port}"))))
    with pytest.raises(openai.InternalServerError) as caught:
        await ask(door, "smollm2")
    assert caught.value.status_code in (502, 503)
    assert "sk-remote" not in caught.value.response.text
    assert len(engine.exchanges) == 1, "no redirect was followed"


async def test_a_dead_remote_is_unreachable_and_another_replica_answers(
    door: RunningDoor, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    engine.script = answering
    dead, alive = far("http://127.0.0.1:1", "rep_dead"), far(f"http://127.0.0.1:{engine.port}", "rep_alive")
    await routes.applied(routes.push(route(dead, alive)))
    for _ in range(3):
        await ask(door, "smollm2")
    await routes.applied(routes.push(route(dead)))
    async with aiohttp.ClientSession() as session:
        body = {"model": "smollm2", "messages": MESSAGES}
        url = f"http://127.0.0.1:{door.port}/v1/chat/completions"
        async with session.post(url, json=body, headers={"authorization": f"Bearer {KEY}"}) as answer:
            assert answer.status == 503


async def test_an_address_that_swallows_everything_leaves_time_for_the_next(
    door: RunningDoor,
    routes: RoutesServer,
    engine: ScriptedEngine,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upstream, "REMOTE_CONNECT_TIMEOUT_S", 2.0)
    engine.script = answering
    async with in_front_of(engine.port, authority.context) as port:
        with swallowing_first(port, monkeypatch):
            await routes.applied(routes.push(route(far(f"https://localhost:{port}"))))
            await ask(door, "smollm2")


def test_a_target_at_a_refused_address_is_left_out() -> None:
    table = table_from(routes_pb2.RouteTable(version=1, routes=[route(far("https://169.254.169.254"))]))
    assert table.routes["smollm2"].targets == ()
