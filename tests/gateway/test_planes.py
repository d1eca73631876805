"""Replicas on other machines: the door, a real data plane with real certificates, and scripted engines behind it."""

import asyncio
import json
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import openai
import pytest

from core.identities import Identity, Role
from core.infra import certificates
from node_agent.dataplane.admin import Admin
from node_agent.dataplane.plane import Plane
from protos.slice.routes.v1 import routes_pb2
from tests.gateway.conftest import (
    KEY,
    RoutesServer,
    RunningDoor,
    door_config,
    route,
    running_door,
    serving_routes,
    target,
)
from tests.gateway.scripted import Exchange, ScriptedEngine, answering, chat_chunk
from tests.ggufs import write_random_llama
from tests.node_agent.planes import CHAT, NODE, Papers, Site, a_site, entry, until_holds
from tests.programs.running import KEY as ENGINE_KEY
from tests.programs.running import SERVED_NAME, RunningEngine
from tests.waiting import until_async

MESSAGES = [{"role": "user", "content": "hi"}]


class Controller(RoutesServer):
    """A controller that gives doors certificates, unless it is told not to."""

    def __init__(self, papers: Papers) -> None:
        super().__init__()
        self.papers = papers
        self.asked: list[str] = []
        self.gives = True
        self.lifetime = certificates.LIFETIME

    async def Certify(self, request, context):
        self.asked.append(request.door_id)
        if not self.gives:
            return routes_pb2.CertifyReply(code="node.not_listening", message="not now")
        identity = Identity(cluster_id="clu_1", role=Role.DOOR, name=request.door_id)
        given = certificates.issued(self.papers.authority, request.csr_pem, identity, datetime.now(UTC), self.lifetime)
        return routes_pb2.CertifyReply(
            cluster_id="clu_1", certificate_pem=given.certificate_pem, authority_pem=self.papers.roots
        )


@dataclass
class Far:
    """A door, its controller, and one other machine."""

    door: RunningDoor
    controller: Controller
    site: Site
    plane: Plane
    entries: list = field(default_factory=list)

    def target(self, engine: ScriptedEngine, replica_id="rep_a", incarnation=1, **more) -> routes_pb2.Target:
        """Return a replica on the other machine as a table names it."""
        found = target(engine, replica_id, incarnation)
        found.MergeFrom(
            routes_pb2.Target(**{"node_id": NODE.name, "plane_host": "127.0.0.1", "plane_port": self.site.port, **more})
        )
        return found

    async def publish(self, *entries) -> None:
        self.plane.publish(entries)
        await until_holds(self.site, len(entries))

    async def route(self, *targets: routes_pb2.Target) -> None:
        await self.controller.applied(self.controller.push(route(*targets)))

    async def ask(self, **more):
        async with self.door.client() as client:
            return await client.chat.completions.create(model="smollm2", messages=MESSAGES, **more)

    async def stream(self) -> str:
        """Return the text of a streamed answer."""
        async with self.door.client() as client:
            answer = await client.chat.completions.create(model="smollm2", messages=MESSAGES, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])


@asynccontextmanager
async def far_away(tmp_path: Path, **door_values: object) -> AsyncIterator[Far]:
    async with a_site(tmp_path) as site:
        controller = Controller(site.papers)
        async with (
            serving_routes(tmp_path / "control.sock", controller),
            running_door(door_config(tmp_path, **door_values)) as door,
            site.agent() as plane,
        ):
            plane.leased_until(60)
            yield Far(door, controller, site, plane)


@pytest.fixture
async def far(tmp_path: Path) -> AsyncIterator[Far]:
    async with far_away(tmp_path) as found:
        yield found


@pytest.fixture
async def served(far: Far, engine: ScriptedEngine) -> Far:
    """One replica on the other machine, routed to and reached once."""
    await far.publish(entry(engine.port))
    await far.route(far.target(engine))
    assert (await far.ask()).choices[0].message.content == "hello"
    return far


async def test_a_replica_on_another_machine_answers_whole_and_in_pieces(served: Far, engine: ScriptedEngine) -> None:
    assert await served.stream() == "Hello"
    heard = engine.exchanges[-1]
    assert heard.path == CHAT
    assert heard.headers["authorization"] == "Bearer secret-rep_a"
    assert not [name for name in heard.headers if name.startswith("x-slice-")]


async def test_requests_to_all_engines_of_a_machine_share_its_connections(far: Far) -> None:
    async with ScriptedEngine(answering) as one, ScriptedEngine(answering) as two:
        await far.publish(entry(one.port), entry(two.port, "rep_b", 3))
        await far.route(far.target(one), far.target(two, "rep_b", 3))
        before = await connections(far.site)
        for _ in range(12):
            assert (await far.ask()).choices
        assert len(one.exchanges) + len(two.exchanges) == 12
        assert min(len(one.exchanges), len(two.exchanges)) > 0
        assert await connections(far.site) - before == 1


async def connections(site: Site) -> int:
    lines = (await Admin(site.sockets / "haproxy-a.sock").ask("show stat")).splitlines()
    names = lines[0].lstrip("# ").split(",")
    row = next(line.split(",") for line in lines if line.startswith("plane,FRONTEND"))
    return int(row[names.index("conn_tot")])


async def test_a_door_asks_for_a_certificate_when_it_needs_one_and_keeps_it_private(
    tmp_path: Path, far: Far, engine: ScriptedEngine
) -> None:
    await far.route(target(engine))
    await far.ask()
    assert far.controller.asked == []
    await far.publish(entry(engine.port))
    await far.route(far.target(engine))
    await far.ask()
    assert far.controller.asked == [far.door.door.door_id]
    file = tmp_path / "tls" / "door.pem"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    holder = certificates.holder_of(file.read_text())
    assert holder.identity == Identity(cluster_id="clu_1", role=Role.DOOR, name=far.door.door.door_id)
    assert "PRIVATE" not in far.door.logged.getvalue()


async def test_a_door_that_starts_without_a_controller_uses_the_certificate_of_before(
    tmp_path: Path, far: Far, engine: ScriptedEngine
) -> None:
    await far.publish(entry(engine.port))
    await far.route(far.target(engine))
    await far.ask()

    async def is_kept() -> bool:
        return Path(far.door.config.table_file).exists()

    await until_async(is_kept, 5, "the table's copy")
    config = door_config(tmp_path, control_target=f"unix:{tmp_path}/nobody.sock")
    async with running_door(config) as second, second.client() as client:
        answer = await client.chat.completions.create(model="smollm2", messages=MESSAGES)
        assert answer.choices[0].message.content == "hello"


async def test_a_certificate_is_renewed_from_half_of_its_life_on(far: Far, engine: ScriptedEngine) -> None:
    # Backdated by five minutes: half of the life of one that has seconds left is long over.
    far.controller.lifetime = timedelta(seconds=30)
    await far.publish(entry(engine.port))
    await far.route(far.target(engine))

    async def was_renewed() -> bool:
        assert (await far.ask()).choices
        return len(far.controller.asked) > 1

    await until_async(was_renewed, 10, "a second certificate")


async def test_without_a_certificate_the_request_is_answered_in_words_and_soon(
    far: Far, engine: ScriptedEngine
) -> None:
    far.controller.gives = False
    await far.publish(entry(engine.port))
    await far.route(far.target(engine))
    began = time.monotonic()
    with pytest.raises(openai.InternalServerError) as caught:
        await far.ask()
    assert caught.value.body["code"] == "engine_unreachable"
    assert time.monotonic() - began < 4
    assert "door_certificate_failed" in far.door.logged.getvalue()
    far.controller.gives = True

    async def answers() -> bool:
        try:
            return bool((await far.ask()).choices)
        except openai.InternalServerError:
            return False

    await until_async(answers, 10, "an answer")


async def test_another_nodes_plane_at_that_address_gets_no_request(far: Far, engine: ScriptedEngine) -> None:
    await far.publish(entry(engine.port))
    await far.route(far.target(engine, node_id="nod_other"))
    with pytest.raises(openai.InternalServerError) as caught:
        await far.ask()
    assert caught.value.body["code"] == "engine_unreachable"
    assert engine.exchanges == []


async def test_a_stale_replica_is_passed_over_for_another(far: Far) -> None:
    async with ScriptedEngine(answering) as one, ScriptedEngine(answering) as two:
        await far.publish(entry(one.port, incarnation=2), entry(two.port, "rep_b"))
        await far.route(far.target(one), far.target(two, "rep_b"))
        began = time.monotonic()
        for _ in range(6):
            assert (await far.ask()).choices
        assert (one.exchanges, len(two.exchanges)) == ([], 6)
        assert time.monotonic() - began < 3


async def test_a_request_for_a_stale_replica_waits_for_the_next_table(served: Far, engine: ScriptedEngine) -> None:
    await served.publish(entry(engine.port, incarnation=2))
    asked = asyncio.ensure_future(served.ask())
    async with asyncio.timeout(5):
        while not await denials(served.site):
            await asyncio.sleep(0.01)
    assert not asked.done()
    await served.route(served.target(engine, incarnation=2))
    assert (await asked).choices[0].message.content == "hello"


async def denials(site: Site) -> int:
    lines = (await Admin(site.sockets / "haproxy-a.sock").ask("show stat")).splitlines()
    names = lines[0].lstrip("# ").split(",")
    row = next(line.split(",") for line in lines if line.startswith("engines,BACKEND"))
    return int(row[names.index("hrsp_4xx")])


async def test_a_fenced_machine_is_passed_over_and_its_answer_never_shown(served: Far, engine: ScriptedEngine) -> None:
    served.plane.leased_until(-1)
    caller = await served.site.call()

    async def is_fenced() -> bool:
        return (await caller.ask()).fault == "fenced"

    await until_async(is_fenced, 5, "the fence")
    async with ScriptedEngine(answering) as near:
        await served.route(served.target(engine), target(near, "rep_near"))
        for _ in range(4):
            assert (await served.ask()).choices
        assert len(near.exchanges) == 4
    await served.route(served.target(engine))
    asked = asyncio.ensure_future(served.ask())
    done, _ = await asyncio.wait({asked}, timeout=1.0)
    assert not done
    served.plane.leased_until(60)  # the node's next heartbeat was acknowledged
    assert (await asked).choices[0].message.content == "hello"


async def test_a_machine_that_stays_fenced_is_told_in_our_words(served: Far) -> None:
    served.plane.leased_until(-1)
    await served.publish()
    began = time.monotonic()
    with pytest.raises(openai.InternalServerError) as caught:
        await served.ask()
    assert (caught.value.status_code, caught.value.body["code"]) == (503, "engine_unreachable")
    assert caught.value.response.headers["retry-after"] == "1"
    assert 2.5 < time.monotonic() - began < 5


async def test_an_engines_own_409_and_404_are_its_answers(served: Far, engine: ScriptedEngine) -> None:
    async def refusing(exchange: Exchange) -> None:
        await exchange.reply(b'{"error":{"message":"no"}}', status=409, extra="x-slice-fault: stale\r\n")

    engine.script = refusing
    before = len(engine.exchanges)
    with pytest.raises(openai.APIStatusError):
        await served.ask()
    assert len(engine.exchanges) - before >= 1


async def test_an_engine_that_is_gone_or_dies_is_told_as_a_near_one(served: Far, engine: ScriptedEngine) -> None:
    async def dying(exchange: Exchange) -> None:
        exchange.die()

    async def cut(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(chat_chunk("Hel"))
        await exchange.line.drained()
        exchange.die()

    engine.script = dying
    with pytest.raises(openai.InternalServerError) as caught:
        await served.ask()
    assert (caught.value.status_code, caught.value.body["code"]) == (502, "engine_failed")
    engine.script = cut
    with pytest.raises(openai.APIError, match="ended before its answer did"):
        await served.stream()
    engine.server.close()
    with pytest.raises(openai.InternalServerError) as caught:
        await served.ask()
    assert (caught.value.status_code, caught.value.body["code"]) == (503, "engine_unreachable")


@pytest.mark.parametrize("is_stream", [True, False], ids=["stream", "whole"])
async def test_a_client_that_leaves_ends_the_far_engines_work_within_300_ms(
    served: Far, engine: ScriptedEngine, is_stream: bool
) -> None:
    async def working(exchange: Exchange) -> None:
        if exchange.json.get("stream"):
            await exchange.begin_stream()
            await exchange.chunk(chat_chunk("Hel"))
        await exchange.closed.wait()

    engine.script = working
    engine.arrived.clear()
    reader, writer = await asyncio.open_connection("127.0.0.1", served.door.port)
    body = json.dumps({"model": "smollm2", "messages": MESSAGES, "stream": is_stream}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    async with asyncio.timeout(5):
        await engine.arrived.wait()
        if is_stream:
            await reader.readuntil(b"Hel")
        began = time.monotonic()
        writer.transport.abort()
        await engine.exchanges[-1].closed.wait()
    assert time.monotonic() - began < 0.3


async def test_an_engine_of_somebody_else_on_that_machines_loopback_is_reached_there(
    far: Far, engine: ScriptedEngine
) -> None:
    await far.publish(entry(engine.port, paths=("/llm" + CHAT,)))
    await far.route(far.target(engine, base_url=f"http://127.0.0.1:{engine.port}/llm/v1"))
    assert (await far.ask()).choices
    assert engine.exchanges[-1].path == "/llm" + CHAT


async def test_a_door_without_the_nodes_trust_reaches_nothing(tmp_path: Path, far: Far, engine: ScriptedEngine) -> None:
    (tmp_path / "strangers").mkdir()
    strangers = Papers(tmp_path / "strangers")
    far.controller.papers = strangers
    strangers.roots = far.site.papers.roots  # it trusts the plane, the plane does not trust it
    await far.publish(entry(engine.port))
    await far.route(far.target(engine))
    with pytest.raises(openai.InternalServerError):
        await far.ask()
    assert engine.exchanges == []


async def test_a_real_llamacpp_streams_through_the_plane_and_stops_when_its_client_leaves(
    tmp_path: Path, far: Far
) -> None:
    (tmp_path / "llama").mkdir()
    model = write_random_llama(tmp_path / "random.gguf", seed=7, context=4096)
    found = RunningEngine("llamacpp", directory=tmp_path / "llama", model=model, settings={"context": 4096})
    with found as engine:
        await asyncio.to_thread(engine.wait_until_ready)
        await far.publish(entry(engine.port))
        place = far.target(ScriptedEngine(answering, port=engine.port))
        place.engine_key = ENGINE_KEY
        await far.controller.applied(far.controller.push(route(place, served=SERVED_NAME)))
        asked = {"model": "smollm2", "messages": MESSAGES, "extra_body": {"ignore_eos": True}}
        async with far.door.client() as client:
            whole = await client.chat.completions.create(**asked, max_tokens=4)
            assert (whole.model, whole.usage.completion_tokens) == ("smollm2", 4)
            pieces = [piece async for piece in await client.chat.completions.create(**asked, max_tokens=8, stream=True)]
            assert len(pieces) >= 8

        def is_idle() -> bool:
            return "llamacpp:requests_processing 0" in engine.request("GET", "/metrics").text

        async with far.door.client() as client:
            async for _ in await client.chat.completions.create(**asked, max_tokens=4000, stream=True):
                break

        async def has_stopped() -> bool:
            return await asyncio.to_thread(is_idle)

        await until_async(has_stopped, 20, "llama.cpp to stop")
        metrics = (await asyncio.to_thread(engine.request, "GET", "/metrics")).text
        (made,) = (line for line in metrics.splitlines() if line.startswith("llamacpp:tokens_predicted_total "))
        assert float(made.split()[1]) < 3000  # of the 4000 that were asked for


async def test_a_plane_that_shows_a_revoked_certificate_gets_no_request_and_no_resting_connection_stays(
    served: Far, engine: ScriptedEngine
) -> None:
    """Somebody with a stolen certificate at the plane's address: the name is right, the signature is."""
    shown = certificates.holder_of((served.site.root / "tls" / "certificate.pem").read_text()).serial
    count = len(engine.exchanges)
    served.controller.revoked = [shown]
    await served.route(served.target(engine))
    with pytest.raises(openai.APIStatusError) as refused:
        await served.ask()
    assert refused.value.status_code >= 500
    assert len(engine.exchanges) == count
    # The same node with its next certificate is trusted.
    served.site.papers.equip(served.site.root / "tls")
    served.plane.renewed()

    async def is_served() -> bool:
        try:
            return bool((await served.ask()).choices)
        except openai.APIStatusError:
            return False

    await until_async(is_served, 20, "an answer under the next certificate")
