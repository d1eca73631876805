"""What does not fit, what makes no sense, and what is empty: refused with a reason, and the engine serves on."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator

import pytest

from adapters.contract import Endpoint
from tests.contract.asking import MESSAGES, greedy
from tests.contract.conftest import Absent
from tests.contract.engines import Contestant
from tests.contract.stage import Served
from tests.contract.test_answers import answer_of

CONTENT = {Endpoint.CHAT: "messages", Endpoint.COMPLETIONS: "prompt", Endpoint.EMBEDDINGS: "input"}


def body_of(endpoint: Endpoint, text: str, max_tokens: int = 4) -> dict[str, object]:
    """Return a request that holds `text` and no more."""
    if endpoint is Endpoint.EMBEDDINGS:
        return {"input": text}
    content: object = [{"role": "user", "content": text}] if endpoint is Endpoint.CHAT else text
    return {CONTENT[endpoint]: content, "max_tokens": max_tokens, "temperature": 0}


@pytest.mark.parametrize("endpoint", list(Endpoint), ids=lambda one: one.value)
def test_a_prompt_that_does_not_fit_is_refused_and_never_cut(
    served: Served, contestant: Contestant, absent: Absent, endpoint: Endpoint
) -> None:
    if endpoint not in served.adapter.endpoints(served.settings):
        absent(f"no {endpoint.value}")
        return
    reply = served.ask(endpoint, body_of(endpoint, "word " * (2 * contestant.context)))
    assert reply.status == 400, reply.text
    error = reply.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "context_length_exceeded")
    assert error["param"] == CONTENT[endpoint]


def test_a_stream_that_cannot_begin_is_refused_with_a_status(served: Served, contestant: Contestant) -> None:
    body = body_of(Endpoint.CHAT, "word " * (2 * contestant.context))
    reply = served.ask(Endpoint.CHAT, {**body, "stream": True})
    assert (reply.status, reply.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_a_long_prompt_that_fits_is_read_whole(served: Served, contestant: Contestant) -> None:
    """Every further word costs tokens, up to the context: nothing is dropped on the way."""
    counts = []
    for words in (contestant.context // 32, contestant.context // 16, contestant.context // 8):
        answer = answer_of(served.ask(Endpoint.CHAT, body_of(Endpoint.CHAT, "word " * words)))
        counts.append(answer["usage"]["prompt_tokens"])
    first, second = counts[1] - counts[0], counts[2] - counts[1]
    assert first >= contestant.context // 32
    assert second == pytest.approx(2 * first, abs=2)


def test_an_answer_ends_at_the_end_of_the_context(served: Served, contestant: Contestant) -> None:
    body = body_of(Endpoint.CHAT, "word " * (contestant.context // 8), max_tokens=3 * contestant.context)
    reply = served.ask(Endpoint.CHAT, body)
    if reply.status == 400:  # an engine may refuse at once what cannot fit together
        assert reply.json()["error"]["code"] == "context_length_exceeded", reply.text
        return
    answer = answer_of(reply)
    assert answer["choices"][0]["finish_reason"] in ("length", "stop")
    assert answer["usage"]["total_tokens"] <= contestant.context + 1


ODD_MESSAGES = {
    "no role": [{"content": "x"}],
    "no content": [{"role": "user"}],
    "null content": [{"role": "user", "content": None}],
    "empty content": [{"role": "user", "content": ""}],
    "number as content": [{"role": "user", "content": 7}],
    "empty message": [{}],
    "unknown role": [{"role": "wizard", "content": "x"}],
    "only the assistant": [{"role": "assistant", "content": "x"}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "one"}]}],
    "unknown part": [{"role": "user", "content": [{"type": "smell", "smell": "rose"}]}],
    "nul and emoji": [{"role": "user", "content": "a\0b \U0001f600 \u202e"}],
}


@pytest.mark.parametrize("messages", ODD_MESSAGES.values(), ids=ODD_MESSAGES)
def test_an_odd_message_is_answered_or_refused_as_the_client_s_fault(served: Served, messages: list) -> None:
    reply = served.ask(Endpoint.CHAT, {"messages": messages, "max_tokens": 2})
    assert reply.status in (200, 400), reply.text
    if reply.status == 400:
        assert reply.json()["error"]["type"] == "invalid_request_error"
    assert served.health_status() == served.adapter.health.ready_status


ODD_FIELDS = {
    "an unknown field": {"frobnicate": {"a": 1}},
    "a stop that is a number": {"stop": 5},
    "no stops": {"stop": []},
    "a seed that is a word": {"seed": "x"},
    "a penalty far out": {"frequency_penalty": 99},
    "tools that are a word": {"tools": "x"},
    "a tool without a type": {"tools": [{}]},
    "an unknown tool_choice": {"tools": [], "tool_choice": "maybe"},
    "log probabilities that are a word": {"logprobs": "yes"},
    "5000 rivals": {"logprobs": True, "top_logprobs": 5000},
    "an unknown response_format": {"response_format": {"type": "x"}},
    "unknown stream options": {"stream": True, "stream_options": {"x": 1}},
    "a bias that is a list": {"logit_bias": [1]},
    "nulls": {"temperature": None, "stop": None, "seed": None, "tools": None, "n": None, "stream": None},
}


@pytest.mark.parametrize("fields", ODD_FIELDS.values(), ids=ODD_FIELDS)
def test_an_odd_field_is_ignored_or_refused_as_the_client_s_fault(served: Served, fields: dict) -> None:
    reply = served.ask(Endpoint.CHAT, {"messages": MESSAGES, "max_tokens": 2, **fields})
    assert reply.status in (200, 400), reply.text
    assert served.health_status() == served.adapter.health.ready_status


def test_fields_that_are_null_are_fields_that_are_not_there(served: Served) -> None:
    reply = served.ask(Endpoint.CHAT, greedy(4, **ODD_FIELDS["nulls"] | {"temperature": 0}))
    assert answer_of(reply)["choices"] == answer_of(served.ask(Endpoint.CHAT, greedy(4)))["choices"]


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        (Endpoint.COMPLETIONS, {"prompt": "one", "max_tokens": 2, "echo": True}),
        (Endpoint.COMPLETIONS, {"prompt": "one", "max_tokens": 2, "best_of": 3}),
        (Endpoint.COMPLETIONS, {"prompt": "one", "max_tokens": 2, "suffix": "two"}),
        (Endpoint.EMBEDDINGS, {"input": "one", "dimensions": 3}),
    ],
    ids=["echo", "best_of", "suffix", "dimensions"],
)
def test_what_an_engine_cannot_do_is_refused_and_not_passed_over(
    served: Served, absent: Absent, endpoint: Endpoint, fields: dict
) -> None:
    if endpoint not in served.adapter.endpoints(served.settings):
        absent(f"no {endpoint.value}")
        return
    reply = served.ask(endpoint, fields)
    if reply.status == 400:
        absent("refused by name")
        name = next(name for name in fields if name in ("echo", "best_of", "suffix", "dimensions"))
        assert name in reply.json()["error"]["message"]
        return
    answer = answer_of(reply)
    if "echo" in fields:
        assert answer["choices"][0]["text"].startswith("one")
    if "dimensions" in fields:
        assert len(answer["data"][0]["embedding"]) == 3


BODIES = {
    "text": json.dumps("not an object").encode(),
    "list": b"[]",
    "number": b"7",
    "nothing": b"",
    "cut": b'{"model": "x", "messages": [',
    "no UTF-8": b'{"model": "\xff"}',
    "deep": b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_senseless_body_is_refused_by_the_door(served: Served, body: bytes) -> None:
    reply = served.ask(Endpoint.CHAT, body)
    assert (reply.status, reply.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    "body", [b'"not an object"', b"[]", b"7", b"{", b""], ids=["text", "list", "number", "cut", "none"]
)
def test_the_engine_alone_outlives_a_senseless_body(served: Served, body: bytes) -> None:
    before = served.pid
    assert served.direct("POST", served.adapter.dialect.paths[Endpoint.CHAT], body).status >= 400
    assert served.health_status() == served.adapter.health.ready_status
    assert served.pid == before


@contextlib.contextmanager
def listener() -> Iterator[tuple[int, list[bool]]]:
    """Give the port of a loopback server and the list of those who called."""
    called: list[bool] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        ending = threading.Event()

        def listen() -> None:
            while not ending.is_set():
                with contextlib.suppress(TimeoutError):
                    server.accept()[0].close()
                    called.append(True)

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield server.getsockname()[1], called
        finally:
            ending.set()
            thread.join()


def test_an_engine_fetches_no_address_that_a_request_names(served: Served) -> None:
    with listener() as (port, called):
        image = {"type": "image_url", "image_url": {"url": f"http://127.0.0.1:{port}/picture.png"}}
        content = [{"type": "text", "text": "what is this?"}, image]
        reply = served.ask(Endpoint.CHAT, {"messages": [{"role": "user", "content": content}], "max_tokens": 2})
    assert not called
    assert reply.status in (200, 400), reply.text
