"""The data plane with a real HAProxy: who may reach what, and how it passes."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adapters import registry
from core.infra import certificates
from node_agent.dataplane import configuration
from node_agent.dataplane.admin import Admin, AdminError
from node_agent.dataplane.configuration import Limits
from node_agent.dataplane.entries import allowed, file_text, paths_of, routes
from tests.gateway.scripted import Exchange, ScriptedEngine
from tests.node_agent.planes import (
    CHAT,
    DOOR,
    FILE,
    OTHER_NODE,
    Papers,
    Site,
    a_site,
    entry,
    named,
    until_holds,
)


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


# -- who may reach what ------------------------------------------------------------------------------------------------


async def test_a_door_reaches_the_engine_that_it_names(serving: Site, engine: ScriptedEngine) -> None:
    answer = await (await serving.call()).ask(body=b'{"a":1}', authorization="Bearer secret", x_request_id="r1")
    assert (answer.status, answer.body, answer.fault, answer.headers["x-engine"]) == (200, b"engine", "", "yes")
    heard = engine.exchanges[-1]
    assert (heard.method, heard.path, heard.body) == ("POST", CHAT, b'{"a":1}')
    assert heard.headers["host"] == f"127.0.0.1:{engine.port}"
    assert heard.headers["authorization"] == "Bearer secret"
    assert heard.headers["x-request-id"] == "r1"


async def test_headers_of_one_hop_and_ours_do_not_reach_the_engine(serving: Site, engine: ScriptedEngine) -> None:
    hops = {"te": "trailers", "keep_alive": "timeout=5", "upgrade": "h2c", "proxy_authorization": "x", "trailer": "x"}
    answer = await (await serving.call()).ask(**hops, connection="upgrade", x_slice_peer="forged", x_slice_any="x")
    assert answer.status == 200
    assert set(engine.exchanges[-1].headers) == {"host", "content-length", "connection"}
    assert engine.exchanges[-1].headers["connection"] == "close"


async def test_one_connection_serves_several_engines_without_mixing_them_up(site: Site) -> None:
    async def by_port(exchange: Exchange) -> None:
        await exchange.reply(str(exchange.headers["host"]).encode())

    async with ScriptedEngine(by_port) as one, ScriptedEngine(by_port) as two, site.agent() as plane:
        plane.leased_until(60)
        plane.publish([entry(one.port), entry(two.port, "rep_b", 7)])
        await until_holds(site, 2)
        caller = await site.call()
        for _ in range(5):
            assert (await caller.ask()).body == f"127.0.0.1:{one.port}".encode()
            assert (await caller.ask(replica="rep_b", incarnation=7)).body == f"127.0.0.1:{two.port}".encode()


@pytest.mark.parametrize(
    "asked",
    [
        {"incarnation": 2},
        {"incarnation": 0},
        {"replica": "rep_b"},
        {"incarnation": "1" + CHAT},
        {"replica": "", "incarnation": ""},
        {"replica": "rep_a/1" + CHAT, "incarnation": ""},
    ],
    ids=["newer", "older", "unknown", "a path in the number", "nothing", "a key of the other map"],
)
async def test_a_stale_or_unknown_spawn_is_told_so(serving: Site, engine: ScriptedEngine, asked: dict) -> None:
    answer = await (await serving.call()).ask(**asked)
    assert (answer.status, answer.fault, engine.exchanges) == (409, "stale", [])


@pytest.mark.parametrize(
    "path",
    ["/", "/v1/models", CHAT + "/", CHAT + "?x=1", "/v1/chat%2Fcompletions", "//v1/chat/completions", "/V1/chat"],
)
async def test_a_path_that_is_not_allowed_is_not_found(serving: Site, engine: ScriptedEngine, path: str) -> None:
    answer = await (await serving.call()).ask(path)
    assert (answer.status, answer.fault, engine.exchanges) == (404, "path", [])


async def test_only_posts_reach_an_engine(serving: Site, engine: ScriptedEngine) -> None:
    for method in ("GET", "DELETE", "PUT", "OPTIONS"):
        answer = await (await serving.call()).ask(method=method)
        assert (answer.status, answer.fault, engine.exchanges) == (404, "path", [])


async def test_a_nodes_certificate_reaches_no_engine(serving: Site, engine: ScriptedEngine) -> None:
    answer = await (await serving.call(OTHER_NODE)).ask()
    assert (answer.status, answer.fault, engine.exchanges) == (403, "role", [])


async def test_a_door_reaches_no_file_and_a_node_does(serving: Site) -> None:
    heard: list[bytes] = []

    async def files(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 206 Partial Content\r\ncontent-length: 4\r\ncontent-range: bytes 0-3/9\r\n\r\nfile")
        writer.close()

    server = await asyncio.start_unix_server(files, str(serving.spec.files_socket))
    try:
        refused = await (await serving.call(DOOR)).ask(FILE, method="GET", body=b"")
        assert (refused.status, refused.fault, heard) == (403, "role", [])
        given = await (await serving.call(OTHER_NODE)).ask(
            FILE, method="GET", body=b"", range="bytes=0-3", x_slice_peer="nod_forged"
        )
        assert (given.status, given.body, given.headers["content-range"]) == (206, b"file", "bytes 0-3/9")
        assert b"range: bytes=0-3" in heard[0]
        assert b"x-slice-peer: nod_b\r\n" in heard[0]
        assert b"forged" not in heard[0]
    finally:
        server.close()


@pytest.mark.parametrize("path", ["/slice/files/", "/slice/files/../x", FILE + "0", FILE.upper(), "/slice/other", "/"])
async def test_a_node_reaches_nothing_but_files_by_digest(serving: Site, path: str) -> None:
    answer = await (await serving.call(OTHER_NODE)).ask(path, method="GET", body=b"")
    assert (answer.status, answer.fault) == (403, "role")


async def test_a_node_may_only_get_a_file(serving: Site) -> None:
    answer = await (await serving.call(OTHER_NODE)).ask(FILE, method="POST")
    assert (answer.status, answer.fault) == (404, "path")


async def test_a_stranger_gets_no_connection(serving: Site, tmp_path: Path, engine: ScriptedEngine) -> None:
    (tmp_path / "other").mkdir()
    foreign = Papers(tmp_path / "other")  # the same names, signed by somebody else
    for context in (serving.papers.context(None), foreign.context(DOOR, serving.papers.roots)):
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            await (await serving.call(context=context)).ask()
    assert engine.exchanges == []


async def test_an_expired_certificate_gets_no_connection(serving: Site, tmp_path: Path) -> None:
    key, certificate = serving.papers.pair(DOOR, lifetime=-certificates.BACKDATED / 2)
    (tmp_path / "old.pem").write_text(certificate + key)
    context = serving.papers.context(None)
    context.load_cert_chain(tmp_path / "old.pem")
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        await (await serving.call(context=context)).ask()


async def test_old_tls_and_plain_http_get_nothing(serving: Site) -> None:
    context = serving.papers.context(DOOR)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await serving.call(context=context)
    reader, writer = await asyncio.open_connection("127.0.0.1", serving.port)
    writer.write(b"POST / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert not (await reader.read()).startswith(b"HTTP/")
    writer.close()


async def test_an_endless_head_is_refused(serving: Site, engine: ScriptedEngine) -> None:
    answer = await (await serving.call()).ask(x_long="a" * 16000)
    assert (answer.status, engine.exchanges) == (400, [])
    many = {f"x_{number}": "1" for number in range(100)}
    assert (await (await serving.call()).ask(**many)).status == 400


# -- what passes, and how it ends --------------------------------------------------------------------------------------


async def test_a_stream_arrives_piece_by_piece_however_long_it_is_silent(site: Site) -> None:
    """HAProxy's bound on an inactive caller is one second here; the engine is silent for longer, twice."""
    goes_on = asyncio.Event()

    async def streaming(exchange: Exchange) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(1.5, goes_on.set)
        await goes_on.wait()
        await exchange.begin_stream()
        for piece in (b"one", b"two"):
            await exchange.chunk(piece)
            goes_on.clear()
            await goes_on.wait()
        await exchange.end_stream()

    limits = Limits(connections=100, threads=1, client_s=1)
    async with ScriptedEngine(streaming) as engine, site.agent(limits=limits) as plane:
        plane.leased_until(60)
        plane.publish([entry(engine.port)])
        await until_holds(site, 1)
        caller = await site.call()
        await caller.send()
        assert (await caller.head()).status == 200
        assert await caller.chunk() == b"one"  # the engine waits: nothing was held back
        asyncio.get_running_loop().call_later(1.5, goes_on.set)
        assert await caller.chunk() == b"two"
        goes_on.set()
        assert await caller.chunk() == b""


async def test_a_caller_that_leaves_ends_the_engines_work_within_300_ms(serving: Site, engine: ScriptedEngine) -> None:
    async def silent(exchange: Exchange) -> None:
        await exchange.closed.wait()

    async def streaming(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(b"one")
        await exchange.closed.wait()

    for script in (silent, streaming):
        engine.script = script
        caller = await serving.call()
        engine.arrived.clear()
        await caller.send()
        async with asyncio.timeout(5):
            await engine.arrived.wait()
            if script is streaming:
                await caller.head()
                await caller.chunk()
        began = time.monotonic()
        caller.close()
        async with asyncio.timeout(5):
            await engine.exchanges[-1].closed.wait()
        assert time.monotonic() - began < 0.3


async def test_the_planes_own_errors_are_told_from_the_engines(serving: Site, engine: ScriptedEngine) -> None:
    async def failing(exchange: Exchange) -> None:
        await exchange.reply(b"no", status=503)

    async def dying(exchange: Exchange) -> None:
        exchange.die()

    engine.script = failing
    answer = await (await serving.call()).ask()
    assert (answer.status, answer.fault, answer.body) == (503, "", b"no")
    engine.script = dying
    answer = await (await serving.call()).ask()
    assert (answer.status, answer.fault) == (502, "died")
    engine.server.close()
    began = time.monotonic()
    answer = await (await serving.call()).ask()
    assert (answer.status, answer.fault) == (503, "unreachable")
    assert time.monotonic() - began < 1.0


# -- what is pure ------------------------------------------------------------------------------------------------------


def test_the_maps_hold_each_spawn_and_its_paths() -> None:
    entries = [entry(5001, paths=("/a", "/b")), entry(5000, "rep_b", 3)]
    assert routes(entries) == (("rep_a/1", 5001), ("rep_b/3", 5000))
    assert allowed(entries) == (("rep_a/1/a", 1), ("rep_a/1/b", 1), (f"rep_b/3{CHAT}", 1))
    assert file_text(routes(entries)) == "rep_a/1 5001\nrep_b/3 5000\n"


@pytest.mark.parametrize("path", ["/a b", "/a\nrep_x/1 1", "relative", ""])
def test_what_a_map_cannot_hold_is_left_out(path: str) -> None:
    assert allowed([entry(1, paths=(path,))]) == ()


@pytest.mark.parametrize("adapter", registry.adapters(), ids=lambda adapter: adapter.name)
def test_every_engine_is_reached_where_its_dialect_says(adapter) -> None:
    settings = {spec.name: spec.default for spec in adapter.setting_specs if spec.default is not None}
    paths = paths_of(adapter, settings)
    assert set(adapter.dialect.paths.values()) >= set(paths) != set()


def test_a_prefix_of_an_engine_that_is_not_ours_stands_before_its_paths() -> None:
    assert paths_of(registry.adapter("fake"), {}, "/llm")[0].startswith("/llm/v1/")


def test_an_ipv6_address_and_odd_socket_paths_are_written_so_that_haproxy_reads_them() -> None:
    text = configuration.configuration(
        host="::1",
        port=7,
        admin_socket=Path("/a b/'x"),
        files_socket=Path("/f"),
        limits=Limits(connections=9, threads=1),
    )
    assert "bind '[::1]:7' " in text
    assert "stats socket '/a b/'\\''x' mode 600" in text


async def test_an_admin_socket_that_nobody_listens_on_is_told(tmp_path: Path) -> None:
    with pytest.raises(AdminError, match="does not answer"):
        await Admin(tmp_path / "none.sock").ask("show info")
