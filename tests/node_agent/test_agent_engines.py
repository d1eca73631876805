"""The whole node agent as a process: what a controller wants of engines, told and done over the real stream."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from protos.slice.node.v1 import node_pb2
from tests.node_agent import controllers, nodes, trees, wheels
from tests.node_agent.controllers import Controller
from tests.node_agent.nodes import Node
from tests.node_agent.test_adoption import DIGEST, ollama

VERSION = "0.0.1"  # none that this release has a lock for: the wheel is ours


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    wheels.wheel(tmp_path / "wheels", b"class Server: pass", "xllamacpp/__init__.py", name="xllamacpp", version=VERSION)
    node.config["wheel_dir"] = str(tmp_path / "wheels")
    try:
        yield node
    finally:
        await node.close()


@pytest.fixture
async def controller(node: Node) -> AsyncIterator[Controller]:
    async with controllers.serving(node.control, Controller()) as controller:
        yield controller


def fact(controller: Controller, engine: str) -> node_pb2.EngineFact | None:
    """Return the newest word about an engine, of the last observed set or the last hello."""
    told = [*controller.observed[-1].engines] if controller.observed else []
    told = told or [*controller.hellos[-1].inventory.engines] if controller.hellos else told
    return next((one for one in told if one.engine == engine), None)


def install(controller: Controller, state: str) -> node_pb2.EngineInstall | None:
    found = fact(controller, "llamacpp")
    return next((one for one in found.installs if one.state == state), None) if found else None


async def test_a_wanted_engine_is_installed_told_kept_over_a_restart_and_removed(
    node: Node, controller: Controller
) -> None:
    want = node_pb2.EngineWant(engine="llamacpp", version=VERSION)
    await node.start()
    await trees.until(lambda: controller.hellos)
    await controller.want(nodes.desired(1, engines=[want]))
    await trees.until(lambda: install(controller, "installing"), 30)
    ready = await trees.until(lambda: install(controller, "ready"), 60)
    assert (ready.version, ready.size_bytes > 0) == (VERSION, True)
    assert list(fact(controller, "llamacpp").installed_versions) == [VERSION]
    await node.end()
    for wheel in (node.tmp_path / "wheels").iterdir():
        wheel.unlink()
    controller.observed.clear()
    await node.start()
    await trees.until(lambda: len(controller.hellos) == 2)
    assert list(fact(controller, "llamacpp").installed_versions) == [VERSION]
    want.is_removed = True
    await controller.want(nodes.desired(2, engines=[want]))
    await trees.until(lambda: fact(controller, "llamacpp") and not fact(controller, "llamacpp").installs, 20)
    assert not (node.data_dir / "engines/llamacpp" / VERSION).exists()


async def test_a_running_ollama_is_adopted_without_a_write_to_it(node: Node, controller: Controller) -> None:
    with ollama() as played:
        want = node_pb2.EngineWant(engine="ollama", adopt_url=played.url)
        await node.start()
        await trees.until(lambda: controller.hellos)
        await controller.want(nodes.desired(1, engines=[want]))
        adopted = await trees.until(lambda: fact(controller, "ollama") and fact(controller, "ollama").adopted.models, 5)
        assert [(model.name, model.sha256) for model in adopted] == [("gemma4", DIGEST)]
        await controller.want(nodes.desired(2))
        await trees.until(lambda: fact(controller, "ollama") and not fact(controller, "ollama").HasField("adopted"), 5)
    assert {line.split()[0] for line in played.heard} == {"GET"}
