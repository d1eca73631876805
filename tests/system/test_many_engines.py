"""One machine serves one model by many engines at once, all of it from the command line: the mission's first promise.

Really spawned by the node agent: llama.cpp, vLLM and transformers; Ollama by its stand-in, which proves nothing about
the real program. The environments are those that `make engines` builds; where they are not, the test says so and is
skipped (`make engines-test` requires them).
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from core.infra.processes import family
from tests.system.cluster import Running, kill
from tests.system.four_engines import ENGINES, missing, pid, serving_four, states
from tests.waiting import until

pytestmark = pytest.mark.system
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
OLD_LLAMACPP, NEW_LLAMACPP = "2026.9.11063", "2026.10.11549"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    if absent := missing():
        pytest.skip(f"no environment of {', '.join(absent)}: run `make engines`")
    with serving_four(tmp_path_factory.mktemp("programs")) as running:
        yield running


def answer(running: Running, deployment: str) -> str:
    reply = running.client().chat.completions.create(model=deployment, messages=QUESTION, max_tokens=8, temperature=0)
    assert reply.model == deployment
    assert reply.usage is not None
    assert reply.usage.completion_tokens <= 8
    return reply.choices[0].message.content or ""


def test_four_engines_answer_for_the_same_model_at_once(cluster: Running) -> None:
    assert all(answer(cluster, name) for name in ENGINES)
    assert answer(cluster, "smollm2-vllm") == answer(cluster, "smollm2-transformers")  # the same weights, greedily
    streams = [
        cluster.client().chat.completions.create(
            model=name, messages=QUESTION, max_tokens=6, stream=True, stream_options={"include_usage": True}
        )
        for name in ENGINES
    ]
    for stream in streams:
        *_, last = list(stream)
        assert last.usage is not None


def test_ps_lists_each_with_its_engine(cluster: Running) -> None:
    listed = {one["deployment"]: one["engine"] for one in cluster.json("ps")["items"]}
    assert listed == ENGINES
    table = cluster.slice("ps").stdout
    assert all(engine in table for engine in ENGINES.values())


def test_a_disabled_one_is_told_apart_from_an_unknown_one_and_comes_back(cluster: Running) -> None:
    cluster.slice("disable", "smollm2-ollama")
    until(lambda: states(cluster, "smollm2-ollama") == [], 60.0, "its replica to be gone")
    with pytest.raises(openai.InternalServerError) as refused:
        answer(cluster, "smollm2-ollama")
    assert refused.value.status_code == 503
    cluster.slice("disable", "smollm2-ollama", "--answer", "not_found")

    def is_unknown() -> bool:
        try:
            answer(cluster, "smollm2-ollama")
        except openai.NotFoundError:
            return True
        except openai.InternalServerError:
            return False
        return False

    until(is_unknown, 10.0, "404")
    assert answer(cluster, "smollm2")
    cluster.slice("enable", "smollm2-ollama")
    until(lambda: states(cluster, "smollm2-ollama") == ["ready"], 60.0, "it to serve again")
    assert answer(cluster, "smollm2-ollama")


@pytest.mark.parametrize("deployment", list(ENGINES))
def test_a_killed_engine_leaves_nothing_and_is_started_again(cluster: Running, deployment: str) -> None:
    before = pid(cluster, deployment)
    tree = [mark.pid for mark in family(frozenset({before}))]
    kill(before, signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{one}").exists() for one in tree), 20.0, "its tree to be gone")

    def is_back() -> bool:
        return states(cluster, deployment) == ["ready"] and pid(cluster, deployment) not in (0, before)

    until(is_back, 240.0, "a new one")
    assert answer(cluster, deployment)


def test_a_killed_node_agent_adopts_all_four(cluster: Running) -> None:
    before = {name: pid(cluster, name) for name in ENGINES}
    agent = cluster.part_pid("node_agent")
    kill(agent, signal.SIGKILL)
    assert all(answer(cluster, name) for name in ENGINES)
    until(lambda: cluster.part_pid("node_agent") != agent, 20.0, "a new node agent")
    until(lambda: cluster.admin("nodes")["items"][0]["state"] == "ready", 20.0, "the node")
    until(lambda: all(states(cluster, name) == ["ready"] for name in ENGINES), 30.0, "all four")
    assert {name: pid(cluster, name) for name in ENGINES} == before
    for one in before.values():
        os.kill(one, 0)


def test_an_engine_goes_to_another_version_and_back_while_it_answers(cluster: Running) -> None:
    def version() -> str:
        found = [one for one in cluster.replicas("smollm2") if one["desired"] == "run"]  # two while the new one starts
        return str(found[0]["engine_version"]) if [one["state"] for one in found] == ["ready"] else ""

    cluster.slice("engine", "install", f"llamacpp@{OLD_LLAMACPP}", "--wait", timeout_s=300)
    cluster.slice("engine", "upgrade", f"llamacpp@{OLD_LLAMACPP}", "--deployments", "all")
    until(lambda: bool(answer(cluster, "smollm2")) and version() == OLD_LLAMACPP, 120.0, "the other version")
    cluster.slice("engine", "rollback", "llamacpp")
    until(lambda: bool(answer(cluster, "smollm2")) and version() == NEW_LLAMACPP, 120.0, "the first version")
    cluster.slice("engine", "remove", f"llamacpp@{OLD_LLAMACPP}", "--wait", timeout_s=60)
    assert OLD_LLAMACPP not in cluster.slice("engine", "list").stdout
