"""Embeddings in either form, of the length that was asked for, whatever the engine makes of the question."""

import base64
import contextlib
import json
import math
import struct

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.contract import Dialect, Endpoint
from adapters.registry import adapter
from core.errors import Failure
from gateway.openai import embeddings, requests
from gateway.openai.stream import ModelName
from gateway.table import Route
from gateway.upstream import EngineDied
from gateway.words import words
from tests.gateway.conftest import DIALECT, RoutesServer, RunningDoor, door_config, route, running_door, target
from tests.gateway.raw import call
from tests.gateway.scripted import Exchange, ScriptedEngine
from tests.standins.specs import check

VECTORS = [[0.5, -1.0, 0.25], [1e-3, 2.0, 0.0]]
ROUTE = Route(
    public_name="m",
    deployment="m",
    served_name="m",
    engine="fake",
    endpoints=frozenset({"embeddings"}),
    targets=(),
    waiting="",
    created_unix_s=0,
)


def answer(vectors: list, **more: object) -> dict:
    data = [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(vectors)]
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    return {"object": "list", "model": "smollm2", "data": data, "usage": usage, **more}


def giving(vectors: list):
    async def script(exchange: Exchange) -> None:
        await exchange.reply(json.dumps(answer(vectors)).encode())

    return script


@pytest.fixture
async def ready(door: RunningDoor, routes: RoutesServer, engine: ScriptedEngine) -> RunningDoor:
    engine.script = giving(VECTORS)
    await routes.applied(routes.push(route(target(engine), endpoints=("embeddings",))))
    return door


async def post(door: RunningDoor, **fields: object):
    return await call(door.port, "POST", "/v1/embeddings", {"model": "smollm2", **fields})


def numbers(text: str) -> list[float]:
    data = base64.b64decode(text, validate=True)
    return list(struct.unpack(f"<{len(data) // 4}f", data))


async def test_the_official_client_gets_vectors_of_an_engine_that_gives_numbers_only(
    ready: RunningDoor, engine: ScriptedEngine
) -> None:
    async with ready.client() as client:
        found = await client.embeddings.create(model="smollm2", input=["a", "b"])
    assert engine.exchanges[0].json["encoding_format"] == "base64", "the client asks for it by default"
    assert [one.embedding for one in found.data] == [pytest.approx(one) for one in VECTORS]
    assert [one.index for one in found.data] == [0, 1]
    assert found.usage.total_tokens == 3


async def test_numbers_keep_their_bytes(ready: RunningDoor, engine: ScriptedEngine) -> None:
    body = b'{"object":"list", "model":"smollm2","data":[{"index":0,"object":"embedding","embedding":[1.50e-1]}]}'

    async def script(exchange: Exchange) -> None:
        await exchange.reply(body)

    engine.script = script
    assert (await post(ready, input="a", encoding_format="float")).body == body
    assert (await post(ready, input="a")).body == body


async def test_base64_is_little_endian_float32_and_fits_the_spec_but_for_its_form(ready: RunningDoor) -> None:
    found = json.loads((await post(ready, input=["a", "b"], encoding_format="base64")).body)
    assert [numbers(one["embedding"]) for one in found["data"]] == [pytest.approx(one) for one in VECTORS]
    for one, vector in zip(found["data"], VECTORS, strict=True):
        one["embedding"] = vector
    check("openai", "CreateEmbeddingResponse", found)


async def test_base64_of_the_engine_stays_as_it_is(ready: RunningDoor, engine: ScriptedEngine) -> None:
    packed = [embeddings.packed(one) for one in VECTORS]
    engine.script = giving(packed)
    found = json.loads((await post(ready, input=["a", "b"], encoding_format="base64", dimensions=3)).body)
    assert [one["embedding"] for one in found["data"]] == packed


@pytest.mark.parametrize("form", ["float", "base64"])
async def test_dimensions_that_the_engine_has_ignored_are_refused_by_name(ready: RunningDoor, form: str) -> None:
    refused = await post(ready, input=["a", "b"], dimensions=2, encoding_format=form)
    assert (refused.status, refused.error["code"], refused.error["param"]) == (
        400,
        "unsupported_parameter",
        "dimensions",
    )
    assert "3 numbers" in refused.error["message"]
    assert (await post(ready, input=["a", "b"], dimensions=3, encoding_format=form)).status == 200


@pytest.mark.parametrize(
    "vector",
    [
        pytest.param(["x"], id="texts"),
        pytest.param([None], id="nulls"),
        pytest.param(None, id="nothing"),
        pytest.param([1e60], id="no float32"),
        pytest.param("no base64!", id="no base64"),
    ],
)
async def test_an_answer_without_vectors_is_a_502(ready: RunningDoor, engine: ScriptedEngine, vector: object) -> None:
    engine.script = giving([vector])
    refused = await post(ready, input="a", encoding_format="base64", dimensions=1)
    assert (refused.status, refused.error["code"]) == (502, "engine_failed")


@pytest.mark.parametrize(
    "body, param",
    [
        pytest.param({"input": ""}, "input", id="empty text"),
        pytest.param({"input": []}, "input", id="empty list"),
        pytest.param({"input": ["a", ""]}, "input", id="an empty text in a list"),
        pytest.param({"input": [[1], []]}, "input", id="an empty list of tokens"),
        pytest.param({"input": [1, "a"]}, "input", id="a mixture"),
        pytest.param({"input": [1.5]}, "input", id="fractions"),
        pytest.param({"input": [True]}, "input", id="booleans"),
        pytest.param({"input": {"a": 1}}, "input", id="an object"),
        pytest.param({"input": 7}, "input", id="a number"),
        pytest.param({"input": ["a"] * 2049}, "input", id="too many"),
        pytest.param({"input": "a", "encoding_format": "hex"}, "encoding_format", id="another form"),
        pytest.param({"input": "a", "encoding_format": 7}, "encoding_format", id="no form"),
        pytest.param({"input": "a", "dimensions": 0}, "dimensions", id="no dimensions"),
        pytest.param({"input": "a", "dimensions": "many"}, "dimensions", id="dimensions in words"),
    ],
)
async def test_what_is_no_input_is_refused_by_name(
    ready: RunningDoor, engine: ScriptedEngine, body: dict, param: str
) -> None:
    refused = await post(ready, **body)
    assert (refused.status, refused.error["param"]) == (400, param)
    assert not engine.exchanges


@pytest.mark.parametrize("value", ["a", ["a", "b"], [0], [1, 2], [[1, 0], [2]], list(range(3000))])
def test_every_shape_of_input_is_passed_on(value: object) -> None:
    body = json.dumps({"model": "m", "input": value}).encode()
    asked = requests.asked(Endpoint.EMBEDDINGS, body)
    assert words(Endpoint.EMBEDDINGS, body, asked, ROUTE, Dialect(paths={})).body == body


async def test_tokens_are_refused_by_name_where_the_engine_takes_none(
    tmp_path, routes: RoutesServer, engine: ScriptedEngine
) -> None:
    async with running_door(door_config(tmp_path), {"fake": adapter("ollama").dialect}.get) as door:
        await routes.applied(routes.push(route(target(engine), endpoints=("embeddings",))))
        async with door.client() as client:
            with pytest.raises(openai.BadRequestError, match="takes no tokens") as caught:
                await client.embeddings.create(model="smollm2", input=[1, 2])
    assert caught.value.param == "input"


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1), min_size=1))
def test_whatever_the_numbers_they_arrive_as_they_were(vectors: list[list[float]]) -> None:
    body = json.dumps({"model": "m", "input": ["a"], "encoding_format": "base64"}).encode()
    said = words(Endpoint.EMBEDDINGS, body, requests.asked(Endpoint.EMBEDDINGS, body), ROUTE, DIALECT)
    found = json.loads(said.whole(ModelName("m", "m"), json.dumps(answer(vectors, timings={"a": [1]})).encode()))
    for one, vector in zip(found["data"], vectors, strict=True):
        assert [math.copysign(1, x) for x in numbers(one["embedding"])] == [math.copysign(1, x) for x in vector]
        assert numbers(one["embedding"]) == vector
    assert found["timings"] == {"a": [1]}


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_an_answer_or_a_dead_engine(data: bytes) -> None:
    body = b'{"model":"m","input":"a","encoding_format":"base64","dimensions":2}'
    said = words(Endpoint.EMBEDDINGS, body, requests.asked(Endpoint.EMBEDDINGS, body), ROUTE, DIALECT)
    with contextlib.suppress(EngineDied, Failure):
        assert said.whole(ModelName("m", "m"), data)
