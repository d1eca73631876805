"""The whole way on a node: pulled, linked, spawned under a shim, provisioned, adopted after a restart, killed."""

import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from adapters.contract import ModelFile
from protos.slice.node.v1 import node_pb2
from tests.node_agent import controllers, nodes, trees
from tests.node_agent.controllers import Controller
from tests.node_agent.nodes import Node
from tests.standins.conftest import CONTEXT, Engine, launch_request

HI = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "stream": False, "options": {"num_predict": 3}}


def replica(chat_model: ModelFile, desired: str = "run") -> node_pb2.ReplicaWant:
    file = node_pb2.FileWant(
        source=f"file:{chat_model.stored_at}", sha256=chat_model.sha256, size_bytes=chat_model.size_bytes, path="m.gguf"
    )
    return node_pb2.ReplicaWant(
        replica_id="rep_one",
        deployment="demo",
        served_name="demo",
        engine="ollama",
        engine_version="0.33.0",
        settings_json=json.dumps({"context": CONTEXT, "slots": 1}),
        files=[file],
        devices=[node_pb2.DevicePromise(device_id="cpu", bytes=1)],
        engine_key="secret",
        desired=desired,
    )


def engine_at(report: node_pb2.ReplicaReport, tmp_path: Path) -> Engine:
    return Engine(None, report.port, tmp_path, launch_request(tmp_path, "", report.port, ()), tmp_path)  # type: ignore[arg-type]


@pytest.fixture
async def node(tmp_path: Path, ollama_program: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    monkeypatch.setenv("PATH", f"{Path(ollama_program).parent}:{os.environ['PATH']}")
    node = Node(tmp_path)
    try:
        yield node
    finally:
        await node.close()


@pytest.fixture
async def controller(node: Node) -> AsyncIterator[Controller]:
    async with controllers.serving(node.control, Controller()) as controller:
        yield controller


async def test_a_managed_ollama_becomes_ready_is_adopted_and_leaves_nothing(
    node: Node, controller: Controller, chat_model: ModelFile, tmp_path: Path
) -> None:
    await node.start()
    await trees.until(lambda: controller.hellos)
    await controller.want(nodes.desired(1, replica(chat_model)))
    report = await nodes.until_state(controller, "ready")
    assert engine_at(report, tmp_path).ask("POST", "/api/chat", HI).json["eval_count"] == 3
    stored = node.data_dir.joinpath("replicas", "rep_one", "work", "models", "blobs", f"sha256-{chat_model.sha256}")
    assert stored.stat().st_nlink >= 2
    tree = [psutil.Process(report.pid), *psutil.Process(report.pid).children(recursive=True)]
    assert "llama-server" in [one.name() for one in tree]

    await node.end(signal.SIGKILL)
    controller.observed.clear()
    await node.start()
    again = await nodes.until_state(controller, "ready")
    assert (again.pid, again.incarnation) == (report.pid, report.incarnation)
    assert engine_at(again, tmp_path).ask("POST", "/api/chat", HI).status == 200

    await controller.want(nodes.desired(2, replica(chat_model, desired="stop")))
    await nodes.until_state(controller, "stopped")
    await trees.until(lambda: not any(one.is_running() for one in tree))


async def test_a_runner_that_dies_is_loaded_again_by_the_next_request(
    node: Node, controller: Controller, chat_model: ModelFile, tmp_path: Path
) -> None:
    await node.start()
    await trees.until(lambda: controller.hellos)
    await controller.want(nodes.desired(1, replica(chat_model)))
    report = await nodes.until_state(controller, "ready")
    (child,) = psutil.Process(report.pid).children(recursive=True)
    child.kill()
    await trees.until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert engine_at(report, tmp_path).ask("POST", "/api/chat", HI).status == 200


async def test_a_node_without_the_program_says_so(
    node: Node, controller: Controller, chat_model: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    await node.start()
    await trees.until(lambda: controller.hellos)
    await controller.want(nodes.desired(1, replica(chat_model)))

    def refused() -> node_pb2.ReplicaReport | None:
        found = controller.replica("rep_one")
        return found if found is not None and found.code == "engine.not_installed" else None

    assert "ollama" in (await trees.until(refused, 15.0)).message
