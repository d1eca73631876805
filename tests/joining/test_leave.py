"""`slice node leave` on a machine that joined a desk: in one go, killed on its way, and without a controller."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from core.infra import credentials, joined
from protos.slice.node.v1 import node_pb2
from tests.joining.desk import Desk, Served, serving
from tests.joining.machine import Machine, a_machine
from tests.joining.test_join import error
from tests.node_agent.nodes import desired, want
from tests.waiting import until_async

HELD = [node_pb2.Remaining(replica_id="rep_one", deployment="chat", waiting="its successor is starting")]
STUCK = [node_pb2.Remaining(replica_id="rep_one", deployment="chat", waiting="no other node fits", is_stuck=True)]


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    async with a_machine() as made:
        yield made


async def joins(machine: Machine, served: Served, *, engine: bool = False, **settings: Any) -> None:
    await machine.slice("node", "join", served.line(), "--name", "far")
    if engine:
        await served.controller.want(desired(1, want(**settings)))
        await until_so(lambda: _state(served) == "ready", "the engine")


def _state(served: Served) -> str:
    report = served.controller.replica("rep_one")
    return report.state if report is not None else ""


async def until_so(claim: Callable[[], bool], what: str) -> None:
    async def is_so() -> bool:
        return claim()

    await until_async(is_so, timeout_s=30, what=what)


def remains(machine: Machine) -> set[str]:
    """Return what is left in the directory of a machine, below `node/` too."""
    return {
        str(item.relative_to(machine.data_dir))
        for item in (*machine.data_dir.iterdir(), *(machine.data_dir / "node").glob("*"))
    }


KEPT = {"supervisor.lock", "logs", "flags.json", "node", "node/store", "node/engines", "node/downloads"}


async def test_a_machine_leaves_with_its_engines_and_keeps_its_models(machine: Machine) -> None:
    async with serving(Desk()) as served:
        await joins(machine, served, engine=True)
        model = machine.block.node_dir / "store" / "a-model"
        model.parent.mkdir(exist_ok=True)
        model.write_bytes(b"w" * 5000)
        left = await machine.json("node", "leave")
        assert served.controller.leaves == [False, True]
        assert len(served.controller.goodbyes) == 1
        assert (left["node_name"], left["is_told"], left["untold"]) == ("far", True, None)
        assert left["kept_bytes"] >= 5000
        assert machine.leftovers() == []
        assert joined.load(machine.data_dir) is None
        assert remains(machine) - {"node/store/a-model"} <= KEPT
        assert model.exists()
        again = await machine.slice("node", "leave")
        assert "nothing to leave" in again.err
        assert served.controller.leaves == [False, True]

        served.controller.is_gone = False
        before = served.controller.hellos[-1]
        await joins(machine, served)
        after = served.controller.hellos[-1]
        assert after.node_id != before.node_id
        assert (list(after.observed.replicas), after.observed.applied_generation) == ([], 0)
        assert after.max_leader_epoch_seen == 0, "what another cluster's leader was is forgotten"


async def test_its_work_goes_elsewhere_before_anything_here_ends(machine: Machine) -> None:
    async with serving(Desk()) as served:
        await joins(machine, served, engine=True)
        served.controller.remaining = HELD
        leaving = asyncio.create_task(machine.slice("node", "leave"))
        await until_so(lambda: len(served.controller.leaves) > 3, "some looks")
        assert (_state(served), served.controller.goodbyes) == ("ready", [])
        served.controller.remaining = []
        done = await leaving
        assert "far still holds 1 replica; chat: its successor is starting" in done.err
        assert served.controller.leaves[-1] is True


async def test_what_has_nowhere_to_go_is_told_and_now_leaves_all_the_same(machine: Machine) -> None:
    async with serving(Desk()) as served:
        await joins(machine, served)
        served.controller.remaining = STUCK
        done = await machine.slice("node", "leave", "--timeout", "1s", code=5)
        assert error(done) == "node.in_use"
        assert "no other node fits; --now leaves all the same" in done.err
        assert (await machine.json("status"))["state"] == "open"
        assert True not in served.controller.leaves
        await machine.slice("node", "leave", "--now")
        assert served.controller.leaves[-1] is True
        assert joined.load(machine.data_dir) is None


@pytest.mark.parametrize("step", ["drain", "goodbye", "final", "removal"])
async def test_killed_at_any_step_a_second_leave_completes_it(machine: Machine, step: str) -> None:
    async with serving(Desk()) as served:
        await joins(machine, served, engine=True, ignore_sigterm=True)
        controller = served.controller
        if step == "drain":
            controller.remaining = HELD
        if step == "removal":  # the rename is done, and nothing after it
            await machine.slice("down")
            joined.mark_left(machine.block)
            refused = await machine.slice("up", code=None)
            assert "has left its cluster" in refused.err
            refused = await machine.slice("node", "join", served.line(), code=None)
            assert "`slice node leave` finishes that" in refused.err
        else:
            process = await asyncio.create_subprocess_exec(
                *machine.command,
                "node",
                "leave",
                env=machine.environment(),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            if step == "final":
                await until_so(lambda: bool(controller.goodbyes), "the goodbye")
                controller.holds_answers.set()
            reached = {
                "drain": lambda: len(controller.leaves) > 2,
                "goodbye": lambda: bool(controller.goodbyes),
                "final": lambda: controller.is_gone,
            }
            await until_so(reached[step], step)
            process.kill()
            await process.wait()
        controller.holds_answers.clear()
        controller.remaining = []
        await machine.slice("node", "leave")
        assert controller.is_gone or step == "removal"
        assert machine.leftovers() == []
        assert remains(machine) <= KEPT


async def test_without_a_controller_it_leaves_by_force_alone_and_says_what_is_left_there(machine: Machine) -> None:
    async with serving(Desk()) as served:
        await joins(machine, served, engine=True)
    done = await machine.slice("node", "leave", code=6)
    assert error(done) == "controller.unreachable"
    assert "nothing was ended here" in done.err
    assert "--force" in done.err
    assert (await machine.json("status"))["engines"] == 1
    left = await machine.slice("node", "leave", "--force")
    assert "slice node forget far" in left.err
    assert "stays promised" in left.err
    assert machine.leftovers() == []
    assert remains(machine) <= KEPT


async def test_a_controller_that_goes_away_on_the_way_leaves_a_node_that_can_still_leave(machine: Machine) -> None:
    async with serving(Desk()) as served:
        await joins(machine, served)
        refused = node_pb2.Reject(code="storage.unavailable", message="PostgreSQL does not answer", retry_after_ms=1000)
        leaving = asyncio.create_task(machine.slice("node", "leave", code=6))
        await until_so(lambda: bool(served.controller.goodbyes), "the goodbye")
        served.controller.refuse_leave = refused
        done = await leaving
        assert error(done) == "storage.unavailable"
        assert "its cluster still knows this node" in done.err
        assert credentials.load(machine.block.tls_dir) is not None
        served.controller.refuse_leave = None
        await machine.slice("node", "leave")
        assert remains(machine) <= KEPT


async def test_a_node_that_is_down_or_was_forgotten_leaves_as_well(machine: Machine) -> None:
    async with serving(Desk()) as served:
        await joins(machine, served)
        await machine.slice("down")
        served.controller.remaining = HELD
        await machine.slice("node", "leave")
        assert served.controller.leaves == [False, True]

        served.controller.is_gone = False
        await joins(machine, served)
        served.controller.is_gone = True
        await machine.slice("node", "leave", "--purge")
        assert remains(machine) == {"supervisor.lock"}


async def test_a_copied_directory_does_not_end_the_original(machine: Machine) -> None:
    async with serving(Desk()) as served:
        await joins(machine, served)
        copy = machine.home / "copy"
        shutil.copytree(machine.data_dir, copy, symlinks=True)
        done = await machine.slice("--data-dir", str(copy), "node", "leave", code=None)
        assert error(done) == "cluster.data_dir_unusable"
        assert served.controller.leaves == []
        assert json.loads((copy / "node.json").read_text())["node_name"] == "far"
