"""`slice model where|copy|move` and `slice rm --node`."""

import json

from tests.cli import things
from tests.cli.conftest import Slice
from tests.cli.played import PlayedCluster

MIB = 1024**2
RUNNING = {"state": "running", "bytes_done": MIB // 2, "bytes_total": MIB}
DONE = {"state": "done", "bytes_done": MIB, "bytes_total": MIB}


def place(node: str = "box", **changes: object) -> dict[str, object]:
    return {
        "model": "smollm2",
        "version": 1,
        "node": node,
        "files": 1,
        "files_total": 1,
        "size_bytes": MIB,
        "total_bytes": MIB,
        "is_whole": True,
        "is_coming": False,
        "is_leaving": False,
        "used_by": [],
        **changes,
    }


def test_where_lists_each_node_with_what_it_has(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.models = {"smollm2": things.model()}
    cluster.places = [
        place(used_by=["chat"]),
        place("other", is_coming=True, files=0, size_bytes=0, is_whole=False),
        place("third", is_leaving=True),
        place("fourth", is_whole=False, files_total=3),
    ]
    lines = slice_("model", "where", "smollm2").out.splitlines()
    assert lines[0].split() == ["NODE", "VERSION", "FILES", "SIZE", "USED", "BY", "STATE"]
    assert [line.split()[0] for line in lines[1:]] == ["box", "other", "third", "fourth"]
    assert [line.split()[-1] for line in lines[1:]] == ["whole", "coming", "leaving", "partial"]
    assert lines[1].split()[1:3] == ["v1", "1/1"]


def test_a_model_that_lies_nowhere_says_what_brings_it(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.models = {"smollm2": things.model()}
    assert "`slice model copy` brings them" in slice_("model", "where", "smollm2@v1").err


def test_a_copy_shows_how_far_it_is(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.models = {"smollm2": things.model()}
    cluster.pull_steps = [RUNNING, DONE]
    ended = slice_("model", "copy", "smollm2@v1", "--to", "other")
    assert cluster.sent("POST") == [("models/smollm2/copies", {"to": "other", "version": 1, "from": None})]
    assert "copying smollm2 to other: 50 % of 1.0 MiB" in ended.err
    assert ended.err.endswith("copied smollm2@v1 to other, 1.0 MiB\n")


def test_a_copy_that_is_there_says_so(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.models = {"smollm2": things.model()}
    ended = slice_("model", "copy", "smollm2", "--to", "other", "-o", "json")
    assert json.loads(ended.out)["id"] == "cpy_1"
    assert slice_("model", "copy", "smollm2", "--to", "other").err == "smollm2 is on other already\n"


def test_a_copy_that_somebody_cancelled_says_what_resumes_it(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.models = {"smollm2": things.model()}
    cluster.pull_steps = [{"state": "cancelled"}]
    ended = slice_("model", "copy", "smollm2", "--to", "other")
    assert ended.code != 0
    assert "the copy of smollm2 was cancelled" in ended.err
    assert "`slice model copy smollm2@v1 --to other` begins it" in ended.err


def test_a_move_names_both_nodes(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.models = {"smollm2": things.model()}
    cluster.pull_steps = [DONE]
    ended = slice_("model", "move", "smollm2", "--from", "box", "--to", "other")
    assert cluster.sent("POST") == [("models/smollm2/copies", {"to": "other", "version": None, "from": "box"})]
    assert ended.err.endswith("copied smollm2 to other, 1.0 MiB; it leaves box in a moment\n")


def test_rm_with_a_node_deletes_nothing_but_the_files_there(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.models = {"smollm2": things.model()}
    ended = slice_("rm", "smollm2@v1", "--node", "other")
    assert cluster.sent("DELETE") == [("models/smollm2/nodes/other", None)]
    assert ended.err == "1.0 MiB of smollm2@v1 will be gone from other in a moment\n"
    cluster.kept = [{}, {}]
    assert "; 2 of its files stay: another model there has them too" in slice_("rm", "smollm2", "--node", "other").err
    assert slice_("rm", "smollm2", "--node", "other", "--force").code == 2
