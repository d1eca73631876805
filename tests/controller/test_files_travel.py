"""A controller and two real node agents with a data plane each: one download from outside serves both machines."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from core.ids import Sha256
from node_agent.files.store import FileStore
from tests.controller.cluster import Cluster
from tests.fakes import web
from tests.ggufs import write_random_llama
from tests.node_agent import nodes
from tests.node_agent.benches import sha256
from tests.node_agent.planes import Papers
from tests.node_agent.test_agent_peers import Member
from tests.waiting import until_async

PATIENCE_S = 60.0


@pytest.fixture
async def members(tmp_path: Path) -> AsyncIterator[tuple[Member, Member]]:
    papers, (first_port, _) = Papers(tmp_path), nodes.free_ports(20)
    async with contextlib.AsyncExitStack() as stack:
        found = [Member(tmp_path / name, papers, first_port + 10 * at) for at, name in enumerate(("near", "far"))]
        for member in found:
            stack.push_async_callback(member.node.close)
        yield found[0], found[1]


async def until_on(cluster: Cluster, *names: str) -> dict[str, Any]:
    """Wait until exactly these nodes hold the model, whole."""

    async def is_so() -> bool:
        status, found = await cluster.request("GET", "/api/v1/models/tiny/where")
        items = found["items"] if status == 200 else []  # the pull has yet to register it
        return {one["node"] for one in items if one["is_whole"] and not one["is_leaving"]} == set(names)

    await until_async(is_so, PATIENCE_S, f"tiny on {names}")
    return {one["node"]: one for one in (await cluster.get("models/tiny/where"))["items"]}


async def test_a_machine_without_internet_serves_a_model_that_another_one_downloaded(
    cluster: Cluster, members: tuple[Member, Member], tmp_path: Path
) -> None:
    near, far = members
    model = write_random_llama(tmp_path / "tiny.gguf", seed=1).read_bytes()
    with web.site() as site:
        site.put("/tiny.gguf", model)
        target = {"control_target": f"unix:{cluster.socket}"}
        await near.node.start(node_name="near", origins={"source_hosts": site.url}, **target)
        source = f"https://127.0.0.1:{site.port}/tiny.gguf"
        await cluster.ok("POST", "pulls", {"name": "tiny", "source": source})
        await until_on(cluster, "near")

        await far.node.start(node_name="far", **target)  # may go nowhere: the source's address is not public

        async def has_joined() -> bool:
            return len((await cluster.get("nodes"))["items"]) == 2

        await until_async(has_joined, PATIENCE_S)
        await cluster.ok("POST", "deployments", {"model": "tiny", "engine": "fake", "node": "far"})

        async def serves() -> bool:
            return [one["state"] for one in (await cluster.get("replicas"))["items"]] == ["ready"]

        await until_async(serves, PATIENCE_S, "a replica on the machine without internet")
        found = await until_on(cluster, "near", "far")
        assert found["far"]["used_by"] == ["tiny"]
        assert len(site.seen) == 1, "one download from outside, in one piece"

        status, answer = await cluster.request("DELETE", "/api/v1/models/tiny/nodes/far")
        assert (status, answer["error"]["code"]) == (409, "registry.model_in_use")
        await cluster.ok("DELETE", "models/tiny/nodes/near")
        await until_on(cluster, "far")
        place = FileStore(near.node.data_dir / "store").path_of(Sha256(sha256(model)))

        async def has_left() -> bool:
            return not place.exists() and len((await cluster.get("store"))["items"]) == 1

        await until_async(has_left, PATIENCE_S, "the file's end on the first machine")

        await cluster.ok("POST", "models/tiny/copies", {"to": "near"})
        await until_on(cluster, "near", "far")
        assert place.read_bytes() == model
        assert len(site.seen) == 1, "it came from the other node"
