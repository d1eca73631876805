"""What a client hears of a disabled model: nothing at all, or a clear 503 that it does not repeat."""

import json

import httpx
import openai
import pytest

from tests.gateway.conftest import RoutesServer, RunningDoor, route, target
from tests.gateway.raw import call
from tests.gateway.scripted import ScriptedEngine

CHAT = "/v1/chat/completions"


def asked(model: str) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}]}


async def pushed(routes: RoutesServer, engine: ScriptedEngine, disabled: str) -> None:
    await routes.applied(routes.push(route(target(engine), name="other"), route(name="smollm2", disabled=disabled)))


async def test_a_hidden_model_is_as_unknown_as_one_that_never_was(
    ready: RunningDoor, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    await pushed(routes, engine, "not_found")
    hidden = await call(ready.port, "POST", CHAT, asked("smollm2"))
    never = await call(ready.port, "POST", CHAT, asked("smollm3"))
    assert hidden.status == never.status == 404
    assert hidden.error["code"] == "model_not_found"
    assert hidden.error["message"].replace("smollm2", "smollm3") == never.error["message"]
    assert (await call(ready.port, "GET", "/v1/models/smollm2")).status == 404
    listed = json.loads((await call(ready.port, "GET", "/v1/models")).body)["data"]
    assert [model["id"] for model in listed] == ["other"]


async def test_a_disabled_model_says_so_and_is_not_asked_again(
    ready: RunningDoor, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    await pushed(routes, engine, "unavailable")
    answer = await call(ready.port, "POST", CHAT, asked("smollm2"))
    assert (answer.status, answer.error["code"]) == (503, "model_disabled")
    assert int(answer.header("retry-after") or 0) >= 30
    sent = []

    async def count(request: httpx.Request) -> None:
        sent.append(request.url.path)

    line = httpx.AsyncClient(event_hooks={"request": [count]})
    async with ready.client(http_client=line) as client:
        with pytest.raises(openai.InternalServerError):
            await client.with_options(max_retries=3).chat.completions.create(**asked("smollm2"))
    assert sent == [CHAT]


async def test_asking_for_a_disabled_model_is_no_demand(
    ready: RunningDoor, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    for disabled in ("unavailable", "not_found"):
        await pushed(routes, engine, disabled)
        await call(ready.port, "POST", CHAT, asked("smollm2"))
    await routes.applied(routes.push(route(name="smollm2", waiting="asleep")))
    await call(ready.port, "POST", CHAT, asked("smollm2"))
    from tests.waiting import until_async

    async def is_told() -> bool:
        return any(report.demand for _, report in routes.reports)

    await until_async(is_told, 3)
    assert sum(report.demand.get("smollm2", 0) for _, report in routes.reports) == 1
