"""Writers on a real database: stale plans, lost leadership, and the invariants that the schema itself holds."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from controller import assembly
from controller.api.stage import Parts
from controller.deployments.model import DeploymentChange, NewDeployment
from controller.exchange import FileReport, Observation
from controller.fleet.admission import Bounds
from controller.fleet.model import EngineFact, Hello, Inventory
from controller.leadership import Leadership, LeadershipLostError
from controller.ledger.service import Bell
from controller.reconcile import picture as pictures
from controller.reconcile.commit import Commit, StalePlanError
from controller.reconcile.lifecycle import Steps
from controller.reconcile.loop import LoopConfig
from core.devices import CPU_DEVICE, DeviceKind, DeviceReading
from core.ids import NodeId, PullId, Sha256
from core.infra import postgres
from core.infra.clock import SystemClock
from core.infra.entropy import SystemEntropy
from core.infra.logs import Log
from core.states import PullState
from scheduler.plan import plan

NOTHING = Steps(stops=(), gone=(), ended=(), pulls={}, wake_at=None)


@dataclass(frozen=True, kw_only=True)
class Reign:
    parts: Parts
    leadership: Leadership
    commit: Commit
    database: postgres.Database


@pytest.fixture
async def reign(database: postgres.Database, tmp_path: Path) -> AsyncIterator[Reign]:
    leadership = Leadership(database, "test")
    await leadership.acquire()
    facts = assembly.Facts(
        cluster_id="clu",
        version="0",
        schema=1,
        openai_base_url="",
        key_pepper=b"p",
        secret_key=b"k" * 32,
        secrets_dir=tmp_path,
        node_host="",
        node_port=0,
        heartbeat_s=2.0,
        hellos=Bounds(),
        loop=LoopConfig(cpu_reserve_bytes=0, drain_timeout_s=1.0, engine_seed=b"s"),
    )
    clock = SystemClock()
    parts = assembly.build(
        facts,
        database=database,
        leadership=leadership,
        bell=Bell(),
        clock=clock,
        entropy=SystemEntropy(),
        log=Log("test", clock),
    )
    await parts.fleet.load()
    commit = Commit(database=database, leadership=leadership, events=parts.ledger, ids=SystemEntropy(), lost_s=11.0)
    hellos = asyncio.ensure_future(parts.fleet.take_hellos())
    await parts.fleet.open(hello())
    wish = NewDeployment(name=None, model="fake", engine="fake", engine_version=None, replicas=1, settings={})
    await parts.deployments.create(wish)
    yield Reign(parts=parts, leadership=leadership, commit=commit, database=database)
    hellos.cancel()
    await asyncio.wait({hellos})


def hello() -> Hello:
    cpu = DeviceReading(
        device_id=CPU_DEVICE, kind=DeviceKind.CPU, name="CPU", total_bytes=8 * 2**30, free_bytes=6 * 2**30
    )
    fake = EngineFact(engine="fake", is_usable=True, reason="", device_kinds=("cpu",), installed_versions=())
    return Hello(
        protocol_min=1,
        protocol_max=1,
        node_id="nod_1",  # type: ignore[arg-type]
        node_name="box",
        machine_id="m",
        boot_id="b",
        agent_run_id="r",
        agent_version="0",
        max_leader_epoch_seen=0,
        inventory=Inventory(
            hostname="box",
            system="linux",
            machine="x86_64",
            cpu_count=1,
            memory_bytes=8 * 2**30,
            disk_total_bytes=1,
            disk_free_bytes=1,
            devices=(cpu,),
            engines=(fake,),
        ),
        observation=Observation(node_id="nod_1", applied_generation=0, replicas=(), files=()),  # type: ignore[arg-type]
    )


async def picture_of(reign: Reign) -> pictures.Picture:
    async with reign.database.snapshot() as connection:
        return await pictures.read(connection)


async def planned(reign: Reign, picture: pictures.Picture) -> int:
    live = reign.parts.fleet.nodes()
    seen = pictures.seen(picture, live, now=SystemClock().now(), cpu_reserve_bytes=0)
    return await reign.commit.write(picture, live, plan(seen), NOTHING)


async def test_a_plan_is_committed_once_and_then_the_picture_is_at_rest(reign: Reign) -> None:
    assert await planned(reign, await picture_of(reign)) == 1
    assert await planned(reign, await picture_of(reign)) == 0
    assert len((await picture_of(reign)).replicas) == 1


async def test_a_plan_whose_deployment_moved_on_is_stale_and_writes_nothing(reign: Reign) -> None:
    before = await picture_of(reign)
    await reign.parts.deployments.change("fake", DeploymentChange(replicas=2, settings=None, if_generation=None))
    with pytest.raises(StalePlanError):
        await planned(reign, before)
    assert (await picture_of(reign)).replicas == ()


async def test_a_plan_for_a_node_that_was_cordoned_meanwhile_is_stale_and_places_nothing(reign: Reign) -> None:
    before = await picture_of(reign)
    await reign.parts.leaving.cordon("box")
    with pytest.raises(StalePlanError):
        await planned(reign, before)
    assert (await picture_of(reign)).replicas == ()


async def test_a_plan_to_take_away_what_no_longer_leaves_is_stale(reign: Reign) -> None:
    await planned(reign, await picture_of(reign))
    await reign.parts.leaving.drain("box", is_forced=True)
    before = await picture_of(reign)
    assert before.replicas[0].is_leaving
    await reign.parts.leaving.uncordon("box")
    with pytest.raises(StalePlanError):
        await planned(reign, before)
    (left,) = (await picture_of(reign)).replicas
    assert (left.desired, left.is_leaving) == ("run", False)


async def test_a_plan_for_a_node_that_was_forgotten_meanwhile_is_stale(reign: Reign) -> None:
    before, live = await picture_of(reign), reign.parts.fleet.nodes()
    made = plan(pictures.seen(before, live, now=SystemClock().now(), cpu_reserve_bytes=0))
    await reign.parts.leaving.forget("box", is_forced=True)
    with pytest.raises(StalePlanError):
        await reign.commit.write(before, live, made, NOTHING)
    assert (await picture_of(reign)).nodes == ()


async def test_a_node_that_holds_nothing_is_drained_at_once(reign: Reign) -> None:
    await reign.parts.leaving.drain("box", is_forced=False)
    kinds = [event.kind for event in await reign.parts.ledger.page(0, 100)]
    assert kinds[-2:] == ["node_draining", "node_drained"]


async def test_a_leader_that_was_followed_writes_nothing_more(reign: Reign) -> None:
    before = await picture_of(reign)
    await reign.leadership.release()
    assert await Leadership(reign.database, "other").acquire() == 2
    with pytest.raises(LeadershipLostError):
        await planned(reign, before)
    with pytest.raises(LeadershipLostError):
        await reign.leadership.renew()
    assert (await picture_of(reign)).replicas == ()


async def test_whole_passes_come_to_rest_by_themselves(reign: Reign) -> None:
    changes = [(await reign.parts.loop.one_pass())[0] for _ in range(4)]
    assert changes == [True, False, False, False]
    assert reign.parts.routes.version == (1 << 32) + 2, "the sentence of the waiting route changed once"


@pytest.mark.parametrize(
    "unfit",
    [
        {
            "engines": (
                EngineFact(engine="fake", is_usable=True, reason="\x00", device_kinds=(), installed_versions=()),
            )
        },
        {"files": (FileReport(want_id=PullId(""), state=PullState.DONE, sha256=Sha256("none")),)},
    ],
    ids=["text", "digest"],
)
async def test_a_report_that_no_table_takes_keeps_nobody_else_waiting(reign: Reign, unfit: dict[str, Any]) -> None:
    sessions = {}
    for number in (2, 3):
        node_id = NodeId(f"nod_{number}")
        other = replace(hello(), node_id=node_id, node_name=f"box{number}", machine_id=f"m{number}")
        sessions[node_id] = await reign.parts.fleet.open(other)
    seen = reign.parts.fleet.nodes()[NodeId("nod_2")].observation
    assert seen is not None
    reign.parts.fleet.receive(sessions[NodeId("nod_2")], replace(seen, **unfit))
    await reign.parts.loop.one_pass()
    states = {row.name: row.state for row in (await picture_of(reign)).nodes}
    assert (states["box"], states["box3"]) == ("ready", "ready")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE controller.replica SET state = 'ready'",
        "UPDATE controller.replica SET state = 'flying'",
        "UPDATE controller.replica SET desired = 'drain'",
        "DELETE FROM controller.deployment",
        "DELETE FROM controller.version",
        "DELETE FROM controller.node",
        "UPDATE controller.deployment SET spec_generation = generation + 1",
        "INSERT INTO controller.leader DEFAULT VALUES",
        "INSERT INTO controller.pull (pull_id, model_name, source, state) VALUES ('p', 'm', 's', 'done')",
        "INSERT INTO controller.pull (pull_id, model_name, source, state) VALUES ('p', 'm', 's', 'queued'), "
        "('q', 'm', 's', 'running')",
        "INSERT INTO controller.api_key (kid, name, project_id, digest) VALUES ('k', 'n', 'prj_default', 'short')",
    ],
)
async def test_the_schema_itself_refuses_what_must_never_be(reign: Reign, statement: str) -> None:
    await planned(reign, await picture_of(reign))
    with pytest.raises(psycopg.IntegrityError):
        async with reign.database.transaction() as connection:
            await connection.execute(statement.encode())
