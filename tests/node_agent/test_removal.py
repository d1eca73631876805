"""Taking files out of a node's store: what is unused goes, what a replica reads stays, and the last use is known."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.ids import Sha256
from node_agent.files.origins import SourceOrigins
from node_agent.files.store import FileStore
from node_agent.files.wants import FileOrder
from protos.slice.node.v1 import node_pb2
from tests.fakes import hub as hubs
from tests.fakes.web import Thing
from tests.node_agent import controllers, nodes, trees, wheels
from tests.node_agent.benches import bench, safetensors_bytes
from tests.node_agent.controllers import Controller
from tests.node_agent.nodes import Node

GGUF = wheels.gguf_bytes()
OTHER = wheels.gguf_bytes("qwen2")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    try:
        yield node
    finally:
        await node.close()


@pytest.fixture
async def controller(node: Node) -> AsyncIterator[Controller]:
    async with controllers.serving(node.control, Controller()) as controller:
        yield controller


def stored(controller: Controller) -> dict[str, node_pb2.FileReport]:
    return {one.sha256: one for one in controller.observed[-1].files if not one.want_id}


async def held(node: Node, controller: Controller, tmp_path: Path, *contents: bytes) -> list[str]:
    """Start a node whose store holds `contents`; return their digests."""
    await node.start()
    await trees.until(lambda: controller.hellos)
    orders = []
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.gguf").write_bytes(content)
        orders.append(node_pb2.FileWant(want_id=f"pul_{number}", source=f"file:{tmp_path}/{number}.gguf"))
    await controller.want(nodes.desired(1, files=orders))
    await trees.until(lambda: len(stored(controller)) == len(contents), 20.0)
    return [wheels.sha256(content) for content in contents]


def place(node: Node, digest: str) -> Path:
    return FileStore(node.data_dir / "store").path_of(Sha256(digest))


async def test_what_is_to_be_removed_goes_and_is_no_longer_reported(
    node: Node, controller: Controller, tmp_path: Path
) -> None:
    gone, kept = await held(node, controller, tmp_path, GGUF, OTHER)
    assert stored(controller)[gone].used_unix_s > 1_700_000_000
    await controller.want(nodes.desired(2, removed_files=[gone]))
    await trees.until(lambda: set(stored(controller)) == {kept})
    assert not place(node, gone).exists()
    assert place(node, kept).exists()
    assert not list(place(node, gone).parent.glob(f"{gone}*")), "its facts have gone with it"


async def test_a_file_that_a_replica_was_begun_with_stays_until_the_replica_has_gone(
    node: Node, controller: Controller, tmp_path: Path
) -> None:
    (digest,) = await held(node, controller, tmp_path, GGUF)
    want = nodes.want()
    want.files.append(node_pb2.FileWant(sha256=digest, size_bytes=len(GGUF), path="demo.gguf"))
    await controller.want(nodes.desired(2, want, removed_files=[digest]))
    await nodes.until_state(controller, "ready")
    assert place(node, digest).exists()

    want.desired = "stop"
    await controller.want(nodes.desired(3, want))
    await nodes.until_state(controller, "stopped")
    await controller.want(nodes.desired(4, removed_files=[digest]))
    await trees.until(lambda: digest not in stored(controller))
    assert not place(node, digest).exists()


async def test_a_strange_digest_removes_nothing(node: Node, controller: Controller, tmp_path: Path) -> None:
    (digest,) = await held(node, controller, tmp_path, GGUF)
    strange = ["../../applied.json", "", digest[:12], digest.upper(), "0" * 64]
    await controller.want(nodes.desired(2, removed_files=strange))
    await trees.until(lambda: controller.observed[-1].applied_generation == 2)
    assert place(node, digest).exists()
    assert set(stored(controller)) == {digest}


def test_a_file_with_a_link_elsewhere_stays(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    digest = Sha256(wheels.sha256(GGUF))
    path = store.path_of(digest)
    path.parent.mkdir(parents=True)
    path.write_bytes(GGUF)
    os.link(path, tmp_path / "model.gguf")
    assert store.remove(digest) is False
    assert path.exists()
    (tmp_path / "model.gguf").unlink()
    assert store.remove(digest) is True
    assert not path.exists()
    assert store.remove(digest) is True, "again changes nothing"


async def test_a_file_that_a_download_counts_on_stays_until_it_has_ended(tmp_path: Path) -> None:
    shared, weights = b'{"shared": true}', safetensors_bytes(count=30_000)
    with hubs.hub() as hub:
        repository = hub.repository("org/demo")
        repository.commit({"config.json": shared, "model.safetensors": safetensors_bytes(count=10)})
        async with bench(tmp_path, origins=SourceOrigins(hf_endpoint=hub.url)) as it:
            it.pulls.apply([FileOrder(source="hf:org/demo", want_id="pul_1")])
            await it.until("done", "pul_1")
            repository.commit({"config.json": shared, "model.safetensors": weights})
            hub.faults["model.safetensors"] = Thing(data=weights, hold_after=900)
            it.pulls.apply([FileOrder(source="hf:org/demo@main", want_id="pul_2")])
            await trees.until(lambda: it.progress("pul_2").bytes_done > 900, 30)
            assert await it.pulls.remove(wheels.sha256(shared)) is False
            hub.site.go_on.set()
            await it.until("done", "pul_2")
            assert await it.pulls.remove(wheels.sha256(shared)) is True


async def test_using_a_file_is_seen_in_what_is_reported(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(GGUF)
    digest = wheels.sha256(GGUF)
    async with bench(tmp_path) as it:
        it.pulls.apply([FileOrder(source=f"file:{tmp_path}/m.gguf", want_id="pul_1")])
        await it.until("done")
        facts = it.store.path_of(Sha256(digest)).with_name(f"{digest}.facts.json")
        os.utime(facts, (1_000_000_000, 1_000_000_000))
        await it.pulls.open()
        assert [one.used_unix_s for one in it.pulls.stored()] == [1_000_000_000]
        await it.pulls.ensure(FileOrder(source="", sha256=digest))
        assert it.pulls.stored()[0].used_unix_s > 1_700_000_000
        assert it.store.touch(Sha256("0" * 64)) is None
        assert not [name for name in it.files() if "0" * 64 in name], "what is not here leaves no trace"
