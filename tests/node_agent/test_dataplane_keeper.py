"""The data plane's lease, its keeper and its certificates, with a real HAProxy."""

import asyncio
import json
import os
import signal
import ssl
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.infra import processes
from node_agent import shim_client
from node_agent.dataplane.admin import Admin
from node_agent.dataplane.configuration import PATHS, ROUTES, Limits
from tests.gateway.scripted import Exchange, ScriptedEngine
from tests.node_agent import trees
from tests.node_agent.planes import (
    DOOR,
    FILE,
    NODE,
    OTHER_NODE,
    Papers,
    Site,
    a_site,
    entry,
    named,
    shown,
    until_holds,
    until_status,
)
from tests.waiting import until_async


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with a_site(tmp_path) as site:
        yield site


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine(named) as running:
        yield running


@pytest.fixture
async def serving(site: Site, engine: ScriptedEngine) -> AsyncIterator[Site]:
    """A node agent that lives, with a lease and one engine."""
    async with site.agent() as plane:
        plane.leased_until(60)
        plane.publish([entry(engine.port)])
        await until_holds(site, 1)
        yield site


# -- the fence ---------------------------------------------------------------------------------------------------------


async def test_without_a_lease_nothing_passes(site: Site, engine: ScriptedEngine) -> None:
    async with site.agent() as plane:
        plane.publish([entry(engine.port)])
        await until_holds(site, 1)
        answer = await (await site.call()).ask()
        assert (answer.status, answer.fault, engine.exchanges) == (503, "fenced", [])
        plane.leased_until(60)
        await until_status(site, 200)
        plane.leased_until(-1)
        await until_status(site, 503)


async def test_a_lease_that_ran_out_leaves_streams_alone_and_files_reachable(site: Site) -> None:
    ends = asyncio.Event()

    async def streaming(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(b"one")
        await ends.wait()
        await exchange.chunk(b"two")
        await exchange.end_stream()

    async with ScriptedEngine(streaming) as engine, site.agent() as plane:
        plane.leased_until(60)
        plane.publish([entry(engine.port)])
        await until_holds(site, 1)
        caller = await site.call()
        await caller.send()
        await caller.head()
        assert await caller.chunk() == b"one"
        plane.leased_until(-1)
        await until_status(site, 503)
        answer = await (await site.call(OTHER_NODE)).ask(FILE, method="GET", body=b"")
        assert answer.fault == "unreachable"  # asked for, though nobody serves files here
        ends.set()
        assert [await caller.chunk(), await caller.chunk()] == [b"two", b""]


async def test_a_clock_put_back_does_not_lengthen_a_lease(site: Site, engine: ScriptedEngine) -> None:
    """As if the lease had been written two hours ahead of what the clock says now."""
    async with site.agent() as plane:
        plane.publish([entry(engine.port)])
        await until_holds(site, 1)
        ahead_ms = int((time.time() + 7200) * 1000)
        await Admin(site.sockets / "haproxy-a.sock").set_lease(ahead_ms - 1000, ahead_ms + 13_000)
        answer = await (await site.call()).ask()
        assert (answer.status, answer.fault, engine.exchanges) == (503, "fenced", [])


AGENT = """
    import asyncio, json, sys
    from pathlib import Path
    from core.infra.clock import SystemClock
    from core.infra.logs import Log
    from core.infra.tasks import TaskGuard
    from node_agent.dataplane.entries import PlaneEntry
    from node_agent.dataplane.plane import Plane, PlaneSpec
    async def main():
        spec, port, lease_s = json.loads(sys.argv[1])
        spec = {key: Path(value) if key not in ("host", "port") else value for key, value in spec.items()}
        clock = SystemClock()
        log = Log("node_agent", clock)
        async with TaskGuard(log) as guard:
            plane = Plane(PlaneSpec(**spec), guard=guard, clock=clock, chance=lambda: 0.5, log=log)
            await plane.start()
            plane.publish([PlaneEntry(replica_id="rep_a", incarnation=1, port=port, paths=("/v1/chat/completions",))])
            while True:
                plane.leased_until(lease_s)
                print("leased", flush=True)
                await asyncio.sleep(0.2)
    asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=["stopped", "killed"])
async def test_the_fences_hold_while_the_node_agent_does_not_live(
    site: Site, engine: ScriptedEngine, tmp_path: Path, number: signal.Signals
) -> None:
    spec = {key: str(value) if key != "port" else value for key, value in vars(site.spec).items()}
    code = tmp_path / "agent.py"
    code.write_text(textwrap.dedent(AGENT))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(code),
        json.dumps([spec, engine.port, 1.5]),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    try:
        async with asyncio.timeout(20):
            for _ in range(5):
                await process.stdout.readline()
        await until_status(site, 200)
        caller = await site.call()
        process.send_signal(number)
        stopped_at = time.monotonic()
        assert (await caller.ask()).status == 200  # the engine serves on meanwhile
        assert (await caller.ask(incarnation=2)).fault == "stale"

        async def is_fenced() -> bool:
            return (await caller.ask()).fault == "fenced"

        await until_async(is_fenced, 5, "the fence")
        fenced_s = time.monotonic() - stopped_at
        assert 0.8 < fenced_s < 1.8
        served = len(engine.exchanges)
        assert (await caller.ask()).fault == "fenced"
        assert len(engine.exchanges) == served
        if number is signal.SIGSTOP:
            process.send_signal(signal.SIGCONT)
            await until_status(site, 200)  # the node agent is back, and its controller too
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


# -- the keeper --------------------------------------------------------------------------------------------------------


async def test_what_is_no_longer_published_is_stale_at_once(serving: Site, site: Site, engine: ScriptedEngine) -> None:
    async with site.agent() as plane:  # another life, which adopts
        plane.leased_until(60)
        plane.publish([entry(engine.port, incarnation=2)])
        await until_status(site, 200, incarnation=2)
        assert (await (await site.call()).ask()).fault == "stale"


async def test_a_new_node_agent_adopts_and_rewrites_the_maps(site: Site, engine: ScriptedEngine) -> None:
    async with site.agent() as plane:
        plane.leased_until(60)
        plane.publish([entry(engine.port), entry(engine.port, "rep_gone")])
        await until_holds(site, 2)
        caller = await site.call()
        assert (await caller.ask()).status == 200
    record = shim_client.read_record(site.spec.directory / "a")
    await Admin(site.sockets / "haproxy-a.sock").replace_map(ROUTES, [("rep_stray/1", engine.port), ("rep_a/1", 1)])
    async with site.agent() as plane:
        assert len(await shown(site, PATHS)) == 2  # nothing is taken away before it is known what runs
        plane.publish([entry(engine.port)])
        await until_holds(site, 1)
        assert await shown(site, ROUTES) == {"rep_a/1": str(engine.port)}
        assert (await caller.ask()).status == 200  # on the connection of before
        again = shim_client.read_record(site.spec.directory / "a")
        assert again.status.leader == record.status.leader
    assert "plane_adopted" in site.logged.getvalue()


async def test_a_map_of_thousands_of_spawns_is_written_whole(site: Site, engine: ScriptedEngine) -> None:
    async with site.agent() as plane:
        plane.leased_until(60)
        plane.publish([entry(engine.port, f"rep_{number:05}") for number in range(2000)])
        await until_holds(site, 2000)
        assert len(await shown(site, ROUTES)) == 2000
        assert (await (await site.call()).ask(replica="rep_01999")).status == 200


async def test_a_killed_haproxy_comes_back_with_maps_and_lease(serving: Site) -> None:
    record = shim_client.read_record(serving.spec.directory / "a")
    assert processes.send_signal(record.status.leader, signal.SIGKILL)

    async def is_back() -> bool:
        try:
            return (await (await serving.call()).ask()).status == 200
        except (OSError, asyncio.IncompleteReadError):
            return False

    await until_async(is_back, 10, "HAProxy to come back")


async def test_another_configuration_takes_over_without_refusing_or_cutting_anybody(
    site: Site, engine: ScriptedEngine
) -> None:
    ends = asyncio.Event()

    async def streaming(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(b"one")
        await ends.wait()
        await exchange.end_stream()

    async with site.agent() as plane:
        plane.leased_until(60)
        plane.publish([entry(engine.port)])
        await until_holds(site, 1)
        engine.script = streaming
        old = await site.call()
        await old.send()
        await old.head()
        assert await old.chunk() == b"one"
        before = shim_client.read_record(site.spec.directory / "a").status.leader
    engine.script = named
    refused: list[BaseException] = []
    is_over = asyncio.Event()

    async def calling() -> int:
        count = 0
        while not is_over.is_set():
            try:
                assert (await (await site.call()).ask()).fault == ""
                count += 1
            except OSError as error:
                refused.append(error)
        return count

    load = asyncio.ensure_future(calling())
    async with site.agent(limits=Limits(connections=100, threads=1)) as plane:
        plane.leased_until(60)
        plane.publish([entry(engine.port)])
        await until_holds(site, 1, "b")
        await until_status(site, 200)
        is_over.set()
        assert await load > 0
        assert refused == []
        ends.set()
        assert await old.chunk() == b""
        old.close()
        await trees.until(lambda: not processes.is_alive(before), 10)


async def test_a_port_that_is_taken_is_told_and_tried_again(site: Site, engine: ScriptedEngine) -> None:
    stranger = await asyncio.start_server(lambda *_: None, "127.0.0.1", site.port)
    async with site.agent() as plane:
        assert "cannot bind socket" in site.logged.getvalue()
        assert plane.address == ("127.0.0.1", site.port)
        plane.leased_until(60)
        plane.publish([entry(engine.port)])
        stranger.close()
        await stranger.wait_closed()

        async def is_up() -> bool:
            try:
                return (await (await site.call()).ask()).status == 200
            except (OSError, asyncio.IncompleteReadError):
                return False

        await until_async(is_up, 15, "the plane")


async def test_a_node_without_papers_listens_when_they_come(site: Site, tmp_path: Path) -> None:
    (tmp_path / "tls" / "key.pem").unlink()
    async with site.agent() as plane:
        assert "cannot be read" in site.logged.getvalue()
        site.papers.equip(tmp_path / "tls")
        plane.renewed()

        async def listens() -> bool:
            try:
                return (await (await site.call()).ask()).fault == "fenced"
            except OSError:
                return False

        await until_async(listens, 15, "the plane")


# -- certificates ------------------------------------------------------------------------------------------------------


async def test_a_renewed_certificate_is_shown_and_no_connection_is_dropped(site: Site, engine: ScriptedEngine) -> None:
    async with site.agent() as plane:
        plane.leased_until(60)
        plane.publish([entry(engine.port)])
        await until_holds(site, 1)
        old = await site.call()
        site.papers.equip(site.spec.tls_dir)
        plane.renewed()

        async def is_new() -> bool:
            return (await site.call()).certificate != old.certificate

        await until_async(is_new, 5, "the new certificate")
        assert (await old.ask()).status == 200
        assert (await (await site.call()).ask()).status == 200


async def test_roots_are_exchanged_while_both_are_trusted(site: Site, tmp_path: Path, engine: ScriptedEngine) -> None:
    (tmp_path / "next").mkdir()
    successor = Papers(tmp_path / "next")
    async with site.agent() as plane:
        plane.leased_until(60)
        plane.publish([entry(engine.port)])
        await until_holds(site, 1)
        old, both = site.papers.context(DOOR), site.papers.roots + successor.roots
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            await (await site.call(context=successor.context(DOOR, both))).ask()
        (site.spec.tls_dir / "authority.pem").write_text(both)
        plane.renewed()

        async def is_trusted() -> bool:
            try:
                return (await (await site.call(context=successor.context(DOOR, both))).ask()).status == 200
            except (OSError, asyncio.IncompleteReadError):
                return False

        await until_async(is_trusted, 5, "the new root")
        assert (await (await site.call(context=old)).ask()).status == 200


async def test_a_damaged_certificate_is_refused_and_the_old_one_stays(site: Site, engine: ScriptedEngine) -> None:
    async with site.agent() as plane:
        plane.leased_until(60)
        plane.publish([entry(engine.port)])
        await until_holds(site, 1)
        key, _ = site.papers.pair(NODE)
        (site.spec.tls_dir / "key.pem").write_text(key)  # of another certificate
        plane.renewed()

        async def is_told() -> bool:
            return "plane_certificate_refused" in site.logged.getvalue()

        await until_async(is_told, 5, "the log line")
        plane.leased_until(60)
        assert (await (await site.call()).ask()).status == 200
