"""The controller and a real node agent: a model comes, is looked at, is deleted, and its file leaves the disk."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gguf
import pytest

from core.ids import Sha256
from node_agent.files.store import FileStore
from tests.controller.cluster import Cluster
from tests.ggufs import CHAT_TEMPLATE, write_random_llama
from tests.node_agent.nodes import Node
from tests.waiting import until_async


@pytest.fixture
async def node(tmp_path: Path, cluster: Cluster) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    try:
        await node.start(control_target=f"unix:{cluster.socket}")
        yield node
    finally:
        await node.close()


async def pulled(cluster: Cluster, name: str, path: Path) -> Any:
    pull = await cluster.ok("POST", "pulls", {"name": name, "source": f"file:{path}"})

    async def has_ended() -> bool:
        return (await cluster.get(f"pulls/{pull['id']}"))["finished_at"] is not None

    await until_async(has_ended, timeout_s=20, what="the end of the pull")
    return await cluster.get(f"pulls/{pull['id']}")


async def test_a_model_comes_is_shown_is_deleted_and_leaves_the_disk(
    cluster: Cluster, node: Node, tmp_path: Path
) -> None:
    model = write_random_llama(tmp_path / "tiny.gguf", seed=1)
    assert (await pulled(cluster, "tiny", model))["state"] == "done"
    version = (await cluster.get("models/tiny"))["versions"][0]
    assert (version["format"], version["architecture"]) == ("gguf", "llama")
    assert (await cluster.get("models/tiny/versions/1/template"))["text"] == CHAT_TEMPLATE

    place = FileStore(node.data_dir / "store").path_of(Sha256(version["files"][0]["sha256"]))
    assert place.stat().st_size == model.stat().st_size
    assert (await cluster.ok("POST", "store/gc", {}))["items"] == []
    assert place.exists()

    await cluster.request("DELETE", "/api/v1/models/tiny")
    gone = await cluster.ok("POST", "store/gc", {})
    assert gone["total_bytes"] == model.stat().st_size

    async def is_gone() -> bool:
        return not place.exists() and (await cluster.get("store"))["items"] == []

    await until_async(is_gone, timeout_s=20, what="the file's end")


async def test_a_model_with_a_hostile_template_is_refused_and_leaves_nothing(
    cluster: Cluster, node: Node, tmp_path: Path
) -> None:
    writer = gguf.GGUFWriter(tmp_path / "evil.gguf", "llama")
    writer.add_chat_template("{{ cycler.__init__.__globals__ }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    ended = await pulled(cluster, "evil", tmp_path / "evil.gguf")
    assert (ended["state"], ended["error"]["code"]) == ("failed", "format.template_refused")
    assert "the chat template is refused: it names Python's internals" in ended["error"]["message"]
    assert (await cluster.get("models"))["items"] == []
    assert not list((node.data_dir / "store").rglob("[0-9a-f]" * 64))
