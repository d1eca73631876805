"""Two machines in network namespaces: one runs `slice up --node-host`, the other joins it with the printed line."""

import json
import os
import re
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from core.infra import cluster, credentials
from tests.joining.machine import Machine, a_machine
from tests.many.places import Place, places
from tests.waiting import until_async

pytestmark = pytest.mark.system


@dataclass(frozen=True, kw_only=True)
class Two:
    """The controller's machine, and another one that is nothing yet."""

    here: Machine
    there: Machine
    there_place: Place

    async def line(self, *arguments: str) -> str:
        return (await self.here.slice("node", "token", "create", *arguments)).out.strip()

    async def node(self, name: str) -> dict[str, Any]:
        found = (await self.here.json("node", "list"))["items"]
        return next((node for node in found if node["name"] == name), {})

    async def replicas(self, deployment: str) -> list[dict[str, Any]]:
        found = (await self.here.json("ps"))["items"]
        return [replica for replica in found if replica["deployment"] == deployment]


@pytest.fixture
async def two() -> AsyncIterator[Two]:
    with places(2) as (one, other):
        async with a_machine(command=one.command) as here, a_machine(command=other.command) as there:
            await here.slice("up", "--node-host", one.address, "--starter-model", "", timeout_s=300)
            yield Two(here=here, there=there, there_place=other)


async def test_a_machine_joins_serves_survives_leaves_and_joins_again(two: Two) -> None:
    line = await two.line("--labels", "rack=b")
    facts = await two.there.json("node", "join", *line.split()[3:], "--name", "far")
    assert facts["node_name"] == "far"
    assert facts["is_approved"]
    assert two.there.block.plane_host == two.there_place.address

    async def is_ready() -> bool:
        return (await two.node("far")).get("state") == "ready"

    await until_async(is_ready, 20.0, "the node")
    assert (await two.node("far"))["labels"]["rack"] == "b"
    own = credentials.load(two.there.block.tls_dir)
    assert own is not None
    assert own.holder.identity.name == (await two.node("far"))["id"]

    await two.here.slice("deploy", "fake", "--name", "there", "--node", "far")

    async def serves() -> bool:
        return [item["state"] for item in await two.replicas("there")] == ["ready"]

    await until_async(serves, 60.0, "the replica")
    (replica,) = await two.replicas("there")
    assert replica["node"] == "far"
    assert (await two.there.json("status"))["engines"] == 1
    found = await two.here.slice("run", "there", "say something", timeout_s=60)
    assert found.out.strip(), "the door reaches it through the node's data plane"
    await two.there.slice("doctor")

    engine = _engine(two.there)
    agent = _part(two.there, "node_agent")
    os.kill(agent, signal.SIGKILL)

    async def is_back() -> bool:
        stands = await two.there.json("status")
        return stands["state"] == "open" and stands["node_agent_pid"] not in (None, agent)

    await until_async(is_back, 30.0, "the node agent")
    assert _engine(two.there) == engine
    await until_async(serves, 20.0, "the replica, still")
    assert [item["id"] for item in await two.replicas("there")] == [replica["id"]]

    await two.there.slice("node", "join", *(await two.line()).split()[3:], "--again")
    renewed = credentials.load(two.there.block.tls_dir)
    assert renewed is not None
    assert renewed.holder.serial != own.holder.serial
    assert renewed.holder.identity == own.holder.identity
    assert _engine(two.there) == engine
    await until_async(serves, 20.0, "the replica, which noticed nothing")

    await two.there.slice("down")
    assert two.there.leftovers() == []

    async def is_offline() -> bool:
        return (await two.node("far")).get("state") == "offline"

    await until_async(is_offline, 20.0, "the goodbye")
    await two.there.slice("up")
    await until_async(is_ready, 20.0, "the node, again")
    await until_async(serves, 60.0, "the replica, again")

    first = await two.node("far")
    left = await two.there.slice("node", "leave", "--timeout", "1s", code=5)
    assert "it may run on node far only" in left.err, "it is pinned there: nothing can take its place"
    assert (await two.node("far"))["is_cordoned"] is True
    await two.there.slice("node", "leave", "--now", timeout_s=120)
    assert two.there.leftovers() == []
    assert await two.node("far") == {}
    assert not list(two.there.data_dir.glob("*tls*"))
    await two.there.slice("node", "join", *(await two.line()).split()[3:], "--name", "far")
    await until_async(serves, 60.0, "the deployment, on the same machine as another node")
    assert (await two.node("far"))["id"] != first["id"]


def _part(machine: Machine, name: str) -> int:
    return int(json.loads((machine.block.parts_dir / f"{name}.json").read_text())["pid"])


def _engine(machine: Machine) -> int:
    (record,) = machine.block.node_dir.glob("replicas/*/record.json")
    return int(json.loads(record.read_text())["leader"]["pid"])


async def test_what_is_wrong_with_a_line_is_said_and_nothing_is_left(two: Two) -> None:
    line = await two.line()
    flipped = line[:-1] + ("0" if line[-1] != "0" else "1")

    async def refused(text: str, code: str, exit_code: int) -> str:
        done = await two.there.slice("node", "join", *text.split()[3:], "--name", "far", code=exit_code)
        assert f"error[{code}]" in done.err, done.err
        assert not two.there.data_dir.exists()
        assert two.there.leftovers() == []
        return done.err

    assert "possible interception" in await refused(flipped, "node.authority_mismatch", 4)
    stranger = re.sub(r"/(\w+)\.[A-Za-z0-9_-]{43}\.", lambda found: f"/{found[1]}.{'x' * 43}.", line)
    await refused(stranger, "node.join_token_invalid", 4)
    await two.there.slice("node", "join", *line.split()[3:], "--name", "far", "--no-start")
    other = Machine(home=two.there.home, command=two.there.command, more={"SLICE_DATA_DIR": str(two.there.home / "b")})
    done = await other.slice("node", "join", *line.split()[3:], "--name", "second", code=4)
    assert "error[node.join_token_used]" in done.err
    assert not (two.there.home / "b").exists()
    again = await two.line()
    done = await other.slice("node", "join", *again.split()[3:], "--name", "far", code=5)
    assert "error[node.name_taken]" in done.err, done.err


async def test_the_controllers_own_node_has_a_certificate_when_others_may_join(two: Two) -> None:
    block = cluster.load(two.here.data_dir)
    assert block is not None
    (node,) = (await two.here.json("node", "list"))["items"]

    async def is_certified() -> bool:
        own = credentials.load(block.tls_dir)
        return own is not None and own.holder.identity.name == node["id"]

    await until_async(is_certified, 20.0, "its certificate")
