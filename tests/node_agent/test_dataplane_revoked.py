"""Certificates that were revoked, at a real HAProxy: new connections, open ones, files on their way, restarts."""

import asyncio
import os
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node_agent.dataplane import entries
from node_agent.dataplane.configuration import REVOKED
from tests.gateway.scripted import ScriptedEngine
from tests.node_agent.planes import DOOR, FILE, OTHER_NODE, Caller, Site, a_site, entry, named, shown, until_holds
from tests.waiting import until_async

BOUND_S = 10.0
"""What is promised from a revocation to the refusal, where a session is open."""


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with a_site(tmp_path) as site:
        yield site


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine(named) as running:
        yield running


async def until_revoked(site: Site, count: int, slot: str = "a") -> None:
    async def is_so() -> bool:
        return len(await shown(site, REVOKED, slot)) == count

    await until_async(is_so, BOUND_S, f"{count} revoked certificates")


async def is_shut_out(site: Site, context: ssl.SSLContext, **asked: object) -> bool:
    """Return whether a new connection is closed unanswered; it may be at the handshake's end or after it."""
    try:
        async with asyncio.timeout(5):
            await (await site.call(context=context)).ask(**asked)
    except (OSError, asyncio.IncompleteReadError):
        return True
    return False


@pytest.mark.parametrize("digits", [40, 39], ids=["even", "odd"])
async def test_a_revoked_door_is_shut_out_and_its_open_connections_are_refused(
    site: Site, engine: ScriptedEngine, digits: int
) -> None:
    async with site.agent() as plane:
        plane.leased_until(60)
        plane.publish([entry(engine.port)])
        await until_holds(site, 1)
        (bad, serial), (good, _) = site.papers.known(DOOR, digits), site.papers.known(DOOR)
        before: list[Caller] = [await site.call(context=bad), await site.call(context=good)]
        assert [(await caller.ask()).status for caller in before] == [200, 200]
        plane.revoke([serial])
        await until_revoked(site, 1)
        answer = await before[0].ask()
        assert (answer.status, answer.fault, len(engine.exchanges)) == (403, "revoked", 2)
        assert await is_shut_out(site, bad)
        assert (await before[1].ask()).status == 200
        assert (await (await site.call(context=good)).ask()).status == 200
        assert site.logged.getvalue().count('"plane_started"') == 1
        # The whole set, each time: one that is dead by itself is dropped.
        plane.revoke([])
        await until_revoked(site, 0)
        assert (await (await site.call(context=bad)).ask()).status == 200


class Files:
    """A file server that begins an answer and goes on when it is told to."""

    def __init__(self) -> None:
        self.begun = 0
        self.cut = 0
        self.may_go_on = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfi")
        await writer.drain()
        self.begun += 1
        gone = asyncio.ensure_future(reader.read())
        go = asyncio.ensure_future(self.may_go_on.wait())
        await asyncio.wait({gone, go}, return_when=asyncio.FIRST_COMPLETED)
        self.cut += gone.done()
        for wait in (gone, go):
            wait.cancel()
        writer.write(b"le")
        writer.close()


async def test_what_a_revoked_node_is_being_sent_is_cut_and_streams_of_doors_are_not(
    site: Site, engine: ScriptedEngine
) -> None:
    files = Files()
    server = await asyncio.start_unix_server(files.serve, str(site.spec.files_socket))
    asked = {"method": "GET", "body": b""}
    try:
        async with site.agent() as plane:
            plane.leased_until(60)
            plane.publish([entry(engine.port)])
            await until_holds(site, 1)
            (bad, serial), (good, _) = site.papers.known(OTHER_NODE), site.papers.known(OTHER_NODE)
            thief, other, door = await site.call(context=bad), await site.call(context=good), await site.call(DOOR)
            for caller in (thief, other):
                await caller.send(FILE, **asked)
                assert (await caller.head()).status == 200
            assert (await door.ask()).status == 200
            plane.revoke([serial])
            with pytest.raises((asyncio.IncompleteReadError, OSError)):
                async with asyncio.timeout(BOUND_S):
                    await thief.reader.readexactly(4)
            assert await is_shut_out(site, bad, path=FILE, **asked)
            assert (await door.ask()).status == 200
            # Who may have it asks again and gets it.
            files.may_go_on.set()
            again = await (await site.call(context=good)).ask(FILE, **asked)
            assert (again.status, again.body) == (200, b"file")
    finally:
        server.close()


async def test_the_same_set_told_again_cuts_nothing(site: Site) -> None:
    files = Files()
    server = await asyncio.start_unix_server(files.serve, str(site.spec.files_socket))
    try:
        for _ in range(2):  # as after a restart of the node agent, whose controller tells it the set anew
            async with site.agent() as plane:
                plane.revoke(["ab", "cd"])
                await until_revoked(site, 2)
                if not files.begun:
                    caller = await site.call(OTHER_NODE)
                    await caller.send(FILE, method="GET", body=b"")
                    assert (await caller.head()).status == 200
        files.may_go_on.set()
        assert (await caller.reader.readexactly(4), files.cut) == (b"file", 0)
    finally:
        server.close()


async def test_revocations_outlive_the_node_agent_and_haproxy_without_any_controller(
    site: Site, engine: ScriptedEngine
) -> None:
    bad, serial = site.papers.known(DOOR)
    async with site.agent() as plane:
        plane.revoke([serial])
        await until_revoked(site, 1)
    assert await is_shut_out(site, bad)
    async with site.agent() as plane:
        plane.leased_until(60)
        plane.publish([entry(engine.port)])
        await until_holds(site, 1)
        assert await is_shut_out(site, bad)
        (pid,) = [int(line.split(": ")[1]) for line in (await info(site)).splitlines() if line.startswith("Pid:")]
        os.kill(pid, signal.SIGKILL)

        async def is_back() -> bool:
            try:
                return f"Pid: {pid}\n" not in await info(site) and bool(await shown(site, REVOKED))
            except (OSError, ValueError):
                return False

        await until_async(is_back, 20, "another HAProxy")
        assert await is_shut_out(site, bad)
        assert (await (await site.call(DOOR)).ask()).status == 200


async def info(site: Site) -> str:
    reader, writer = await asyncio.open_unix_connection(str(site.sockets / "haproxy-a.sock"))
    writer.write(b"show info\n")
    writer.write_eof()
    try:
        return (await reader.read()).decode()
    finally:
        writer.close()


async def test_thousands_of_revoked_certificates_are_taken_whole(site: Site) -> None:
    bad, serial = site.papers.known(DOOR)
    async with site.agent() as plane:
        plane.revoke([serial, *(f"{number:040x}" for number in range(1, 5000))])
        await until_revoked(site, 5000)
        assert await is_shut_out(site, bad)


def test_serials_become_keys_in_whole_bytes_and_strange_ones_none() -> None:
    assert entries.revoked(["abc", "0f", "zz", "", "A", "1" * 41, "1 2"]) == (("0ABC", 1), ("0F", 1))
