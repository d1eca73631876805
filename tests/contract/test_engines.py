"""What every engine must do as its adapter declares it; the same suite for the fake and the real one."""

import http.client
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from adapters.contract import Endpoint
from tests.contract.conftest import CONTEXT
from tests.contract.engines import KEY, SERVED_NAME, RunningEngine
from tests.ggufs import write_random_llama
from tests.waiting import until

CHAT = {"messages": [{"role": "user", "content": "one two three"}], "temperature": 0}


def path(engine: RunningEngine, endpoint: Endpoint) -> str:
    return engine.adapter.dialect.paths[endpoint]


def test_a_started_engine_becomes_healthy_without_a_key(engine):
    assert engine.health_status() == engine.adapter.health.ready_status


def test_every_endpoint_it_serves_has_a_path(engine):
    assert engine.adapter.endpoints({}) <= set(engine.adapter.dialect.paths)


@pytest.mark.parametrize("key", ["", "wrong"], ids=["no key", "wrong key"])
def test_a_stranger_is_refused(engine, key):
    assert engine.ask(path(engine, Endpoint.CHAT), {**CHAT, "max_tokens": 1}, key=key).status == 401
    assert engine.request("GET", "/metrics", key=key).status == 401


def test_models_lists_the_served_name(engine):
    models = engine.request("GET", "/v1/models").json()["data"]
    assert [model["id"] for model in models] == [SERVED_NAME]


def test_a_chat_answer_has_text_usage_and_a_finish_reason(engine):
    reply = engine.ask(path(engine, Endpoint.CHAT), {**CHAT, "max_tokens": 6})
    assert reply.status == 200
    answer = reply.json()
    assert answer["model"] == SERVED_NAME
    choice = answer["choices"][0]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 6
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + 6


def test_the_same_greedy_request_has_the_same_answer(engine):
    asked = {**CHAT, "max_tokens": 12}
    texts = {
        engine.ask(path(engine, Endpoint.CHAT), asked).json()["choices"][0]["message"]["content"] for _ in range(3)
    }
    assert len(texts) == 1


def test_a_chat_stream_ends_with_a_finish_reason_usage_and_done(engine):
    asked = {**CHAT, "max_tokens": 6, "stream": True, "stream_options": {"include_usage": True}}
    reply = engine.ask(path(engine, Endpoint.CHAT), asked)
    assert reply.status == 200
    *events, done = reply.events()
    assert done == "[DONE]"
    chunks = [json.loads(event) for event in events]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["length"]
    assert chunks[-1]["usage"]["completion_tokens"] == 6
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    whole = engine.ask(path(engine, Endpoint.CHAT), {**CHAT, "max_tokens": 6}).json()
    assert text == whole["choices"][0]["message"]["content"]


def test_a_stream_without_the_option_tells_no_usage(engine):
    reply = engine.ask(path(engine, Endpoint.CHAT), {**CHAT, "max_tokens": 2, "stream": True})
    assert not any(json.loads(event).get("usage") for event in reply.events()[:-1])


def test_more_requests_at_once_than_slots_are_all_answered(engine):
    asked = {**CHAT, "max_tokens": 20}
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda _: engine.ask(path(engine, Endpoint.CHAT), asked), range(12)))
    assert [reply.status for reply in replies] == [200] * 12
    assert {reply.json()["usage"]["completion_tokens"] for reply in replies} == {20}


def test_many_idle_connections_do_not_delay_a_health_probe(engine):
    idle = [http.client.HTTPConnection("127.0.0.1", engine.port, timeout=10) for _ in range(24)]
    try:
        for connection in idle:
            connection.request("GET", engine.adapter.health.path)
            connection.getresponse().read()
        probe = engine.request("GET", engine.adapter.health.path, key="", timeout_s=2.0)
        assert probe.status == engine.adapter.health.ready_status
    finally:
        for connection in idle:
            connection.close()


def test_a_client_that_goes_away_leaves_the_engine_serving(engine):
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=10)
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    body = json.dumps({"model": SERVED_NAME, **CHAT, "stream": True, "max_tokens": 400})
    connection.request("POST", path(engine, Endpoint.CHAT), body, headers)
    connection.getresponse().read(1)
    connection.close()
    assert engine.ask(path(engine, Endpoint.CHAT), {**CHAT, "max_tokens": 2}).status == 200


def test_completions_continue_a_prompt(engine):
    reply = engine.ask(path(engine, Endpoint.COMPLETIONS), {"prompt": "one two", "max_tokens": 5, "temperature": 0})
    assert reply.status == 200
    assert reply.json()["choices"][0]["text"]
    assert reply.json()["usage"]["completion_tokens"] == 5


def test_embeddings_are_vectors_in_the_order_of_the_inputs(engine):
    reply = engine.ask(path(engine, Endpoint.EMBEDDINGS), {"input": ["one", "two", "one"]})
    assert reply.status == 200
    vectors = [item["embedding"] for item in reply.json()["data"]]
    assert [item["index"] for item in reply.json()["data"]] == [0, 1, 2]
    assert vectors[0] != vectors[1]
    assert vectors[0] == pytest.approx(vectors[2], abs=1e-3)


def test_a_prompt_that_does_not_fit_is_an_error_of_a_declared_type(engine):
    message = {"role": "user", "content": "word " * (CONTEXT * 2)}
    reply = engine.ask(path(engine, Endpoint.CHAT), {"messages": [message], "max_tokens": 4})
    assert reply.status == 400
    assert reply.json()["error"]["type"] in engine.adapter.dialect.overflow_types


def test_an_embedding_that_does_not_fit_is_known_by_its_type_or_its_words(tmp_path, random_model):
    with RunningEngine("llamacpp", directory=tmp_path, model=random_model, settings={"batch": 64}) as running:
        running.wait_until_ready()
        dialect = running.adapter.dialect
        for length in (100, 10_000):
            error = running.ask(path(running, Endpoint.EMBEDDINGS), {"input": "x" * length}).json()["error"]
            is_known_by_words = any(phrase in error["message"] for phrase in dialect.overflow_phrases)
            assert error["type"] in dialect.overflow_types or is_known_by_words


def test_generation_stops_at_the_end_of_the_context(engine):
    reply = engine.ask(path(engine, Endpoint.CHAT), {**CHAT, "max_tokens": CONTEXT * 3})
    assert reply.status == 200
    assert reply.json()["choices"][0]["finish_reason"] == "length"
    assert reply.json()["usage"]["total_tokens"] <= CONTEXT + 1


@pytest.mark.parametrize("body", ["not an object", [], 7], ids=["text", "list", "number"])
def test_a_senseless_body_is_refused_as_the_client_s_fault(engine, body):
    assert engine.request("POST", path(engine, Endpoint.CHAT), body).status in (400, 500)
    assert engine.health_status() == engine.adapter.health.ready_status


def test_the_metrics_page_has_every_declared_name(engine):
    page = engine.request("GET", "/metrics").text
    names = {line.split(" ")[0].split("{")[0] for line in page.splitlines() if line and not line.startswith("#")}
    assert set(engine.adapter.metrics.values()) <= names
    assert all(ours.startswith("slice_engine_") for ours in engine.adapter.metrics)


def test_the_key_is_not_on_the_command_line_nor_in_the_environment(engine):
    process = Path("/proc") / str(engine.process.pid)
    assert KEY.encode() not in (process / "cmdline").read_bytes()
    assert KEY.encode() not in (process / "environ").read_bytes()


def test_it_listens_on_loopback_only(engine):
    sockets = psutil.Process(engine.process.pid).net_connections(kind="inet")
    own = [tuple(one.laddr) for one in sockets if one.status == psutil.CONN_LISTEN]
    assert own == [("127.0.0.1", engine.port)]


@pytest.mark.parametrize("name", ["fake", "llamacpp"])
def test_sigterm_ends_it_within_its_grace_even_while_it_generates(name, tmp_path, random_model):
    with RunningEngine(name, directory=tmp_path, model=random_model, settings={"context": CONTEXT}) as running:
        running.wait_until_ready()
        asked = {"model": SERVED_NAME, **CHAT, "stream": True, "max_tokens": 400}
        with ThreadPoolExecutor() as pool:
            streams = [pool.submit(running.stream_until_cut, asked) for _ in range(3)]
            until(lambda: running.started_streams == 3, what="three streams")
            ended = running.terminate(running.adapter.health.stop_grace_s)
            assert [stream.result() for stream in streams] == [None] * 3
        assert ended == 0


def test_sigterm_ends_llamacpp_at_once_while_it_loads(tmp_path):
    big = write_random_llama(tmp_path / "big.gguf", seed=1, layers=6, embedding=512, vocabulary=20_000)
    with RunningEngine("llamacpp", directory=tmp_path, model=big) as running:
        until(lambda: "loading model" in running.log.read_text(), what="the load's beginning")
        running.terminate(1.0)
        assert "slice: serving" not in running.log.read_text()


@pytest.mark.parametrize("name", ["fake", "llamacpp"])
def test_a_taken_port_ends_it_with_a_reason(name, tmp_path, random_model, engine):
    running = RunningEngine(name, directory=tmp_path, model=random_model)
    with running:
        pass
    taken = {**json.loads((tmp_path / f"{name}.json").read_text()), "port": engine.port}
    (tmp_path / f"{name}.json").write_text(json.dumps(taken))
    ended = subprocess.run(running.process.args, capture_output=True, text=True, timeout=20)
    assert ended.returncode != 0
    assert str(engine.port) in ended.stderr.splitlines()[-1]


def test_llamacpp_says_why_a_damaged_model_does_not_load(tmp_path, random_model):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(random_model.read_bytes()[:10_000])
    with RunningEngine("llamacpp", directory=tmp_path, model=damaged) as running:
        assert running.process.wait(20) not in (0, None)
    assert "slice: " in running.log.read_text().splitlines()[-1]
    assert "damaged.gguf" in running.log.read_text()
