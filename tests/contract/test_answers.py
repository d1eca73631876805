"""What every engine answers through the door: the same checks for each, against what its adapter declares."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from adapters.contract import Capability, Endpoint
from tests.contract.asking import MESSAGES, greedy, reasons_of, text_of
from tests.contract.conftest import Absent
from tests.contract.stage import Reply, Served


def answer_of(reply: Reply) -> dict:
    assert reply.status == 200, reply.text
    return reply.json()


def content_of(reply: Reply) -> str:
    return answer_of(reply)["choices"][0]["message"]["content"]


def can(served: Served, capability: Capability) -> bool:
    return capability in served.adapter.capabilities(served.settings)


def test_it_is_listed_under_its_public_name(served: Served) -> None:
    client = served.client()
    assert served.name in [model.id for model in client.models.list()]


def test_every_endpoint_it_serves_has_a_path(served: Served) -> None:
    endpoints = served.adapter.endpoints(served.settings)
    assert endpoints <= set(served.adapter.dialect.paths)
    assert {Capability(one.value) for one in endpoints} <= served.adapter.capabilities(served.settings)


def test_a_chat_answer_has_text_usage_and_a_finish_reason(served: Served) -> None:
    answer = served.client().chat.completions.create(model=served.name, **greedy(6))
    (choice,) = answer.choices
    assert answer.model == served.name
    assert (choice.index, choice.message.role) == (0, "assistant")
    assert choice.message.content
    assert choice.finish_reason in ("length", "stop")
    assert answer.usage is not None
    tokens = answer.usage.completion_tokens
    assert tokens == 6 if choice.finish_reason == "length" else 0 < tokens <= 6
    assert answer.usage.prompt_tokens > 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + tokens


def test_the_same_greedy_request_has_the_same_answer(served: Served) -> None:
    assert len({content_of(served.ask(Endpoint.CHAT, greedy(12))) for _ in range(3)}) == 1


def test_a_chat_stream_says_what_the_whole_answer_says(served: Served) -> None:
    reply = served.ask(Endpoint.CHAT, greedy(8, stream=True))
    assert reply.status == 200
    assert reply.events()[-1] == "[DONE]"
    chunks = reply.chunks()
    assert {chunk["model"] for chunk in chunks} == {served.name}
    whole = answer_of(served.ask(Endpoint.CHAT, greedy(8)))["choices"][0]
    assert text_of(chunks) == whole["message"]["content"]
    assert reasons_of(chunks) == [whole["finish_reason"]]


def test_a_stream_tells_its_usage_at_its_end_when_asked(served: Served, absent: Absent) -> None:
    chunks = served.ask(Endpoint.CHAT, greedy(6, stream=True, stream_options={"include_usage": True})).chunks()
    if not can(served, Capability.STREAM_USAGE):
        absent("no usage in streams")
        assert text_of(chunks)
        return
    whole = answer_of(served.ask(Endpoint.CHAT, greedy(6)))["usage"]
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [chunks[-1]["usage"][name] for name in names] == [whole[name] for name in names]
    assert not any(chunk.get("usage") for chunk in chunks[:-1])


def test_a_stream_tells_no_usage_unasked(served: Served) -> None:
    chunks = served.ask(Endpoint.CHAT, greedy(2, stream=True)).chunks()
    assert not any(chunk.get("usage") for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_stop_string_ends_the_answer_before_it(served: Served, stream: bool) -> None:
    text = content_of(served.ask(Endpoint.CHAT, greedy(12)))
    stop = text[5:7]
    expected = text[: text.index(stop)]
    reply = served.ask(Endpoint.CHAT, greedy(12, stop=[stop], stream=stream))
    if stream:
        assert (text_of(reply.chunks()), reasons_of(reply.chunks())) == (expected, ["stop"])
    else:
        (choice,) = answer_of(reply)["choices"]
        assert (choice["message"]["content"] or "", choice["finish_reason"]) == (expected, "stop")


def test_a_single_stop_string_may_come_bare(served: Served) -> None:
    text = content_of(served.ask(Endpoint.CHAT, greedy(12)))
    assert text[5:7] not in (content_of(served.ask(Endpoint.CHAT, greedy(12, stop=text[5:7]))) or "")


def test_max_completion_tokens_bounds_the_answer_as_max_tokens_does(served: Served) -> None:
    asked = {"messages": MESSAGES, "temperature": 0, "max_completion_tokens": 3}
    answer = answer_of(served.ask(Endpoint.CHAT, asked))
    assert answer["usage"]["completion_tokens"] <= 3
    assert answer["choices"][0]["message"]["content"] == content_of(served.ask(Endpoint.CHAT, greedy(3)))


def test_the_same_seed_gives_the_same_sampled_answer(served: Served, absent: Absent) -> None:
    def sampled(seed: int) -> str:
        return content_of(served.ask(Endpoint.CHAT, {**greedy(24), "temperature": 1.0, "seed": seed}))

    if not can(served, Capability.SEED):
        absent("no seeds")
        assert sampled(5)
        return
    sampled(5)  # the first time the prompt is computed, later it may be remembered, with other roundings
    assert sampled(5) == sampled(5)
    assert len({sampled(seed) for seed in (5, 6, 7)}) > 1


def test_several_answers_are_all_given_and_counted_or_refused_by_name(served: Served, absent: Absent) -> None:
    reply = served.ask(Endpoint.CHAT, {**greedy(4), "temperature": 1.0, "n": 2})
    if reply.status == 400:
        absent("no n > 1")
        assert "'n'" in reply.json()["error"]["message"] or reply.json()["error"]["param"] == "n"
        return
    answer = answer_of(reply)
    assert sorted(choice["index"] for choice in answer["choices"]) == [0, 1]
    if all(choice["finish_reason"] == "length" for choice in answer["choices"]):
        assert answer["usage"]["completion_tokens"] == 8


def test_a_completion_continues_its_prompt(served: Served, absent: Absent) -> None:
    asked = {"prompt": "one two", "max_tokens": 5, "temperature": 0}
    reply = served.ask(Endpoint.COMPLETIONS, asked)
    if not can(served, Capability.COMPLETIONS):
        absent("no completions")
        assert reply.json()["error"]["code"] == "endpoint_unsupported"
        return
    answer = answer_of(reply)
    assert answer["choices"][0]["text"]
    assert 0 < answer["usage"]["completion_tokens"] <= 5
    chunks = served.ask(Endpoint.COMPLETIONS, {**asked, "stream": True}).chunks()
    streamed = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
    assert streamed == answer["choices"][0]["text"]


def test_embeddings_come_in_the_order_of_their_inputs_as_numbers_and_packed(served: Served, absent: Absent) -> None:
    inputs = ["one", "two", "one"]
    if not can(served, Capability.EMBEDDINGS):
        absent("no embeddings")
        refused = served.ask(Endpoint.EMBEDDINGS, {"input": inputs})
        assert (refused.status, refused.json()["error"]["code"]) == (400, "endpoint_unsupported")
        return
    client = served.client()
    plain = client.embeddings.create(model=served.name, input=inputs, encoding_format="float")
    packed = client.embeddings.create(model=served.name, input=inputs)  # the SDK asks for base64 and unpacks it
    vectors = [item.embedding for item in plain.data]
    assert [item.index for item in plain.data] == [0, 1, 2]
    assert vectors[0] == pytest.approx(vectors[2], abs=1e-3)
    assert vectors[0] != pytest.approx(vectors[1], abs=1e-3)
    for one, other in zip(vectors, packed.data, strict=True):
        assert other.embedding == pytest.approx(one, abs=1e-3)
    assert plain.usage.prompt_tokens >= 3


def test_log_probabilities_come_with_their_rivals(served: Served, absent: Absent) -> None:
    reply = served.ask(Endpoint.CHAT, greedy(4, logprobs=True, top_logprobs=2))
    if not can(served, Capability.LOGPROBS):
        absent("no log probabilities")
        assert reply.status == 400 or not answer_of(reply)["choices"][0].get("logprobs")
        return
    answer = answer_of(reply)
    entries = answer["choices"][0]["logprobs"]["content"]
    assert len(entries) == answer["usage"]["completion_tokens"]
    for entry in entries:
        assert isinstance(entry["token"], str)
        assert entry["logprob"] <= 0
        assert len(entry["top_logprobs"]) == 2
        assert max(rival["logprob"] for rival in entry["top_logprobs"]) == pytest.approx(entry["logprob"], abs=1e-4)
    assert not answer_of(served.ask(Endpoint.CHAT, greedy(4)))["choices"][0].get("logprobs")


def test_more_requests_at_once_than_slots_are_all_answered(served: Served) -> None:
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda _: served.ask(Endpoint.CHAT, greedy(20)), range(12)))
    assert [reply.status for reply in replies] == [200] * 12
    assert all(content_of(reply) for reply in replies)
