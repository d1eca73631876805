"""Controllers and node agents of releases that follow each other: what they say, who is refused, and an upgrade."""

import asyncio
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from controller.fleet.session import Telemetry
from core import protocols
from core.errors import Failure
from core.protocols import SPOKEN, Span
from node_agent import standing
from tests.controller.cluster import Cluster
from tests.node_agent.nodes import Node
from tests.node_agent.test_channels import write_gpus
from tests.waiting import until_async

FORMER = "c1a9ee3459f6e77dd7b0cb67c948e4f2efc83328"
"""The last commit of the release before: it speaks protocol 1 alone, and says no version in its HelloAck."""


def span(oldest: int, newest: int) -> Span:
    return Span(oldest=oldest, newest=newest)


@pytest.mark.parametrize(
    ("controller", "node", "version"),
    [
        (span(1, 2), span(1, 2), 2),
        (span(1, 2), span(1, 1), 1),
        (span(1, 1), span(1, 2), 1),
        (span(2, 3), span(1, 2), 2),
        (span(1, 2), span(2, 3), 2),
        (span(1, 2), span(0, 9), 2),
    ],
    ids=str,
)
def test_a_release_speaks_with_itself_and_with_the_one_before(controller: Span, node: Span, version: int) -> None:
    assert protocols.fault(controller=controller, node=node) is None
    assert protocols.agreed(controller, node) == version


@pytest.mark.parametrize(
    ("controller", "node", "code", "told", "hint"),
    [
        (
            span(3, 4),
            span(1, 2),
            "node.protocol_too_old",
            "protocol 3 to 4, the node agent 1 to 2",
            "the node agent first",
        ),
        (span(2, 3), span(1, 1), "node.protocol_too_old", "protocol 2 to 3, the node agent 1", "the node agent first"),
        (
            span(1, 2),
            span(3, 4),
            "node.protocol_too_new",
            "protocol 1 to 2, the node agent 3 to 4",
            "the controller first",
        ),
        (span(1, 1), span(2, 3), "node.protocol_too_new", "protocol 1, the node agent 2 to 3", "the controller first"),
        (span(1, 2), span(0, 0), "node.protocol_too_old", "protocol 1 to 2, the node agent 0", "the node agent first"),
        (span(1, 2), span(9, 1), "node.protocol_too_old", "the node agent 9 to 1", "the node agent first"),
    ],
    ids=str,
)
def test_releases_further_apart_are_told_which_is_to_be_upgraded_first(
    controller: Span, node: Span, code: str, told: str, hint: str
) -> None:
    fault = protocols.fault(controller=controller, node=node)
    assert fault is not None
    assert (fault.code, told in fault.message, f"upgrade {hint}" in fault.hint) == (code, True, True), fault


def test_a_controller_that_says_no_version_is_of_the_first_one_and_one_that_says_a_strange_one_is_refused() -> None:
    assert protocols.accepted(0, SPOKEN) == 1
    assert protocols.accepted(2, SPOKEN) == 2
    with pytest.raises(Failure, match="the controller speaks protocol 3") as too_new:
        protocols.accepted(3, SPOKEN)
    assert too_new.value.code == "node.protocol_too_old"
    with pytest.raises(Failure, match="the node agent 2 to 3"):
        protocols.accepted(0, span(2, 3))


@pytest.fixture
async def node(tmp_path: Path, cluster: Cluster) -> AsyncIterator[Node]:
    write_gpus(tmp_path / "gpus.json", 80)
    node = Node(tmp_path, devices=f"sim:{tmp_path / 'gpus.json'}")
    node.config["control_target"] = f"unix:{cluster.socket}"
    node.config["standing_file"] = str(tmp_path / "standing.json")
    try:
        yield node
    finally:
        await node.close()


async def until_shown(cluster: Cluster, **wanted: Any) -> Any:
    async def is_so() -> bool:
        status, body = await cluster.request("GET", "/api/v1/nodes/box")
        return status == 200 and all(body[key] == value for key, value in wanted.items())

    await until_async(is_so, 40, f"the node with {wanted}")
    return await cluster.get("nodes/box")


async def until_free(cluster: Cluster, count: int) -> Any:
    async def is_so() -> bool:
        shown = await cluster.get("nodes/box")
        return [one["free_bytes"] for one in shown["devices"] if one["kind"] == "nvidia"] == [count]

    await until_async(is_so, 20, f"{count} free bytes")
    return await cluster.get("nodes/box")


async def deployed(cluster: Cluster) -> Any:
    """Run the fake engine and return its replica once it is ready."""
    await cluster.ok("POST", "deployments", {"model": "fake"})
    return await until_serving(cluster)


async def until_serving(cluster: Cluster) -> Any:
    found: list[Any] = []

    async def is_ready() -> bool:
        found[:] = [one for one in (await cluster.get("replicas"))["items"] if one["state"] == "ready"]
        return bool(found)

    await until_async(is_ready, 40, "a ready replica")
    return found[0]


@pytest.mark.parametrize(
    ("claimed", "version"), [((1, 1), 1), ((1, 2), 2), ((2, 3), 2)], ids=["former", "same", "next"]
)
async def test_a_node_agent_one_release_away_holds_a_session_and_tells_what_is_free(
    cluster: Cluster, node: Node, claimed: tuple[int, int], version: int
) -> None:
    await node.start(protocols=claimed)
    shown = await until_shown(cluster, state="ready", protocol=version)
    assert shown["measured_s_ago"] < 5
    write_gpus(node.tmp_path / "gpus.json", 30)
    await until_free(cluster, 30)


@pytest.mark.parametrize(
    ("claimed", "code", "hint"),
    [
        ((0, 0), "node.protocol_too_old", "upgrade the node agent first"),
        ((3, 4), "node.protocol_too_new", "upgrade the controller first"),
    ],
    ids=["two behind", "two ahead"],
)
async def test_a_node_agent_two_releases_away_is_refused_and_tells_its_machine_what_to_do(
    cluster: Cluster, node: Node, claimed: tuple[int, int], code: str, hint: str
) -> None:
    await node.start(protocols=claimed)
    file = node.tmp_path / "standing.json"

    async def is_told() -> bool:
        found = standing.read(file) if file.exists() else None
        return found is not None and found.state is standing.State.REFUSED

    await until_async(is_told, 40, "the refusal")
    found = standing.read(file)
    assert found is not None
    assert (found.code, hint in found.hint) == (code, True)
    assert "the controller speaks protocol 1 to 2" in found.message
    assert (await cluster.get("nodes"))["items"] == []


async def test_readings_of_a_session_that_has_ended_are_dropped(cluster: Cluster, node: Node) -> None:
    await node.start()
    await until_shown(cluster, state="ready", protocol=2)
    assert cluster.controller is not None
    fleet: Any = cluster.controller.stage.parts().fleet
    (node_id,) = fleet.nodes()
    epoch = fleet.nodes()[node_id].session_epoch
    readings = Telemetry(devices=(), disk_free_bytes=1)
    assert not fleet.measure(node_id, epoch - 1, readings)
    assert not fleet.measure("nod_unknown", epoch, readings)
    assert (await cluster.get("nodes/box"))["disk_free_bytes"] > 1


# -- the release before, as it was --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of the release before."""
    told = subprocess.run(("git", "archive", FORMER), capture_output=True, check=False)
    if told.returncode != 0:
        pytest.skip(f"commit {FORMER[:7]} of the release before is not in this clone's history")
    place = tmp_path_factory.mktemp("former")
    with tarfile.open(fileobj=io.BytesIO(told.stdout)) as archive:
        archive.extractall(place, filter="data")
    return place


async def test_controller_first_then_the_node_agent_and_its_engines_never_notice(
    cluster: Cluster, node: Node, former: Path
) -> None:
    """The order of docs/upgrading.md; the controller of this release is there, the node agent is of the one before."""
    await node.start(cwd=former)
    await until_shown(cluster, state="ready", protocol=1)
    before = await deployed(cluster)
    assert await node.end() == 0
    await node.start()
    await until_shown(cluster, state="ready", protocol=2)
    after = await until_serving(cluster)
    same = ("id", "pid", "incarnation", "port")
    assert {key: after.get(key) for key in same} == {key: before.get(key) for key in same}


async def test_a_node_agent_that_was_upgraded_too_early_works_with_the_former_controller(
    node: Node, former: Path, empty_url: str, tmp_path: Path
) -> None:
    control = node.runtime / "former.sock"
    argv = (sys.executable, "-m", "tests.controller.standalone", empty_url, str(control), "0")
    with (tmp_path / "controller.log").open("wb") as log:
        controller = await asyncio.create_subprocess_exec(*argv, cwd=former, stderr=log)
    try:
        await node.start(control_target=f"unix:{control}")

        def opened() -> list[Any]:
            lines = [json.loads(line) for line in node.log.read_text().splitlines() if line.startswith("{")]
            return [line for line in lines if line["event"] == "session_open"]

        async def is_open() -> bool:
            return bool(opened())

        await until_async(is_open, 60, "the session")
        assert opened()[0]["protocol"] == 1
    finally:
        controller.terminate()
        await controller.wait()
