"""A managed TGI, alone and behind a door: the stand-in, and the real program where it is found."""

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import openai
import psutil
import pytest

from adapters.contract import ModelFile
from adapters.registry import adapter
from tests import standins
from tests.contract.asking import LIGHT
from tests.engine_models import engine_python
from tests.gateway.conftest import RoutesServer, RunningDoor, door_config, route, running_door, serving_routes, target
from tests.standins.conftest import CONTEXT, Engine, launch_request, model_file, real_program, running
from tests.standins.llama import free_port
from tests.standins.specs import check
from tests.waiting import until

KEY = {"authorization": "Bearer secret-rep_a"}
HI = [{"role": "user", "content": "hi"}]
LONG = [{"role": "user", "content": "long " * CONTEXT}]
SETTINGS = {"context": CONTEXT, "slots": 2, "queue": 4}


@pytest.fixture(scope="module", params=["stand-in", "real"])
def launcher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, chat_model: ModelFile) -> str:
    if request.param == "real":
        return real_program("text-generation-launcher")
    directory = tmp_path_factory.mktemp("programs")
    python = engine_python(adapter("llamacpp"))
    return str(
        standins.install(directory, engine_python=python, gguf_twin=Path(chat_model.stored_at))
        / "text-generation-launcher"
    )


@pytest.fixture(scope="module")
def folder(launcher: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelFile, ...]:
    """A model of the wanted format; the stand-in only looks whether its files are there."""
    directory = tmp_path_factory.mktemp("safetensors")
    given = os.environ.get("SLICE_TEST_SAFETENSORS")
    if given:
        return tuple(model_file(path) for path in sorted(Path(given).iterdir()) if path.is_file())
    if "stand-in" not in launcher and not launcher.startswith(str(tmp_path_factory.getbasetemp())):
        pytest.skip("the real TGI needs a model: name a folder of safetensors in SLICE_TEST_SAFETENSORS")
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return tuple(model_file(path) for path in sorted(directory.iterdir()))


@pytest.fixture(scope="module")
def tgi(launcher: str, folder: tuple[ModelFile, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    work = tmp_path_factory.mktemp("replica") / "work"
    request = launch_request(work, launcher, free_port(), folder, settings=SETTINGS, api_key="secret-rep_a")
    with running("tgi", request, os.environ["PATH"]) as engine:
        yield engine


@pytest.fixture
async def door(tmp_path: Path, tgi: Engine) -> AsyncIterator[RunningDoor]:
    """The model `tiny` of the engine, under the public name `little`."""
    routes = RoutesServer()
    async with (
        serving_routes(tmp_path / "control.sock", routes),
        running_door(
            door_config(tmp_path, first_byte_timeout_s=60.0), {"fake": adapter("tgi").dialect}.get
        ) as running_,
    ):
        await routes.applied(routes.push(route(target(tgi.port), name="little", served="tiny")))
        yield running_


# Alone


def test_info_says_what_the_launch_wanted(tgi: Engine) -> None:
    info = tgi.ask("GET", "/info").json
    check("tgi", "Info", info)
    assert (info["model_id"], info["max_total_tokens"], info["max_input_tokens"]) == ("tiny", CONTEXT, CONTEXT - 1)
    assert info["max_concurrent_requests"] == SETTINGS["queue"]


def test_what_computes_asks_for_the_key_and_the_rest_does_not(tgi: Engine) -> None:
    assert tgi.ask("POST", "/generate", {"inputs": "x"}).status == 401
    assert tgi.ask("POST", "/v1/chat/completions", {"messages": HI}, {"authorization": "Bearer no"}).status == 401
    assert tgi.ask("GET", "/metrics").status == tgi.ask("GET", "/v1/models").status == 200


def test_every_declared_metric_is_on_its_page(tgi: Engine) -> None:
    tgi.ask("POST", "/generate", {"inputs": "x", "parameters": {"max_new_tokens": 2}}, KEY)
    names = {line.split("{")[0].split(" ")[0] for line in tgi.ask("GET", "/metrics").body.decode().splitlines()}
    assert set(adapter("tgi").metrics.values()) <= names


def test_generation_and_its_stream_fit_their_schemas(tgi: Engine) -> None:
    asked = {"inputs": "one two", "parameters": {"max_new_tokens": 5, "details": True}}
    whole = tgi.ask("POST", "/generate", asked, KEY).json
    check("tgi", "GenerateResponse", whole)
    assert whole["details"]["generated_tokens"] == 5
    events = [
        json.loads(line[5:])
        for line in tgi.ask("POST", "/generate_stream", asked, KEY).body.decode().split("\n\n")
        if line
    ]
    for event in events:
        check("tgi", "StreamResponse", event)
    assert events[-1]["generated_text"] == whole["generated_text"]


def test_tokens_have_their_places(tgi: Engine) -> None:
    found = tgi.ask("POST", "/tokenize", {"inputs": "ab"}, KEY).json
    check("tgi", "TokenizeResponse", found)
    assert [one["text"] for one in found if one["stop"] > one["start"]] == ["a", "b"]


def test_chat_and_completion_fit_their_schemas(tgi: Engine) -> None:
    chat = tgi.ask("POST", "/v1/chat/completions", {"model": "tgi", "messages": HI, "max_tokens": 4}, KEY).json
    check("tgi", "ChatCompletion", chat)
    assert chat["model"] == "tiny"
    text = tgi.ask("POST", "/v1/completions", {"model": "tgi", "prompt": "one", "max_tokens": 4}, KEY).json
    check("tgi", "CompletionFinal", text)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"messages": HI, "model": "other"}, 424, "adapter"),
        ({"messages": HI, "top_p": 1.0}, 422, "top_p"),
        ({"messages": LONG, "max_tokens": 4}, 422, "max_new_tokens"),
        ({"messages": HI, "max_tokens": CONTEXT * 2}, 422, "must be <="),
        ({"messages": HI, "stop": ["a", "b", "c", "d", "e"]}, 422, "stop sequences"),
    ],
)
def test_errors_have_a_text_and_a_type(tgi: Engine, body: dict, status: int, words: str) -> None:
    answer = tgi.ask("POST", "/v1/chat/completions", {"model": "tgi", **body}, KEY)
    assert answer.status == status
    check("tgi", "ErrorResponse", answer.json)
    assert words in answer.json["error"]


def test_a_text_for_stop_is_no_request(tgi: Engine) -> None:
    asked = {"model": "tgi", "messages": HI, "stop": "x"}
    assert tgi.ask("POST", "/v1/chat/completions", asked, KEY).status == 422


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stop_string_stays_in_the_answer_under_a_reason_of_its_own(tgi: Engine, path: str) -> None:
    asked = {"model": "tgi", "messages": HI, "prompt": "hi", "temperature": 0, "max_tokens": 12}
    text = choice_text(tgi.ask("POST", path, asked, KEY).json["choices"][0])
    (choice,) = tgi.ask("POST", path, {**asked, "stop": [text[5:7]]}, KEY).json["choices"]
    assert choice_text(choice) == text[: text.index(text[5:7]) + 2]
    assert choice["finish_reason"] == "stop_sequence"


def choice_text(choice: dict) -> str:
    return choice["message"]["content"] if "message" in choice else choice["text"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"tools": [LIGHT], "tool_choice": {"function": {"name": "other"}}}, "other"),
        ({"tools": [LIGHT], "tool_choice": "required", "max_tokens": 5}, "parse"),
        ({"tools": [LIGHT], "response_format": {"type": "json", "value": {"properties": {}}}}, "exclusive"),
        ({"response_format": {"type": "json", "value": {"type": "nonsense"}}}, "grammar"),
        ({"response_format": {"type": "json", "value": {"type": "object"}}}, "properties"),
        ({"logprobs": True, "top_logprobs": 6}, "top_n_tokens"),
    ],
)
def test_what_a_grammar_cannot_do_is_refused(tgi: Engine, body: dict, words: str) -> None:
    answer = tgi.ask("POST", "/v1/chat/completions", {"model": "tgi", "messages": HI, **body}, KEY)
    assert answer.status == 422
    assert words in answer.json["error"]


def test_a_word_for_a_number_is_no_request(tgi: Engine) -> None:
    asked = {"model": "tgi", "messages": HI, "seed": "x"}
    assert tgi.ask("POST", "/v1/chat/completions", asked, KEY).status == 422


def test_its_shard_is_a_child_with_another_name_and_ends_with_it(
    launcher: str, folder: tuple[ModelFile, ...], tmp_path: Path
) -> None:
    request = launch_request(tmp_path / "work", launcher, free_port(), folder, settings=SETTINGS)
    with running("tgi", request, os.environ["PATH"]) as engine:
        children = psutil.Process(engine.process.pid).children(recursive=True)
        assert any(child.name().startswith("text-generation") for child in children)
        engine.process.terminate()
        engine.process.wait(20)
        until(lambda: not any(child.is_running() for child in children), 10, "the shard's end")


def test_a_folder_without_weights_ends_it_with_a_reason(launcher: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    request = launch_request(tmp_path / "work", launcher, free_port(), (model_file(tmp_path / "config.json"),))
    with pytest.raises(AssertionError, match="safetensors"), running("tgi", request, os.environ["PATH"]):
        pass


# Behind a door


async def test_a_client_gets_chats_under_the_public_name(door: RunningDoor) -> None:
    async with door.client() as client:
        ours = {"top_p": 1, "n": 1, "presence_penalty": 0, "frequency_penalty": 0}  # OpenAI's own defaults
        asked = {"model": "little", "messages": HI, "temperature": 0, "max_completion_tokens": 6, **ours}
        whole = await client.chat.completions.create(**asked)
        options = {"include_usage": True}
        stream = await client.chat.completions.create(**asked, stream=True, stream_options=options)
        chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert (whole.choices[0].message.content, whole.model) == (text, "little")
    assert (whole.choices[0].finish_reason, whole.usage.completion_tokens) == ("length", 6)
    assert chunks[-1].usage == whole.usage
    assert {chunk.model for chunk in chunks} == {"little"}


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
async def test_a_prompt_that_does_not_fit_is_told_so(door: RunningDoor, is_stream: bool) -> None:
    async with door.client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="little", messages=LONG, stream=is_stream, max_tokens=3)
    assert caught.value.code == "context_length_exceeded"


async def test_a_stop_that_is_a_text_ends_the_answer(door: RunningDoor) -> None:
    async with door.client() as client:
        asked = {"model": "little", "messages": HI, "temperature": 0, "max_tokens": 30}
        whole = (await client.chat.completions.create(**asked)).choices[0].message.content
        stopped = await client.chat.completions.create(**asked, stop=whole[6])
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].message.content == whole[: whole.index(whole[6])]


async def test_a_stop_string_never_comes_in_a_stream(door: RunningDoor) -> None:
    async with door.client() as client:
        asked = {"model": "little", "prompt": "hi", "temperature": 0, "max_tokens": 30}
        whole = (await client.completions.create(**asked)).choices[0].text
        chunks = [one async for one in await client.completions.create(**asked, stop=[whole[5:8]], stream=True)]
    assert "".join(one.choices[0].text for one in chunks) == whole[: whole.index(whole[5:8])]
    assert [one.choices[0].finish_reason for one in chunks if one.choices[0].finish_reason is not None] == ["stop"]


async def test_a_tool_that_must_be_called_is_called(door: RunningDoor) -> None:
    asked = {"model": "little", "messages": HI, "tools": [LIGHT], "tool_choice": "required", "max_tokens": 100}
    async with door.client() as client:
        (choice,) = (await client.chat.completions.create(**asked)).choices
        chunks = [one async for one in await client.chat.completions.create(**asked, stream=True)]
    (call,) = choice.message.tool_calls
    assert call.function.name == "set_light"
    assert set(json.loads(call.function.arguments)) == {"on"}
    pieces = [piece.function for one in chunks for piece in one.choices[0].delta.tool_calls or []]
    assert [piece.name for piece in pieces if piece.name] == ["set_light"]
    assert set(json.loads("".join(piece.arguments for piece in pieces))) == {"on"}


async def test_a_tool_that_may_be_called_is_called_or_the_answer_is_a_text(door: RunningDoor) -> None:
    async with door.client() as client:
        asked = {"model": "little", "messages": HI, "tools": [LIGHT], "max_tokens": 100, "temperature": 0}
        (choice,) = (await client.chat.completions.create(**asked)).choices
        chunks = [one async for one in await client.chat.completions.create(**asked, stream=True)]
    assert bool(choice.message.tool_calls) is not bool(choice.message.content)
    assert any(one.choices[0].delta.tool_calls for one in chunks) is bool(choice.message.tool_calls)


async def test_a_schema_constrains_the_answer(door: RunningDoor) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    async with door.client() as client:
        answer = await client.chat.completions.create(
            model="little", messages=HI, response_format=form, max_tokens=60, temperature=0
        )
    assert answer.choices[0].message.content.lstrip().startswith("{")


async def test_a_completion_continues_its_prompt(door: RunningDoor) -> None:
    async with door.client() as client:
        whole = await client.completions.create(model="little", prompt="one two", max_tokens=5, temperature=0)
        stream = await client.completions.create(
            model="little", prompt="one two", max_tokens=5, temperature=0, stream=True
        )
        text = "".join([chunk.choices[0].text async for chunk in stream])
    assert whole.choices[0].text == text
    assert whole.usage.completion_tokens == 5


@pytest.mark.parametrize(
    "field", [{"logit_bias": {"5": 1}}, {"presence_penalty": 0.5}], ids=lambda field: next(iter(field))
)
async def test_what_it_does_not_hear_is_refused_by_name(door: RunningDoor, field: dict) -> None:
    async with door.client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="little", messages=HI, **field)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", next(iter(field)))


async def test_more_than_it_may_hold_is_busy(door: RunningDoor) -> None:
    async with door.client() as client:

        async def one() -> object:
            return await client.chat.completions.create(model="little", messages=HI, max_tokens=60)

        async with asyncio.timeout(60):
            found = await asyncio.gather(*(one() for _ in range(12)), return_exceptions=True)
    busy = [answer for answer in found if isinstance(answer, openai.APIStatusError)]
    assert {error.code for error in busy} == {"engine_busy"}
    assert len(busy) < 12


def test_its_version_is_what_it_prints(launcher: str) -> None:
    binary = adapter("tgi").install_plan("3.3.7").binary
    assert shutil.which(launcher)
    printed = subprocess.run([launcher, *binary.version_argv], capture_output=True, text=True, timeout=60).stdout
    assert re.search(binary.version_pattern, printed)[1].count(".") == 2
