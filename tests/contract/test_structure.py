"""Answers in a form that was asked for: JSON that fits a schema, and calls of tools."""

import json

import jsonschema

from adapters.contract import Capability, Endpoint
from tests.contract.asking import LIGHT, LIGHT_SCHEMA, MESSAGES, greedy
from tests.contract.conftest import Absent
from tests.contract.engines import Contestant
from tests.contract.stage import Reply, Served
from tests.contract.test_answers import answer_of, can

SCHEMA_FORMAT = {"type": "json_schema", "json_schema": {"name": "light", "strict": True, "schema": LIGHT_SCHEMA}}
NAMED = {"type": "function", "function": {"name": "set_light"}}


def names_of_refusal(reply: Reply, *fields: str) -> bool:
    """Return whether a refusal is the client's fault and names one of `fields`."""
    error = reply.json()["error"]
    return reply.status == 400 and any(name == error["param"] or name in error["message"] for name in fields)


def test_an_answer_fits_the_schema_that_was_asked_for(served: Served, absent: Absent) -> None:
    reply = served.ask(Endpoint.CHAT, greedy(200, response_format=SCHEMA_FORMAT))
    if not can(served, Capability.JSON_SCHEMA):
        absent("no JSON schema")
        assert names_of_refusal(reply, "response_format"), reply.text
        return
    (choice,) = answer_of(reply)["choices"]
    assert choice["finish_reason"] == "stop"
    jsonschema.validate(json.loads(choice["message"]["content"]), LIGHT_SCHEMA)


def test_a_schema_that_makes_no_sense_is_the_client_s_fault(served: Served) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    assert served.ask(Endpoint.CHAT, greedy(4, response_format=form)).status == 400


def test_a_call_of_a_tool_is_told_as_one(caller: Served, contestant: Contestant, absent: Absent) -> None:
    choice_asked = "auto" if contestant.calling_model else NAMED
    asked = {"messages": MESSAGES, "temperature": 0, "max_tokens": 100, "tools": [LIGHT], "tool_choice": choice_asked}
    reply = caller.ask(Endpoint.CHAT, asked)
    if not can(caller, Capability.TOOLS):
        absent("no tools")
        assert names_of_refusal(reply, "tools", "tool_choice"), reply.text
        return
    (choice,) = answer_of(reply)["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "set_light")
    assert call["id"]
    jsonschema.validate(json.loads(call["function"]["arguments"]), LIGHT["function"]["parameters"])
    assert choice["finish_reason"] in ("tool_calls", "stop")
    assert not choice["message"].get("content")


def test_a_call_comes_in_a_stream_too(caller: Served, contestant: Contestant, absent: Absent) -> None:
    if not can(caller, Capability.TOOLS):
        absent("no tools")
        reply = caller.ask(Endpoint.CHAT, greedy(4, tools=[LIGHT], tool_choice="required", stream=True))
        assert names_of_refusal(reply, "tools", "tool_choice"), reply.text
        return
    choice_asked = "auto" if contestant.calling_model else NAMED
    stream = caller.client().chat.completions.create(
        model=caller.name, **greedy(100, tools=[LIGHT], tool_choice=choice_asked), stream=True
    )
    deltas = [call for chunk in stream for choice in chunk.choices for call in choice.delta.tool_calls or []]
    assert "".join(call.function.name or "" for call in deltas) == "set_light"
    assert {call.index for call in deltas} == {0}
    arguments = "".join(call.function.arguments or "" for call in deltas)
    jsonschema.validate(json.loads(arguments), LIGHT["function"]["parameters"])


def test_a_tool_s_answer_is_taken_back(caller: Served, absent: Absent) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "set_light", "arguments": '{"on": true}'}}
    talk = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "the light is on"},
    ]
    reply = caller.ask(Endpoint.CHAT, {"messages": talk, "max_tokens": 8, "temperature": 0})
    if not can(caller, Capability.TOOLS):
        absent("no tools")
        assert reply.status in (200, 400)
        return
    answer = answer_of(reply)
    short = answer_of(caller.ask(Endpoint.CHAT, greedy(8)))
    # The call and its result were rendered: the prompt grew by their words.
    assert answer["usage"]["prompt_tokens"] >= short["usage"]["prompt_tokens"] + 5


def test_a_forced_call_is_a_call_or_a_refusal(caller: Served, absent: Absent) -> None:
    """Never a text as if nothing had been asked, unless the answer was cut for its length."""
    for forced in ("required", NAMED):
        reply = caller.ask(Endpoint.CHAT, greedy(100, tools=[LIGHT], tool_choice=forced))
        if reply.status == 400:
            absent(f"no tool_choice {'by name' if forced is NAMED else forced}")
            assert names_of_refusal(reply, "tools", "tool_choice"), reply.text
            continue
        (choice,) = answer_of(reply)["choices"]
        assert choice["message"].get("tool_calls") or choice["finish_reason"] == "length"


def test_tools_with_the_choice_none_are_not_called(caller: Served) -> None:
    reply = caller.ask(Endpoint.CHAT, greedy(100, tools=[LIGHT], tool_choice="none"))
    if reply.status == 400:
        assert names_of_refusal(reply, "tools", "tool_choice"), reply.text
    else:
        assert not answer_of(reply)["choices"][0]["message"].get("tool_calls")
