"""A whole answer put together from a stream says what the stream said, and nothing when the stream did not end."""

import json

from hypothesis import given
from hypothesis import strategies as st

from adapters.contract import Dialect
from gateway.openai.assembly import assembled
from tests.gateway.conftest import DIALECT, RoutesServer, door_config, route, running_door, serving_routes, target
from tests.gateway.raw import call
from tests.gateway.scripted import Exchange, ScriptedEngine

BASE = {"id": "c1", "created": 7, "model": "m", "object": "chat.completion.chunk"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def chunk(delta: dict, finish: str | None = None, **more: object) -> bytes:
    return event({**BASE, "choices": [{"index": 0, "delta": delta, "finish_reason": finish, **more}]})


LAST = event({**BASE, "choices": [], "usage": USAGE, "timings": {"n": 1}})
DONE = b"data: [DONE]\n\n"


@given(st.lists(st.text()))
def test_the_pieces_of_a_text_are_joined(pieces: list[str]) -> None:
    sent = chunk({"role": "assistant", "content": None}) + b"".join(chunk({"content": piece}) for piece in pieces)
    answer = json.loads(assembled(sent + chunk({}, "stop") + LAST + DONE).body)
    (choice,) = answer.pop("choices")
    assert (choice["message"]["content"] or "") == "".join(pieces)
    assert (choice["message"]["role"], choice["finish_reason"], choice["index"]) == ("assistant", "stop", 0)
    assert answer == {**BASE, "object": "chat.completion", "usage": USAGE, "timings": {"n": 1}}


def test_calls_come_in_pieces_and_beside_each_other() -> None:
    def calls(*pieces: dict) -> bytes:
        return chunk({"tool_calls": list(pieces)})

    sent = (
        calls({"index": 0, "id": "a", "type": "function", "function": {"name": "set", "arguments": ""}})
        + calls({"index": 0, "function": {"name": "_light", "arguments": '{"on"'}})
        + calls({"index": 1, "id": "b", "type": "function", "function": {"name": "go", "arguments": "{}"}})
        + calls({"index": 0, "function": {"arguments": ": true}"}})
        + chunk({}, "tool_calls")
    )
    (choice,) = json.loads(assembled(sent).body)["choices"]
    assert choice["message"]["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "set_light", "arguments": '{"on": true}'}},
        {"id": "b", "type": "function", "function": {"name": "go", "arguments": "{}"}},
    ]
    assert choice["message"]["content"] is None


def test_log_probabilities_and_reasoning_are_joined_too() -> None:
    sent = (
        chunk({"reasoning_content": "hm"}, logprobs={"content": [{"token": "a"}]})
        + chunk({"reasoning_content": "m", "content": "b"}, logprobs={"content": [{"token": "b"}]})
        + chunk({}, "length")
    )
    (choice,) = json.loads(assembled(sent).body)["choices"]
    assert choice["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}]}
    assert choice["message"]["reasoning_content"] == "hmm"


def test_a_completion_and_its_siblings_are_joined_by_their_numbers() -> None:
    def text(index: int, piece: str, finish: str | None = None) -> bytes:
        choice = {"index": index, "text": piece, "logprobs": None, "finish_reason": finish}
        return event({"id": "c", "object": "text_completion", "choices": [choice]})

    answer = json.loads(assembled(text(1, "b") + text(0, "a") + text(0, "c", "stop") + text(1, "", "length")).body)
    assert answer["object"] == "text_completion"
    assert [(one["index"], one["text"], one["finish_reason"]) for one in answer["choices"]] == [
        (0, "ac", "stop"),
        (1, "b", "length"),
    ]
    assert answer["choices"][0]["logprobs"] is None


def test_a_stream_that_broke_off_is_no_answer() -> None:
    assert assembled(chunk({"content": "a"})).body == b""
    assert assembled(b"").body == b""
    assert assembled(chunk({"content": "a"}, "stop") + b'data: {"id": "c1", "cho').body == b""


def test_an_error_inside_is_handed_out() -> None:
    error = {"error": {"code": 500, "message": "boom", "type": "server_error"}}
    made = assembled(chunk({"content": "a"}) + event(error))
    assert (made.body, json.loads(made.error or b"")) == (b"", error)


DEAF = Dialect(paths=DIALECT.paths, overflow_types=DIALECT.overflow_types, is_deaf_while_whole=True)


async def test_a_whole_answer_is_asked_for_as_a_stream_where_the_engine_is_deaf_otherwise(tmp_path) -> None:
    heard: list[dict] = []

    async def script(exchange: Exchange) -> None:
        heard.append(exchange.json)
        await exchange.begin_stream()
        for piece in (chunk({"content": "one"}), chunk({"content": " two"}, "stop"), LAST, DONE):
            await exchange.chunk(piece)
        await exchange.end_stream()

    routes = RoutesServer()
    async with (
        serving_routes(tmp_path / "control.sock", routes),
        ScriptedEngine(script) as engine,
        running_door(door_config(tmp_path), {"fake": DEAF}.get) as door,
    ):
        await routes.applied(routes.push(route(target(engine), name="public", served="m")))
        asked = {"model": "public", "messages": [{"role": "user", "content": "hi"}], "seed": 5}
        reply = await call(door.port, "POST", "/v1/chat/completions", asked)
    assert reply.status == 200
    answer = json.loads(reply.body)
    assert answer["model"] == "public"
    assert answer["choices"][0]["message"]["content"] == "one two"
    assert answer["usage"] == USAGE
    (body,) = heard
    assert (body["stream"], body["stream_options"], body["seed"]) == (True, {"include_usage": True}, 5)


async def test_a_deaf_engine_that_dies_gives_a_clean_502(tmp_path) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(chunk({"content": "one"}))
        await exchange.end_stream()

    routes = RoutesServer()
    async with (
        serving_routes(tmp_path / "control.sock", routes),
        ScriptedEngine(script) as engine,
        running_door(door_config(tmp_path), {"fake": DEAF}.get) as door,
    ):
        await routes.applied(routes.push(route(target(engine), name="public", served="m")))
        asked = {"model": "public", "messages": [{"role": "user", "content": "hi"}]}
        reply = await call(door.port, "POST", "/v1/chat/completions", asked)
    assert (reply.status, reply.error["code"]) == (502, "engine_failed")
