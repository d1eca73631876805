"""vLLM and transformers, really started on the CPU with a tiny model: what is theirs beyond the common suite."""

import http.client
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from adapters.contract import Capability
from tests.engine_models import tiny_safetensors
from tests.programs.running import KEY, SERVED_NAME, RunningEngine
from tests.waiting import until

CONTEXT = 1024
CHAT = {"messages": [{"role": "user", "content": "one two three"}], "temperature": 0}
SETTINGS = {
    "transformers": {"context": CONTEXT},
    "vllm": {"context": CONTEXT, "kv_cache_mib": 16, "slots": 4},
}
CANCELLED_WITHIN_S = 0.3
START_S = 300.0  # vLLM imports itself in three processes


@pytest.fixture(scope="module", params=["transformers", "vllm"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    directory = tmp_path_factory.mktemp(request.param)
    settings = SETTINGS[request.param]
    with RunningEngine(request.param, directory=directory, model=tiny_safetensors(), settings=settings) as running:
        yield running.wait_until_ready(START_S)


def chat(engine: RunningEngine, **more: object) -> dict:
    reply = engine.ask("/v1/chat/completions", {**CHAT, **more})
    assert reply.status == 200, reply.text
    return reply.json()


def text(engine: RunningEngine, **more: object) -> str:
    return chat(engine, **more)["choices"][0]["message"]["content"]


def tree(engine: RunningEngine) -> list[psutil.Process]:
    top = psutil.Process(engine.process.pid)
    return [top, *top.children(recursive=True)]


def metric(engine: RunningEngine, name: str) -> float:
    """Return one of our metrics, summed over its labels."""
    theirs = engine.adapter.metrics[name]
    lines = engine.request("GET", "/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == theirs)


def test_the_whole_tree_listens_on_loopback_only_and_holds_no_key(engine):
    for process in tree(engine):
        listening = [one for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]
        assert all(one.laddr.ip == "127.0.0.1" for one in listening)
        for part in ("cmdline", "environ"):
            assert KEY.encode() not in (Path("/proc") / str(process.pid) / part).read_bytes()
    assert KEY not in engine.log.read_text()


def test_no_path_is_open_but_those_in_use(engine):
    for path in ("/invocations", "/pause", "/tokenize", "/v1/load_lora_adapter", "/load", "/docs", "/v1/../pause", "/"):
        assert engine.request("POST", path, {}).status in (404, 405)
        assert engine.request("GET", path, key="").status in (401, 404)
    assert engine.request("GET", "/metrics", key="").status == 401
    assert engine.request("GET", "/v1/models", key="wrong").status == 401


def test_a_stop_word_ends_the_answer_before_it_whole_or_streamed(engine):
    whole = text(engine, max_tokens=24)
    stop = whole[10:13]
    before = whole[: whole.index(stop)]
    answer = chat(engine, max_tokens=24, stop=[stop])["choices"][0]
    assert (answer["message"]["content"], answer["finish_reason"]) == (before, "stop")
    reply = engine.ask("/v1/chat/completions", {**CHAT, "max_tokens": 24, "stop": [stop], "stream": True})
    choices = [json.loads(event)["choices"][0] for event in reply.events()[:-1]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == before
    assert choices[-1]["finish_reason"] == "stop"


def test_a_seed_decides_what_is_sampled(engine):
    asked = {"max_tokens": 24, "temperature": 1.5}
    assert text(engine, **asked, seed=7) == text(engine, **asked, seed=7)
    assert len({text(engine, **asked, seed=seed) for seed in range(1, 5)}) > 1


def test_the_likeliest_token_alone_may_be_asked_for_by_top_p(engine):
    if engine.adapter.name == "vllm":
        pytest.skip("vLLM takes no top_p of 0")
    assert text(engine, max_tokens=8, temperature=1, top_p=0) == text(engine, max_tokens=8, temperature=0)


def test_log_probabilities_come_with_the_likeliest(engine):
    told = chat(engine, max_tokens=3, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    assert len(told) == 3
    for one in told:
        assert one["logprob"] <= 0
        assert len(one["top_logprobs"]) == 2
        assert one["top_logprobs"][0]["logprob"] == pytest.approx(one["logprob"], abs=1e-4)  # greedy: the best one


def test_a_prompt_that_does_not_fit_is_known_by_its_type_or_its_words(engine):
    dialect = engine.adapter.dialect
    for stream in (False, True):
        asked = {"messages": [{"role": "user", "content": "x" * CONTEXT}], "max_tokens": 4, "stream": stream}
        reply = engine.ask("/v1/chat/completions", asked)
        assert reply.status == 400
        error = reply.json()["error"]
        is_known_by_words = any(phrase in error["message"] for phrase in dialect.overflow_phrases)
        assert error["type"] in dialect.overflow_types or is_known_by_words


def test_an_answer_stops_at_the_end_of_the_context(engine):
    answer = chat(engine, max_tokens=CONTEXT, ignore_eos=True)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] in (CONTEXT, CONTEXT - 1)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_hangs_up_ends_the_generation_at_once(engine, stream):
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=20)
    body = {"model": SERVED_NAME, **CHAT, "max_tokens": CONTEXT - 100, "ignore_eos": True, "stream": stream}
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    until(lambda: metric(engine, "slice_engine_requests_running") == 1, what="the request's beginning")
    generated = metric(engine, "slice_engine_generated_tokens_total")
    connection.sock.close()
    begun = time.monotonic()
    until(lambda: metric(engine, "slice_engine_requests_running") == 0, what="the request's end")
    assert time.monotonic() - begun < CANCELLED_WITHIN_S
    assert metric(engine, "slice_engine_generated_tokens_total") - generated < CONTEXT / 2


def test_a_remote_code_flag_in_a_request_changes_nothing(engine):
    asked = {**CHAT, "max_tokens": 2, "trust_remote_code": True, "chat_template": "{{ 7 * 191 }}"}
    reply = engine.ask("/v1/chat/completions", asked)
    assert reply.status in (200, 400)
    if reply.status == 200:
        assert reply.json()["usage"]["prompt_tokens"] == chat(engine, max_tokens=2)["usage"]["prompt_tokens"]


def test_a_schema_and_a_named_tool_constrain_the_answer_where_declared_and_are_refused_elsewhere(engine):
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 10, "maximum": 99}},
        "required": ["age"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    tool = {"type": "function", "function": {"name": "set_age", "description": "", "parameters": schema}}
    choice = {"type": "function", "function": {"name": "set_age"}}
    with_schema = engine.ask("/v1/chat/completions", {**CHAT, "max_tokens": 200, "response_format": form})
    with_tool = engine.ask("/v1/chat/completions", {**CHAT, "max_tokens": 300, "tools": [tool], "tool_choice": choice})
    declared = engine.adapter.capabilities(SETTINGS[engine.adapter.name])
    if Capability.JSON_SCHEMA in declared:
        assert 10 <= json.loads(with_schema.json()["choices"][0]["message"]["content"])["age"] <= 99
    else:
        assert (with_schema.status, with_schema.json()["error"]["param"]) == (400, "response_format")
    if Capability.TOOLS in declared:
        (call,) = with_tool.json()["choices"][0]["message"]["tool_calls"]
        assert call["function"]["name"] == "set_age"
        assert 10 <= json.loads(call["function"]["arguments"])["age"] <= 99
    else:
        assert (with_tool.status, with_tool.json()["error"]["param"]) == (400, "tools")


def test_past_tool_calls_reach_the_template_or_are_refused(engine):
    if engine.adapter.name == "vllm":
        pytest.skip("vLLM's own templates decide")
    call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"word": "one"}'}}
    called = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "c1", "name": "look_up", "content": "two"}
    for messages in ([*CHAT["messages"], called, result], [{**called, "tool_calls": ["odd"]}]):
        reply = engine.ask("/v1/chat/completions", {**CHAT, "messages": messages, "max_tokens": 2})
        # The model's template knows the role, but no calls: none is lost in silence.
        assert (reply.status, reply.json()["error"]["param"]) == (400, "messages")
    told = engine.ask("/v1/chat/completions", {**CHAT, "messages": [*CHAT["messages"], result], "max_tokens": 2})
    assert told.status == 200


@pytest.mark.parametrize(
    ("name", "value"), [("top_k", 5), ("min_p", 0.5), ("repetition_penalty", 1.5), ("reasoning_effort", "low")]
)
def test_what_transformers_does_not_do_is_refused_by_name(engine, name, value):
    if engine.adapter.name == "vllm":
        pytest.skip("vLLM does these")
    reply = engine.ask("/v1/chat/completions", {**CHAT, "max_tokens": 2, name: value})
    assert (reply.status, reply.json()["error"]["param"]) == (400, name)


def test_embeddings_are_vectors_of_length_one_where_declared(engine):
    reply = engine.ask("/v1/embeddings", {"input": ["one", "two", "one"]})
    if Capability.EMBEDDINGS not in engine.adapter.capabilities({}):
        assert reply.status == 404
        return
    vectors = [item["embedding"] for item in reply.json()["data"]]
    assert sum(x * x for x in vectors[0]) == pytest.approx(1, abs=1e-3)
    assert vectors[0] == vectors[2] != vectors[1]


@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_sigterm_ends_the_whole_tree_within_its_grace_even_while_it_generates(name, tmp_path):
    with RunningEngine(name, directory=tmp_path, model=tiny_safetensors(), settings=SETTINGS[name]) as running:
        running.wait_until_ready(START_S)
        family = tree(running)
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
        body = {"model": SERVED_NAME, **CHAT, "max_tokens": CONTEXT - 100, "ignore_eos": True, "stream": True}
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        connection.getresponse().read(1)
        assert running.terminate(running.adapter.health.stop_grace_s) == 0
        connection.close()
        assert psutil.wait_procs(family, running.adapter.health.stop_grace_s)[1] == []


def test_vllm_ends_when_its_engine_core_dies(tmp_path):
    with RunningEngine("vllm", directory=tmp_path, model=tiny_safetensors(), settings=SETTINGS["vllm"]) as running:
        running.wait_until_ready(START_S)
        family = tree(running)
        (core,) = [one for one in family if one.name() == "VLLM::EngineCore"]
        core.send_signal(signal.SIGKILL)
        assert running.process.wait(30) == 5
        assert psutil.wait_procs(family, 30)[1] == []


@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_a_taken_port_and_a_damaged_model_end_it_with_a_reason(name, tmp_path, engine):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in tiny_safetensors().iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    (damaged / "model.safetensors").write_bytes(b"\x00" * 64)
    running = RunningEngine(name, directory=tmp_path, model=damaged, settings=SETTINGS[name])
    with running:
        assert running.process.wait(120) == 3
    assert running.log.read_text().splitlines()[-1].startswith("slice: ")
    file = tmp_path / f"{name}.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "port": engine.port}))
    ended = subprocess.run(running.process.args, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 4
    assert str(engine.port) in ended.stderr.splitlines()[-1]
