"""`slice node cordon|uncordon|drain|forget` and `slice move`: what they send, wait for and print."""

import json
from typing import Any

import pytest

from tests.cli import things
from tests.cli.conftest import Slice
from tests.cli.played import PlayedCluster

FIRST, SECOND = things.replica(1)["id"], things.replica(2)["id"]


def draining(*waiting: str, is_stuck: bool = False) -> dict[str, Any]:
    """Return how a node looks while replicas wait for `waiting`."""
    left = [
        {"id": FIRST, "deployment": "smollm2", "waiting": text, "is_stuck": is_stuck and number == len(waiting) - 1}
        for number, text in enumerate(waiting)
    ]
    return {"replicas": len(left), "drain": {"since": things.CREATED, "is_forced": False, "replicas": left}}


def test_cordon_and_uncordon_say_what_is_so_now(cluster: PlayedCluster, slice_: Slice) -> None:
    ended = slice_("node", "cordon", "box")
    assert (ended.code, ended.err) == (0, "box gets no more replicas; `slice node uncordon box` ends it\n")
    assert "cordoned" in slice_("node", "list").out
    assert json.loads(slice_("node", "uncordon", "box", "-o", "json").out)["is_cordoned"] is False
    assert [path for path, _ in cluster.sent("POST")] == ["nodes/box/cordon", "nodes/box/uncordon"]


def test_an_unknown_node_is_not_found(slice_: Slice) -> None:
    for verb in ("cordon", "uncordon", "drain", "forget"):
        ended = slice_("node", verb, "nowhere")
        assert (ended.code, ended.err.splitlines()[0]) == (3, "error[node.not_found]: no node 'nowhere'")


def test_drain_returns_at_once_without_wait(cluster: PlayedCluster, slice_: Slice) -> None:
    ended = slice_("node", "drain", "box")
    assert (ended.code, ended.err) == (0, "box is drained; `slice node show box` shows how far it is\n")
    assert cluster.sent("POST") == [("nodes/box/drain", {"force": False})]


def test_drain_waits_until_the_node_is_empty_and_says_what_for(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.node_steps = [
        draining("its successor on node b is starting", "there is no other node", is_stuck=True),
        draining("its engine is being stopped"),
        draining(),
    ]
    ended = slice_("node", "drain", "box", "--wait", "--force")
    assert ended.code == 0
    assert ended.err.splitlines() == [
        "node box still holds 2 replicas; smollm2: there is no other node",
        "node box still holds 1 replica; smollm2: its engine is being stopped",
        "box is empty and cordoned; `slice node uncordon box` takes it back",
    ]
    assert cluster.sent("POST") == [("nodes/box/drain", {"force": True})]


def test_a_drain_that_takes_too_long_says_why_and_how_to_go_on(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.node_steps = [draining("there is no other node", is_stuck=True)]
    ended = slice_("node", "drain", "box", "--wait", "--timeout", "0s")
    assert ended.code == 6
    assert "error[node.in_use]: not done after 0" in ended.err
    assert "smollm2: there is no other node" in ended.err
    assert "`slice node uncordon box` ends it" in ended.err


def test_a_drain_that_somebody_ends_is_told(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.node_steps = [draining("it waits"), {"drain": None, "replicas": 1}]
    ended = slice_("node", "drain", "box", "--wait")
    assert ended.code == 5
    assert "the drain of node box was ended by somebody" in ended.err


def test_a_draining_node_shows_what_is_left_on_it(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.nodes[0].update(draining("there is no other node"), certificate_expires_at=things.CREATED)
    shown = slice_("node", "show", "box").out
    assert "placement    draining since 2026-11-01 10:00:00" in shown
    assert "certificate  ends 2026-11-01 10:00:00" in shown
    assert FIRST in shown
    assert "there is no other node" in shown
    assert slice_("node", "list").out.splitlines()[1].split()[:4] == ["box", "ready", "draining", "1"]


def test_forget_deletes_and_force_is_asked_for(cluster: PlayedCluster, slice_: Slice) -> None:
    ended = slice_("node", "forget", "box", "--force")
    assert (ended.code, ended.out) == (0, "")
    assert ended.err.startswith("box is forgotten")
    assert cluster.nodes == []


def test_move_sends_the_replica_that_is_meant(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.replicas = [things.replica(1, desired="drain"), things.replica(2, desired="run")]
    ended = slice_("move", "smollm2", "--to", "b")
    assert (ended.code, ended.err) == (0, f"{SECOND} moves to b; `slice ps` shows how far it is\n")
    assert cluster.sent("POST") == [(f"replicas/{SECOND}/move", {"node": "b"})]
    listed = slice_("ps").out
    assert "leaving" in listed
    assert "to b: it begins" in listed


def test_move_waits_until_it_has_left_and_names_the_new_one(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.replicas = [things.replica(1), things.replica(2, deployment="other", node="b")]
    told = {"to": "b", "successor": SECOND, "waiting": "its successor on node b is starting", "refusal": None}
    cluster.replica_steps = [{"leaving": told}, {"leaving": told}, None]
    ended = slice_("move", FIRST, "--to", "b", "--wait")
    assert ended.code == 0
    assert ended.err.splitlines() == [
        "smollm2: its successor on node b is starting",
        f"{FIRST} has left; {SECOND} on b serves",
    ]


def test_a_move_that_somebody_cancels_is_told(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.replicas = [things.replica(1)]
    cluster.replica_steps = [{"leaving": None, "desired": "run"}]
    ended = slice_("move", FIRST, "--to", "b", "--wait")
    assert ended.code == 5
    assert "was cancelled by somebody" in ended.err


def test_move_cancel_lets_it_stay(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.replicas = [things.replica(1)]
    ended = slice_("move", FIRST, "--cancel")
    assert (ended.code, ended.err) == (0, f"{FIRST} stays\n")
    assert [path for path, _ in cluster.sent("DELETE")] == [f"replicas/{FIRST}/move"]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["move", FIRST], id="neither"),
        pytest.param(["move", FIRST, "--to", "b", "--cancel"], id="both"),
        pytest.param(["move", "smollm2", "--to", "b"], id="several replicas"),
    ],
)
def test_a_move_that_is_not_clear_changes_nothing(cluster: PlayedCluster, slice_: Slice, words: list[str]) -> None:
    cluster.replicas = [things.replica(1, desired="run"), things.replica(2, desired="run")]
    ended = slice_(*words)
    assert ended.code == 2
    assert "error[request.usage]" in ended.err
    assert cluster.sent("POST") == []
