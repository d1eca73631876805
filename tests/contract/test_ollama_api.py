"""Ollama's own client on every engine: what is asked in Ollama's words is answered in them."""

import json
from collections.abc import Iterator

import jsonschema
import ollama
import pytest

from adapters.contract import Capability, Endpoint
from tests.contract.asking import LIGHT, LIGHT_SCHEMA, MESSAGES
from tests.contract.conftest import Absent
from tests.contract.engines import Contestant
from tests.contract.stage import Served
from tests.contract.test_answers import can

GREEDY = {"temperature": 0, "num_predict": 12}


@pytest.fixture
def client(served: Served) -> Iterator[ollama.Client]:
    """The official client, with the key in its host's path."""
    with ollama.Client(host=f"http://127.0.0.1:{served.stage.door_port}/k/{served.stage.door_key}") as made:
        yield made


def has(served: Served, endpoint: Endpoint) -> bool:
    return endpoint in served.adapter.endpoints(served.settings)


def test_a_chat_and_its_stream_say_the_same(served: Served, client: ollama.Client) -> None:
    whole = client.chat(f"{served.name}:latest", MESSAGES, options=GREEDY)
    parts = list(client.chat(served.name, MESSAGES, options=GREEDY, stream=True))
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert (whole.model, whole.done_reason, parts[-1].done_reason) == (f"{served.name}:latest", "length", "length")
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert whole.prompt_eval_count == parts[-1].prompt_eval_count
    assert whole.prompt_eval_count > 0
    assert whole.eval_count == parts[-1].eval_count == 12
    assert 0 < parts[-1].eval_duration <= parts[-1].total_duration


def test_a_generation_is_wrapped_by_the_template_unless_it_is_raw(
    served: Served, client: ollama.Client, absent: Absent
) -> None:
    chatted = client.chat(served.name, MESSAGES, options=GREEDY)
    wrapped = client.generate(served.name, MESSAGES[0]["content"], options=GREEDY)
    assert (wrapped.response, wrapped.prompt_eval_count) == (chatted.message.content, chatted.prompt_eval_count)
    if not has(served, Endpoint.COMPLETIONS):
        absent("no completions")
        with pytest.raises(ollama.ResponseError, match="does not serve completions"):
            client.generate(served.name, MESSAGES[0]["content"], raw=True)
        return
    raw = client.generate(served.name, MESSAGES[0]["content"], options=GREEDY, raw=True)
    parts = list(client.generate(served.name, MESSAGES[0]["content"], options=GREEDY, raw=True, stream=True))
    assert "".join(part.response for part in parts) == raw.response
    assert raw.eval_count == 12


def test_a_schema_shapes_the_answer(served: Served, client: ollama.Client, absent: Absent) -> None:
    asked = {"format": LIGHT_SCHEMA, "options": {"temperature": 0, "num_predict": 200}}
    if not can(served, Capability.JSON_SCHEMA):
        absent("no JSON schema")
        with pytest.raises(ollama.ResponseError, match="response_format"):
            client.chat(served.name, MESSAGES, **asked)
        return
    jsonschema.validate(json.loads(client.chat(served.name, MESSAGES, **asked).message.content), LIGHT_SCHEMA)


def test_a_tool_is_called_and_its_result_heard(
    caller: Served, contestant: Contestant, client: ollama.Client, absent: Absent
) -> None:
    if not can(caller, Capability.TOOLS):
        absent("no tools")
        with pytest.raises(ollama.ResponseError, match="tools"):
            client.chat(caller.name, MESSAGES, tools=[LIGHT])
        return
    options = {"temperature": 0, "num_predict": 100}
    parts = list(client.chat(caller.name, MESSAGES, tools=[LIGHT], options=options, stream=True))
    calls = [call for part in parts for call in part.message.tool_calls or []]
    if contestant.calling_model is None and not calls:
        absent("its model calls nothing by itself")  # Ollama has no tool_choice
        return
    assert calls[0].function.name == "set_light"
    assert isinstance(calls[0].function.arguments["on"], bool)
    said = {"role": "assistant", "content": "", "tool_calls": [call.model_dump() for call in calls[:1]]}
    result = {"role": "tool", "tool_name": "set_light", "content": "it is on"}
    again = client.chat(caller.name, [*MESSAGES, said, result], options=options)
    # The call and its result were rendered: the prompt grew by their words.
    assert again.prompt_eval_count > client.chat(caller.name, MESSAGES, options=options).prompt_eval_count


def test_embeddings_come_in_a_batch(served: Served, client: ollama.Client, absent: Absent) -> None:
    if not has(served, Endpoint.EMBEDDINGS):
        absent("no embeddings")
        with pytest.raises(ollama.ResponseError, match="does not serve embeddings"):
            client.embed(served.name, ["a", "b"])
        return
    made = client.embed(served.name, ["one", "two"])
    assert len(made.embeddings) == 2
    assert list(made.embeddings[0]) == pytest.approx(list(client.embeddings(served.name, "one").embedding), abs=1e-4)


def test_it_is_listed_shown_and_loaded(served: Served, client: ollama.Client) -> None:
    tagged = f"{served.name}:latest"
    assert tagged in [model.model for model in client.list().models]
    assert tagged in [model.model for model in client.ps().models]
    assert "completion" in client.show(served.name).capabilities
    assert client.generate(served.name).done_reason == "load"


def test_a_prompt_that_does_not_fit_is_refused_and_never_cut(served: Served, client: ollama.Client) -> None:
    words = "word " * 20_000
    for is_stream in (False, True):
        with pytest.raises(ollama.ResponseError, match="does not fit") as refused:
            list(client.chat(served.name, [{"role": "user", "content": words}], options=GREEDY, stream=is_stream))
        assert refused.value.status_code == 400
