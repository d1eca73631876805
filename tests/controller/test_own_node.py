"""What `slice up` waits for: the node of its own machine, whoever else is there."""

from pathlib import Path

from cli.cluster import wiring
from core.infra import cluster as blocks
from core.infra.cluster import ClusterBlock
from tests.controller.cluster import OPERATOR, Cluster
from tests.controller.played import PlayedNode
from tests.controller.test_joining import until_shown
from tests.waiting import until_async


def block_of(cluster: Cluster, data_dir: Path) -> ClusterBlock:
    assert cluster.controller is not None
    block = ClusterBlock(
        cluster_id="clu_test",
        data_dir=data_dir,
        runtime_dir=data_dir / "run",
        host="127.0.0.1",
        door_port=1,
        controller_port=cluster.controller.http.port,
        base_port=20000,
    )
    blocks.make_private_dir(block.node_dir)
    blocks.make_private_dir(block.data_dir / "secrets")
    blocks.write_private(block.secret_file("operator_token"), OPERATOR)
    return block


async def test_the_node_of_another_machine_is_not_the_one_that_up_waits_for(cluster: Cluster, tmp_path: Path) -> None:
    block = block_of(cluster, tmp_path)
    async with PlayedNode(cluster.socket, node_id="nod_b", name="b", machine_id="b"):
        await until_shown(cluster, "b", "ready")
        assert not await wiring.node_is_ready(block), "ours has no id yet"
        blocks.write_private(block.node_dir / "identity.json", '{"node_id": "nod_1"}')
        assert not await wiring.node_is_ready(block), "ours has not come"
    async with PlayedNode(cluster.socket) as own:

        async def is_ready() -> bool:
            return await wiring.node_is_ready(block)

        await until_async(is_ready, what="our own node")
        own.is_beating = False

        async def is_silent() -> bool:
            return not await is_ready()

        await until_async(is_silent, timeout_s=15, what="its silence")
