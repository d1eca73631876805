"""A real llama.cpp behind TLS, served as somebody else's endpoint: controller, node agent and door are all real."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest

from adapters.registry import adapter
from tests.controller.cluster import DOOR, Cluster
from tests.gateway.conftest import door_config, running_door
from tests.ggufs import write_random_llama
from tests.node_agent.nodes import Node
from tests.programs.running import KEY as REMOTE_KEY
from tests.programs.running import SERVED_NAME, RunningEngine
from tests.tls import Authority, in_front_of
from tests.waiting import until_async

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def node(tmp_path: Path, cluster: Cluster) -> AsyncIterator[Node]:
    node = Node(tmp_path / "box")
    node.tmp_path.mkdir()
    node.config["control_target"] = f"unix:{cluster.socket}"
    try:
        yield node
    finally:
        await node.close()


def llama(directory: Path, model: Path) -> RunningEngine:
    directory.mkdir()
    return RunningEngine("llamacpp", directory=directory, model=model, settings={"context": 512})


async def until_replica(cluster: Cluster, state: str) -> dict[str, object]:
    found: dict[str, object] = {}

    async def is_there() -> bool:
        items = (await cluster.get("replicas"))["items"]
        found.update(items[0] if items else {})
        return found.get("state") == state

    await until_async(is_there, 40, f"a replica that is {state}, not {found}")
    return found


async def test_a_remote_llamacpp_is_served_dies_and_comes_back(
    cluster: Cluster, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path / "tls")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    model = write_random_llama(tmp_path / "random.gguf", seed=7, context=512)
    config = door_config(tmp_path, control_target=f"unix:{cluster.socket}", token=DOOR, key_pepper_hex=b"pepper".hex())
    await node.start()
    async with contextlib.AsyncExitStack() as stack:
        engine = stack.enter_context(llama(tmp_path / "first", model)).wait_until_ready()
        port = await stack.enter_async_context(in_front_of(engine.port, authority.context))
        door = await stack.enter_async_context(running_door(config, {"openai": adapter("openai").dialect}.get))
        key = (await cluster.ok("POST", "keys", {"name": "test"}))["key"]
        await cluster.ok("PUT", "secrets/far", {"value": REMOTE_KEY})
        wish = {
            "model": "gpt",
            "engine": "openai",
            "settings": {"base_url": f"https://localhost:{port}/v1", "remote_model": SERVED_NAME},
            "secret": "far",
            "node": "box",
        }
        await cluster.ok("POST", "deployments", wish)
        assert (await until_replica(cluster, "ready"))["address"] == f"https://localhost:{port}"

        async def ask() -> openai.types.chat.ChatCompletion:
            async with door.client(key) as client:
                return await client.chat.completions.create(model="gpt", messages=MESSAGES, max_tokens=4, seed=1)

        async def answers() -> bool:
            try:
                answer = await ask()
            except openai.APIStatusError:
                return False
            return answer.model == "gpt" and answer.usage.completion_tokens > 0

        await until_async(answers, 10, "an answer of the remote engine")
        engine.process.kill()
        engine.process.wait(10)
        with pytest.raises(openai.InternalServerError):
            await ask()
        unwell = await until_replica(cluster, "unhealthy")
        assert unwell["code"] == "engine.unresponsive"
        assert unwell["restarts"] == 0
        waiting = (await cluster.get("deployments"))["items"][0]["waiting"]
        assert "node box" in waiting

        again = RunningEngine(
            "llamacpp", directory=tmp_path / "first", model=model, settings={"context": 512}, port=engine.port
        )
        stack.enter_context(again).wait_until_ready()
        await until_replica(cluster, "ready")
        await until_async(answers, 10, "an answer of the engine that came back")

        await cluster.ok("PUT", "secrets/far", {"value": "sk-wrong"})
        unwell = await until_replica(cluster, "unhealthy")
        assert "refuses our key (401)" in str(unwell["message"])
        await cluster.ok("PUT", "secrets/far", {"value": REMOTE_KEY})
        await until_replica(cluster, "ready")
        await until_async(answers, 10, "an answer under the right key")

        await cluster.ok("DELETE", "deployments/gpt")

        async def is_gone() -> bool:
            return not (await cluster.get("deployments"))["items"]

        await until_async(is_gone, 15, "the deployment is gone")
        assert again.process.poll() is None, "the remote engine is nobody's to end"
