"""Who gets which file from where: peers first, one download from outside for each content, nobody waits for ever."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.deployments.model import Replica
from controller.fleet.model import NodeRow
from controller.reconcile.dispatch import orders
from controller.reconcile.picture import Picture
from controller.reconcile.sharing import PEERS, Sharing, Way, sharing
from controller.registry.model import Copy, File, Pull, StoredPlace
from core.ids import NodeId, Sha256
from tests.controller.test_pure import NOW, deployment, replica
from tests.controller.test_store_collection import picture as empty
from tests.controller.test_store_collection import pull, sha

NODES = tuple(f"nod_{number}" for number in range(5))


def row(node_id: str, **fields: Any) -> NodeRow:
    values: dict[str, Any] = {
        "node_id": node_id,
        "name": node_id.replace("nod", "box"),
        "machine_id": node_id,
        "boot_id": "b",
        "agent_version": "1",
        "hostname": node_id,
        "system": "linux",
        "machine": "x86_64",
        "cpu_count": 2,
        "memory_bytes": 1,
        "disk_total_bytes": 1,
        "labels": {},
        "engines": [],
        "state": "ready",
        "is_cordoned": False,
        "session_epoch": 1,
        "generation": 1,
        "desired_digest": "",
        "created_at": NOW,
        "plane_host": "10.0.0.1",
        "plane_port": 7000 + int(node_id[-1]),
        "is_approved": True,
        "joined_at": NOW,
    }
    return NodeRow(**{**values, **fields})


def place(node_id: str, letter: str = "a", **fields: Any) -> StoredPlace:
    values: dict[str, Any] = {"size_bytes": 1, "used_at": NOW, "is_leaving": False, "versions": ["m@v1"], **fields}
    return StoredPlace(node_id=node_id, node_name=node_id, sha256=sha(letter), **values)


def on(node_id: str, age_s: float = 0, **fields: Any) -> Replica:
    values = {"replica_id": f"rep_{node_id}", "node_id": node_id, "state": "fetching", **fields}
    return replica(**{"created_at": NOW - timedelta(seconds=age_s), **values})


def copy(node_id: str, **fields: Any) -> Copy:
    values: dict[str, Any] = {
        "copy_id": f"cpy_{node_id}",
        "version_id": "ver_1",
        "model": "m",
        "version": 1,
        "source": "https://h/m.gguf",
        "node_id": node_id,
        "node_name": node_id,
        "from_node": None,
        "state": "queued",
        "code": "",
        "message": "",
        "created_at": NOW,
        "finished_at": None,
    }
    return Copy(**{**values, **fields})


FILE = File(version_id="ver_1", position=0, path="m.gguf", sha256=sha("a"), size_bytes=1, source="")


def seen(
    *replicas: Replica,
    stored: tuple[StoredPlace, ...] = (),
    nodes: tuple[NodeRow, ...] = tuple(row(node_id) for node_id in NODES),
    pulls: tuple[Pull, ...] = (),
    copies: tuple[Copy, ...] = (),
) -> Picture:
    held: dict[NodeId, frozenset[Sha256]] = {}
    for one in stored:
        held[NodeId(one.node_id)] = held.get(NodeId(one.node_id), frozenset()) | {Sha256(one.sha256)}
    return replace(
        empty(*stored, pulls=pulls),
        nodes=nodes,
        node_files=held,
        deployments=(deployment(),),
        replicas=replicas,
        files={"ver_1": (FILE,)},
        sources={"ver_1": "https://h/m.gguf"},
        copies=copies,
    )


def ways(picture: Picture) -> dict[str, Way]:
    shared = sharing(picture)
    return {one.node_id: shared.way(one.node_id, sha("a")) for one in picture.replicas}


def outside(picture: Picture) -> list[str]:
    """Return who is to download from the source now."""
    return [
        node
        for node, way in ways(picture).items()
        if way == Way() and sha("a") not in picture.node_files.get(NodeId(node), ())
    ]


def test_who_lacks_a_file_is_sent_to_those_that_have_it() -> None:
    found = ways(seen(on("nod_0"), stored=(place("nod_1"), place("nod_2"))))["nod_0"]
    assert {peer.node_id: peer.port for peer in found.peers} == {"nod_1": 7001, "nod_2": 7002}


def test_at_most_three_peers_are_named_and_many_nodes_do_not_all_ask_the_same_one_first() -> None:
    nodes = tuple(row(f"nod_{number}", plane_port=7000 + number) for number in range(40))
    stored = tuple(place(f"nod_{number}") for number in range(6))
    found = ways(seen(*(on(f"nod_{number}") for number in range(6, 40)), stored=stored, nodes=nodes))
    assert {len(way.peers) for way in found.values()} == {PEERS}
    firsts = [way.peers[0].node_id for way in found.values()]
    assert max(firsts.count(node_id) for node_id in set(firsts)) <= 15
    assert len(set(firsts)) >= 4


@pytest.mark.parametrize(
    ("stored", "nodes"),
    [
        ((place("nod_1"),), (row("nod_0"), row("nod_1", state="suspect"))),
        ((place("nod_1"),), (row("nod_0"), row("nod_1", state="lost"))),
        ((place("nod_1"),), (row("nod_0"), row("nod_1", is_approved=False))),
        ((place("nod_1"),), (row("nod_0"), row("nod_1", plane_host="", plane_port=0))),
        ((place("nod_1"),), (row("nod_0", plane_host="", plane_port=0), row("nod_1"))),
        ((place("nod_1", is_leaving=True),), (row("nod_0"), row("nod_1"))),
        ((place("nod_0"),), (row("nod_0"), row("nod_1"))),
    ],
    ids=[
        "suspect",
        "lost",
        "waits for approval",
        "without a plane",
        "for one without a plane",
        "leaving",
        "has it itself",
    ],
)
def test_nobody_is_sent_to_who_cannot_give_it(stored: tuple[StoredPlace, ...], nodes: tuple[NodeRow, ...]) -> None:
    assert ways(seen(on("nod_0"), stored=stored, nodes=nodes))["nod_0"] == Way()


def test_of_those_that_want_the_same_one_downloads_it_and_the_others_wait() -> None:
    found = seen(on("nod_0", 1), on("nod_1", 3), on("nod_2", 2))
    assert outside(found) == ["nod_1"]
    assert ways(found)["nod_0"] == Way(is_awaited=True)
    (order,) = orders(NodeId("nod_0"), found, sharing(found)).replicas[0].files
    assert (order.source, order.peers) == ("", ())
    (order,) = orders(NodeId("nod_1"), found, sharing(found)).replicas[0].files
    assert (order.source, order.peers) == ("https://h/m.gguf", ())


def test_when_it_has_come_the_others_get_it_from_there_with_the_source_to_fall_back_on() -> None:
    found = seen(on("nod_0", 1), on("nod_1", 3), stored=(place("nod_1"),))
    (order,) = orders(NodeId("nod_0"), found, sharing(found)).replicas[0].files
    assert ([peer.node_id for peer in order.peers], order.source) == (["nod_1"], "https://h/m.gguf")


@pytest.mark.parametrize(
    "fields",
    [{"state": "backoff", "code": "source.unreachable"}, {"state": "failed", "code": "source.not_found"}],
    ids=["no internet", "not its disk"],
)
def test_who_could_not_bring_it_lets_another_one_try(fields: dict[str, str]) -> None:
    assert outside(seen(on("nod_0", 9, **fields), on("nod_1", 1))) == ["nod_1"]


def test_an_engine_that_crashes_says_nothing_of_the_files() -> None:
    assert outside(seen(on("nod_0", 9, state="backoff", code="engine.exited"), on("nod_1", 1))) == ["nod_0"]


def test_a_bringer_that_falls_silent_is_followed_by_another() -> None:
    nodes = (row("nod_0", state="suspect"), row("nod_1"), row("nod_2"))
    assert outside(seen(on("nod_0", 9), on("nod_1", 1), on("nod_2", 2), nodes=nodes)) == ["nod_2"]


def test_what_is_to_stop_brings_nothing() -> None:
    assert outside(seen(on("nod_0", 9, desired="stop"), on("nod_1", 1))) == ["nod_1"]


def test_a_copy_asks_for_what_is_not_there_and_waits_like_anybody_else() -> None:
    found = seen(on("nod_0", 5), copies=(copy("nod_1"),))
    (order,) = orders(NodeId("nod_1"), found, sharing(found)).files
    assert (order.want_id, order.source, order.path, order.sha256) == ("cpy_nod_1.0", "", "m.gguf", sha("a"))
    found = seen(stored=(place("nod_1"),), copies=(copy("nod_1"),))
    assert orders(NodeId("nod_1"), found, sharing(found)).files == ()


def test_a_pull_that_pins_its_file_gets_it_from_peers_too() -> None:
    source = f"https://h/m.gguf#file={sha('a')}"
    found = seen(stored=(place("nod_1"),), pulls=(pull(source, node_id="nod_0"), pull("hf:org/m", node_id="nod_0")))
    by_source = {order.source: order for order in orders(NodeId("nod_0"), found, sharing(found)).files}
    assert [peer.node_id for peer in by_source[source].peers] == ["nod_1"]
    assert by_source["hf:org/m"].peers == ()


@pytest.mark.parametrize(
    ("stored", "more", "goes"),
    [
        ((place("nod_0", is_leaving=True, is_asked=True), place("nod_1")), {}, True),
        ((place("nod_0", is_leaving=True, is_asked=True),), {}, False),
        ((place("nod_0", is_leaving=True, is_asked=True), place("nod_1", is_leaving=True)), {}, False),
        ((place("nod_0", is_leaving=True, is_asked=True), place("nod_1")), {"copies": (copy("nod_0"),)}, False),
        ((place("nod_0", is_leaving=True), place("nod_1")), {}, False),
        ((place("nod_0", is_leaving=True, is_asked=True, versions=[]),), {}, True),
    ],
    ids=[
        "another has it",
        "the last",
        "the other one goes too",
        "a copy needs it",
        "nobody asked",
        "no version has it",
    ],
)
def test_what_was_asked_off_a_node_goes_while_another_has_it(
    stored: tuple[StoredPlace, ...], more: dict[str, Any], goes: bool
) -> None:
    found = seen(stored=stored, **more)
    assert orders(NodeId("nod_0"), found, sharing(found)).removed_files == ((sha("a"),) if goes else ())


def test_what_a_replica_has_come_to_use_stays() -> None:
    stored = (place("nod_0", is_leaving=True, is_asked=True), place("nod_1"))
    found = seen(on("nod_0"), stored=stored)
    assert orders(NodeId("nod_0"), found, sharing(found)).removed_files == ()


states = st.sampled_from(["ready", "ready", "suspect", "lost", "offline"])


@given(
    st.lists(st.tuples(states, st.booleans(), st.booleans(), st.booleans(), st.integers(0, 9)), min_size=1, max_size=9)
)
def test_there_is_always_a_way_and_at_most_one_reachable_node_goes_outside(
    drawn: list[tuple[str, bool, bool, bool, int]],
) -> None:
    nodes, replicas, stored = [], [], []
    for number, (state, has_plane, wants, has, age_s) in enumerate(drawn):
        node_id = f"nod_{number}"
        plane = {} if has_plane else {"plane_host": "", "plane_port": 0}
        nodes.append(row(node_id, state=state, **plane))
        if wants:
            replicas.append(on(node_id, age_s))
        if has:
            stored.append(place(node_id))
    found = seen(*replicas, stored=tuple(stored), nodes=tuple(nodes))
    ready = {one.node_id for one in nodes if one.state == "ready" and one.plane_host}
    gone_outside = [node for node in outside(found) if node in ready]
    holders = ready & {one.node_id for one in stored}
    assert len(gone_outside) <= (0 if holders else 1)
    for node, way in ways(found).items():
        assert {peer.node_id for peer in way.peers} <= holders - {node}
        # Who waits, waits for somebody who is ready and has been given the source.
        assert not way.is_awaited or gone_outside


def test_nothing_shared_is_as_it_was_on_one_machine() -> None:
    assert Sharing().way("nod_0", sha("a")) == Way()
