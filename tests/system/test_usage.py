"""Every request through a whole cluster leaves one row: its tokens by key, model, node and day."""

import json
import time
from typing import Any

import openai
import pytest

from tests.system.cluster import Running
from tests.waiting import until

pytestmark = pytest.mark.system
QUESTION: Any = [{"role": "user", "content": "Say hello in one word."}]
ROUNDS = 5


def is_let_in(client: openai.OpenAI) -> bool:
    try:
        client.models.list()
    except openai.AuthenticationError:
        return False
    return True


def rows(running: Running, by: str, name: str) -> list[dict[str, Any]]:
    told = running.slice("usage", "--by", by, "--since", "1h", "-o", "json").stdout
    return [one for one in json.loads(told)["items"] if one["name"] == name]


def test_every_request_leaves_one_row(running: Running) -> None:
    name = f"usage-{time.time_ns()}"
    client = running.client(api_key=running.slice("key", "create", name).stdout.strip())
    until(lambda: is_let_in(client), what="the door to know the key")
    given = made = 0
    for _ in range(ROUNDS):
        answer = client.chat.completions.create(model="smollm2", messages=QUESTION, max_tokens=8)
        assert answer.usage is not None
        given, made = given + answer.usage.prompt_tokens, made + answer.usage.completion_tokens
        chunks = list(client.chat.completions.create(model="smollm2", messages=QUESTION, max_tokens=8, stream=True))
        assert all(chunk.choices and chunk.usage is None for chunk in chunks)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="nothing", messages=QUESTION)
    until(lambda: sum(one["requests"] for one in rows(running, "key", name)) >= 3 * ROUNDS, what="the rows")
    (found,) = rows(running, "key", name)
    assert (found["requests"], found["answered"], found["refused"]) == (3 * ROUNDS, 2 * ROUNDS, ROUNDS)
    assert found["estimated"] == 0
    # The streams' prompts are those of the whole answers; what they answered may differ.
    assert found["input_tokens"] == 2 * given
    assert made < found["output_tokens"] <= made + ROUNDS * 8
    (model,) = rows(running, "model", "smollm2")
    assert model["answered"] >= 2 * ROUNDS
    nodes = {one["name"] for one in json.loads(running.slice("node", "list", "-o", "json").stdout)["items"]}
    assert sum(one["answered"] for node in nodes for one in rows(running, "node", node)) >= 2 * ROUNDS
