"""A door in front of a managed Ollama: what an OpenAI client gets, overflow and leaving included."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import psutil
import pytest

from adapters.registry import adapter
from tests.gateway.conftest import RoutesServer, RunningDoor, door_config, route, running_door, serving_routes, target
from tests.standins.conftest import CONTEXT, Engine

HI = [{"role": "user", "content": "hi"}]
LONG = [{"role": "user", "content": "long " * CONTEXT}]


@pytest.fixture
async def door(tmp_path: Path, engine: Engine) -> AsyncIterator[RunningDoor]:
    """The model `tiny` of the engine, under the public name `little`."""
    routes = RoutesServer()
    async with (
        serving_routes(tmp_path / "control.sock", routes),
        running_door(
            door_config(tmp_path, first_byte_timeout_s=60.0), {"fake": adapter("ollama").dialect}.get
        ) as running,
    ):
        await routes.applied(routes.push(route(target(engine.port), name="little", served="tiny")))
        yield running


async def test_chat_and_its_stream_say_the_same(door: RunningDoor) -> None:
    async with door.client() as client:
        asked = {"model": "little", "messages": HI, "temperature": 0, "max_completion_tokens": 8}
        whole = await client.chat.completions.create(**asked)
        options = {"include_usage": True}
        stream = await client.chat.completions.create(**asked, stream=True, stream_options=options)
        chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert (whole.choices[0].message.content, whole.model) == (text, "little")
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == chunks[-1].usage.completion_tokens == 8
    assert whole.usage.prompt_tokens == chunks[-1].usage.prompt_tokens > 0


async def test_the_same_seed_gives_the_same_answer_and_another_another(door: RunningDoor) -> None:
    async with door.client() as client:
        texts = [
            (
                await client.chat.completions.create(model="little", messages=HI, seed=seed, max_tokens=24)
            ).choices[0].message.content
            for seed in (1, 1, 2)
        ]  # fmt: skip
    assert texts[0] == texts[1] != texts[2]


async def test_a_stop_ends_the_answer(door: RunningDoor) -> None:
    async with door.client() as client:
        asked = {"model": "little", "messages": HI, "temperature": 0, "max_tokens": 40}
        whole = (await client.chat.completions.create(**asked)).choices[0].message.content
        stopped = await client.chat.completions.create(**asked, stop=whole[6])
    assert stopped.choices[0].message.content == whole[: whole.index(whole[6])]
    assert stopped.choices[0].finish_reason == "stop"


async def test_a_schema_constrains_the_answer(door: RunningDoor) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {**schema, "additionalProperties": False}}}
    async with door.client() as client:
        answer = await client.chat.completions.create(
            model="little", messages=HI, response_format=form, max_tokens=60, temperature=0
        )
    assert answer.choices[0].message.content.lstrip().startswith("{")


async def test_logprobs_come_with_the_tokens(door: RunningDoor) -> None:
    async with door.client() as client:
        answer = await client.chat.completions.create(
            model="little", messages=HI, logprobs=True, top_logprobs=2, max_tokens=3, temperature=0
        )
    found = answer.choices[0].logprobs.content
    assert found
    assert all(one.logprob <= 0 for one in found)
    assert len(found[0].top_logprobs) == 2


async def test_a_completion_continues_its_prompt(door: RunningDoor) -> None:
    async with door.client() as client:
        answer = await client.completions.create(model="little", prompt="one two", max_tokens=5, temperature=0)
    assert answer.choices[0].text
    assert answer.usage.prompt_tokens < 12  # seven bytes and a beginning: no template around it


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("messages", [LONG, [*LONG, *HI]], ids=["the last message", "an earlier one"])
async def test_a_prompt_that_does_not_fit_is_an_error_and_never_cut(
    door: RunningDoor, messages: list, is_stream: bool
) -> None:
    async with door.client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="little", messages=messages, stream=is_stream, max_tokens=3)
    assert caught.value.code == "context_length_exceeded"


async def test_a_completion_that_does_not_fit_is_an_error_too(door: RunningDoor) -> None:
    async with door.client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.completions.create(model="little", prompt="long " * CONTEXT, max_tokens=3)
    assert caught.value.code == "context_length_exceeded"


async def test_tools_are_taken_by_a_model_whose_template_knows_them(door: RunningDoor) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    async with door.client() as client:
        answer = await client.chat.completions.create(model="little", messages=HI, tools=[tool], max_tokens=4)
    assert answer.usage.completion_tokens <= 4


async def test_a_client_that_leaves_frees_the_only_slot_within_a_moment(door: RunningDoor) -> None:
    async with door.client() as client:
        stream = await client.chat.completions.create(model="little", messages=HI, stream=True, max_tokens=4000)
        await anext(aiter(stream))
        await stream.close()
        async with asyncio.timeout(1.0):
            await client.chat.completions.create(model="little", messages=HI, max_tokens=1)


async def test_an_engine_that_breaks_in_the_middle_ends_the_stream_with_an_error(
    door: RunningDoor, engine: Engine
) -> None:
    (child,) = psutil.Process(engine.process.pid).children()
    async with door.client() as client:
        stream = await client.chat.completions.create(model="little", messages=HI, stream=True, max_tokens=4000)
        chunks = aiter(stream)
        await anext(chunks)
        child.kill()
        with pytest.raises(openai.APIError, match="failed to answer"):
            async for _ in chunks:
                pass
        again = await client.chat.completions.create(model="little", messages=HI, max_tokens=1)
    assert again.usage.completion_tokens == 1
