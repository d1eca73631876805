"""Garbage collection of nodes' stores: what may go, who is asked, and that nothing needed ever goes."""

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.fleet.model import NodeNow
from controller.reconcile.picture import Picture
from controller.reconcile.relief import relief
from controller.registry.model import Pull, StoredPlace
from controller.registry.stores import CLOCK_MARGIN, collectable, is_free
from core.ids import NodeId
from core.states import NodeState
from protos.slice.node.v1 import node_pb2 as pb
from tests.controller.cluster import Cluster
from tests.controller.played import GIB, PlayedNode
from tests.controller.test_pure import NOW, node
from tests.controller.test_versions import file, pull_of, pulled
from tests.waiting import until_async

DAY_S = 86_400.0


def sha(letter: str) -> str:
    return letter * 64


def place(letter: str = "a", **fields: Any) -> StoredPlace:
    values: dict[str, Any] = {
        "node_id": "nod_1",
        "node_name": "box",
        "sha256": sha(letter),
        "size_bytes": 100,
        "used_at": NOW - timedelta(days=2),
        "is_leaving": False,
        "versions": [],
    }
    return StoredPlace(**{**values, **fields})


def pull(source: str = "hf:org/m", **fields: Any) -> Pull:
    row = pull_of(source)
    values = {**{name: getattr(row, name) for name in row.__dataclass_fields__}, "node_id": "nod_1", **fields}
    return Pull(**values)


@pytest.mark.parametrize(
    ("found", "pulls", "expected"),
    [
        pytest.param(place(), [], True, id="unused"),
        pytest.param(place(versions=["m@v1"]), [], False, id="a-version-has-it"),
        pytest.param(place(), [pull(f"https://h/m.gguf#file={sha('a')}", node_id=None)], False, id="a-pull-names-it"),
        pytest.param(place(used_at=NOW), [pull()], False, id="stored-since-a-pull-began-here"),
        pytest.param(place(used_at=NOW - CLOCK_MARGIN), [pull()], False, id="within-the-clocks-margin"),
        pytest.param(place(used_at=NOW), [pull(node_id="nod_2")], True, id="the-pull-is-elsewhere"),
        pytest.param(place(used_at=NOW), [pull(finished_at=NOW)], True, id="the-pull-has-ended"),
        pytest.param(place(), [pull()], True, id="stored-long-before-the-pull"),
    ],
)
def test_what_nothing_needs_is_free(found: StoredPlace, pulls: list[Pull], expected: bool) -> None:
    assert is_free(found, pulls) is expected


places = st.builds(
    lambda letter, number, hours, versions, leaving: place(
        letter,
        node_id=f"nod_{number}",
        node_name=f"box-{number}",
        used_at=NOW - timedelta(hours=hours),
        versions=versions,
        is_leaving=leaving,
    ),
    st.sampled_from("abcd"),
    st.integers(1, 2),
    st.integers(0, 48),
    st.sampled_from([[], ["m@v1"]]),
    st.booleans(),
)


@given(st.lists(places, max_size=8), st.integers(0, 48), st.sampled_from([None, "box-1"]))
def test_only_old_unused_files_of_the_named_node_go(stored: list[StoredPlace], hours: int, name: str | None) -> None:
    found = collectable(stored, [], now=NOW, older_than_s=hours * 3600, node=name)
    for one in found.items:
        assert not one.versions
        assert not one.is_leaving
        assert NOW - one.used_at >= timedelta(hours=hours)
        assert name in (None, one.node_name)
    assert not set(map(id, found.items)) & set(map(id, found.kept))


def picture(*stored: StoredPlace, pulls: tuple[Pull, ...] = ()) -> Picture:
    nothing: Mapping[Any, Any] = {}
    return Picture(
        nodes=(),
        node_files=nothing,
        deployments=(),
        replicas=(),
        refusals=(),
        files=nothing,
        sources=nothing,
        pulls=pulls,
        keys=(),
        aliases=(),
        stored=stored,
    )


def pressed(free_bytes: int, state: NodeState = NodeState.READY) -> dict[NodeId, NodeNow]:
    return {NodeId("nod_1"): node(disk_free_bytes=free_bytes, state=state)}


def test_a_full_disk_sheds_what_was_unused_for_a_day() -> None:
    old, young, used = place("a"), place("b", used_at=NOW - timedelta(hours=23)), place("c", versions=["m@v1"])
    elsewhere = place("d", node_id="nod_2", node_name="other")
    shown = picture(old, young, used, elsewhere)
    assert relief(shown, pressed(GIB), now=NOW, disk_pressure_bytes=2 * GIB) == (old,)


@pytest.mark.parametrize(
    ("live", "floor"),
    [
        pytest.param(pressed(3 * GIB), 2 * GIB, id="room-enough"),
        pytest.param(pressed(0), 2 * GIB, id="the-node-does-not-say"),
        pytest.param(pressed(GIB), 0, id="turned-off"),
        pytest.param(pressed(GIB, NodeState.SUSPECT), 2 * GIB, id="silent"),
    ],
)
def test_nothing_is_shed_without_need(live: dict[NodeId, NodeNow], floor: int) -> None:
    assert relief(picture(place()), live, now=NOW, disk_pressure_bytes=floor) == ()


def test_what_is_on_its_way_out_is_not_asked_for_twice() -> None:
    shown = picture(place(is_leaving=True))
    assert relief(shown, pressed(GIB), now=NOW, disk_pressure_bytes=2 * GIB) == ()


async def hold(node: PlayedNode, letter: str, *, size: int = 100, used: int = 1_000_000_000) -> None:
    node.files[sha(letter)] = pb.FileReport(state="done", sha256=sha(letter), size_bytes=size, used_unix_s=used)
    await node.observe()


async def until_stored(cluster: Cluster, count: int) -> list[dict[str, Any]]:
    async def is_there() -> bool:
        return len((await cluster.get("store"))["items"]) == count

    await until_async(is_there)
    return list((await cluster.get("store"))["items"])


async def own(cluster: Cluster, node: PlayedNode, name: str, letter: str) -> None:
    """Make a model whose one file `node` holds."""
    pull = await cluster.ok("POST", "pulls", {"name": name, "source": f"file:/models/{letter}.gguf"})
    await node.until_told(lambda told: any(one.want_id == pull["id"] for one in told.files))
    facts = json.dumps({"format": "gguf", "size_bytes": 100})
    node.files[pull["id"]] = pb.FileReport(
        want_id=pull["id"], state="done", sha256=sha(letter), size_bytes=100, facts_json=facts
    )
    await node.observe()

    async def has_ended() -> bool:
        return (await cluster.get(f"pulls/{pull['id']}"))["state"] == "done"

    await until_async(has_ended)
    del node.files[pull["id"]]
    await hold(node, letter)


async def test_the_store_shows_who_uses_what_and_since_when(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await own(cluster, node, "mine", "a")
        await cluster.ok("POST", "models/mine/copy", {"to": "yours"})
        await hold(node, "b", size=5)
        items = await until_stored(cluster, 2)
        assert [(one["sha256"], one["versions"], one["size_bytes"]) for one in items] == [
            (sha("a"), ["mine@v1", "yours@v1"], 100),
            (sha("b"), [], 5),
        ]
        assert items[0]["used_at"] == "2001-09-09T01:46:40.000Z"
        shown = (await cluster.get("store"))["nodes"][0]
        assert (shown["node"], shown["files"], shown["size_bytes"], shown["unused_bytes"]) == ("box", 2, 105, 5)


async def test_one_content_at_two_paths_of_a_version_is_shown_once(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        files = [file("m.safetensors", "a"), file("special_tokens.json", "b"), file("added_tokens.json", "b")]
        await pulled(cluster, node, {"name": "mine", "source": "hf:org/tiny"}, *files)
        items = await until_stored(cluster, 2)
        assert [one["versions"] for one in items] == [["mine@v1"], ["mine@v1"]]


async def test_a_dry_run_says_what_would_go_and_a_real_one_asks_the_node(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await own(cluster, node, "mine", "a")
        await hold(node, "b")
        await until_stored(cluster, 2)
        dry = await cluster.ok("POST", "store/gc", {"dry_run": True})
        assert (dry["dry_run"], dry["total_bytes"], [one["sha256"] for one in dry["items"]]) == (True, 100, [sha("b")])
        assert not any(one["is_leaving"] for one in (await cluster.get("store"))["items"])

        done = await cluster.ok("POST", "store/gc", {})
        assert (done["dry_run"], done["total_bytes"]) == (False, 100)
        await node.until_told(lambda told: list(told.removed_files) == [sha("b")])
        assert [one["is_leaving"] for one in (await cluster.get("store"))["items"]] == [False, True]
        assert (await cluster.ok("POST", "store/gc", {}))["items"] == [], "it is on its way out"

        del node.files[sha("b")]
        await node.observe()
        await until_stored(cluster, 1)
        await node.until_told(lambda told: not told.removed_files)
        events = [event["message"] for event in (await cluster.get("events?limit=1000"))["items"]]
        assert "1 unused file of 100 B leave the store of node box: an operator asked for it" in events


async def test_a_deleted_models_file_may_go_and_one_that_is_wanted_again_stays(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await own(cluster, node, "mine", "a")
        assert (await cluster.ok("POST", "store/gc", {}))["items"] == []
        await cluster.request("DELETE", "/api/v1/models/mine")
        assert len((await cluster.ok("POST", "store/gc", {}))["items"]) == 1
        await node.until_told(lambda told: list(told.removed_files) == [sha("a")])
        await own(cluster, node, "mine", "a")
        await node.until_told(lambda told: not told.removed_files)
        assert (await cluster.get("store"))["items"][0]["is_leaving"] is False


async def test_young_files_and_other_nodes_files_stay(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await hold(node, "a", used=0)
        await until_stored(cluster, 1)
        kept = await cluster.ok("POST", "store/gc", {"older_than_s": 3600})
        assert (kept["items"], [one["sha256"] for one in kept["kept"]]) == ([], [sha("a")])
        status, answer = await cluster.request("POST", "/api/v1/store/gc", {"node": "bax"})
        assert (status, answer["error"]["message"]) == (404, "there is no node 'bax'. Did you mean 'box'?")


async def test_a_node_under_disk_pressure_sheds_files_by_itself(url: str, runtime: Path) -> None:
    async with Cluster(url, runtime, disk_pressure_bytes=100 * GIB) as cluster:
        await cluster.ready()
        async with PlayedNode(cluster.socket) as node:
            node.disk_free_bytes = 3 * GIB
            await own(cluster, node, "mine", "a")
            await hold(node, "b")
            await node.until_told(lambda told: list(told.removed_files) == [sha("b")])
            events = [event["message"] for event in (await cluster.get("events?limit=1000"))["items"]]
            assert "1 unused file of 100 B leave the store of node box: its disk is almost full" in events
