"""OpenAI's responses API on every engine, by the official client: whole, streamed, with tools and schemas."""

import json

import jsonschema
import openai
import pytest

from adapters.contract import Capability
from tests.contract.asking import LIGHT, LIGHT_SCHEMA, MESSAGES
from tests.contract.conftest import Absent
from tests.contract.engines import Contestant
from tests.contract.stage import Served
from tests.contract.test_answers import can
from tests.standins.specs import check

GREEDY = {"temperature": 0.0, "max_output_tokens": 16}
TOOL = {"type": "function", "strict": None, **LIGHT["function"]}


def test_a_response_and_its_stream_say_the_same(served: Served) -> None:
    client = served.client()
    whole = client.responses.create(model=served.name, input=MESSAGES, **GREEDY)
    events = list(client.responses.create(model=served.name, input=MESSAGES, stream=True, **GREEDY))
    final = events[-1].response
    assert "".join(one.delta for one in events if one.type == "response.output_text.delta") == whole.output_text
    assert (final.output_text, final.status) == (whole.output_text, whole.status)
    assert whole.status == "incomplete"
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert (whole.usage.output_tokens, whole.usage.input_tokens) == (16, final.usage.input_tokens)
    assert [one.sequence_number for one in events] == list(range(len(events)))
    assert events[0].type == "response.created"


def test_a_response_fits_openai_s_description(served: Served) -> None:
    raw = served.client().responses.with_raw_response.create(model=served.name, input="one two", **GREEDY)
    check("responses", "Response", json.loads(raw.content))


def test_a_schema_shapes_a_response(served: Served, absent: Absent) -> None:
    text = {"format": {"type": "json_schema", "name": "light", "strict": True, "schema": LIGHT_SCHEMA}}
    asked = {"model": served.name, "input": MESSAGES, "text": text, "max_output_tokens": 200, "temperature": 0.0}
    if not can(served, Capability.JSON_SCHEMA):
        absent("no JSON schema")
        with pytest.raises(openai.BadRequestError):
            served.client().responses.create(**asked)
        return
    jsonschema.validate(json.loads(served.client().responses.create(**asked).output_text), LIGHT_SCHEMA)


def test_a_tool_is_called_by_a_response_and_its_result_heard(
    caller: Served, contestant: Contestant, absent: Absent
) -> None:
    asked = {"model": caller.name, "tools": [TOOL], "temperature": 0.0, "max_output_tokens": 100}
    client = caller.client()
    if not can(caller, Capability.TOOLS):
        absent("no tools")
        with pytest.raises(openai.BadRequestError):
            client.responses.create(input=MESSAGES, **asked)
        return
    events = list(client.responses.create(input=MESSAGES, stream=True, **asked))
    calls = [one for one in events[-1].response.output if one.type == "function_call"]
    if contestant.calling_model is None and not calls:
        absent("its model calls nothing by itself")
        return
    assert calls[0].name == "set_light"
    assert isinstance(json.loads(calls[0].arguments)["on"], bool)
    result = {"type": "function_call_output", "call_id": calls[0].call_id, "output": "it is on"}
    items = [*MESSAGES, calls[0].model_dump(exclude_none=True), result]
    again = client.responses.create(input=items, **asked)
    # The call and its result were rendered: the prompt grew by their words.
    assert again.usage.input_tokens > client.responses.create(input=MESSAGES, **asked).usage.input_tokens


def test_a_response_that_does_not_fit_is_refused_and_never_cut(served: Served) -> None:
    for is_stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            served.client().responses.create(model=served.name, input="word " * 20_000, stream=is_stream, **GREEDY)
        assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")
