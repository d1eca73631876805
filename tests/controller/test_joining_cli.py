"""`slice node token` and `slice node approve` against a whole controller that other machines reach."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.joining import parse_line
from tests.controller.cluster import Cluster
from tests.controller.remote import Machine, free_ports
from tests.controller.test_blueprint_cli import Command


@pytest.fixture
async def open_cluster(url: str, runtime: Path) -> AsyncIterator[Cluster]:
    async with Cluster(url, runtime, node_port=free_ports()) as running:
        await running.ready()
        yield running


async def test_the_line_of_a_token_is_all_that_goes_to_standard_output_and_lets_a_machine_in(
    open_cluster: Cluster, runtime: Path, tmp_path: Path
) -> None:
    slice_ = Command(open_cluster, tmp_path / "data")
    out = await slice_("node", "token", "create", "--ttl", "1m", "--labels", "zone=b,rack=7", "--manual")
    assert out.count("\n") == 1
    assert out.startswith("slice node join ")
    line = parse_line(out)
    machine = Machine(authority=runtime / "authority.pem", port=line.port)
    assert (await machine.join(line)).certificate_pem
    assert "offline, unapproved" in await slice_("node", "list")
    await slice_("node", "approve", "far")
    shown = await open_cluster.get("nodes/far")
    assert (shown["labels"], shown["is_approved"]) == ({"zone": "b", "rack": "7"}, True)
    listed = await slice_("node", "token", "list")
    assert line.token_id in listed
    assert "used" in listed
    assert line.secret not in listed
    assert f"ports {line.port} and {line.join_port}" in await slice_("status")


async def test_a_token_is_revoked_by_its_id_and_an_unknown_one_is_told(open_cluster: Cluster, tmp_path: Path) -> None:
    slice_ = Command(open_cluster, tmp_path / "data")
    line = parse_line(await slice_("node", "token", "create", "--name", "gpu7"))
    await slice_("node", "token", "revoke", line.token_id)
    assert "revoked" in await slice_("node", "token", "list")
    assert "node.join_token_not_found" in await slice_("node", "token", "revoke", "jtk_nothing", code=3)
    assert "node.not_found" in await slice_("node", "approve", "nobody", code=3)
    assert "is no label" in await slice_("node", "token", "create", "--labels", "zone", code=2)


async def test_without_a_node_host_the_command_says_how_to_get_one(cluster: Cluster, tmp_path: Path) -> None:
    told = await Command(cluster, tmp_path / "data")("node", "token", "create", code=5)
    assert "node.not_listening" in told
    assert "--node-host" in told
