"""`slice export`, `slice diff` and `slice apply`: what is sent, shown and waited for."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli import things
from tests.cli.conftest import Slice
from tests.cli.played import PlayedCluster

CHANGES: list[dict[str, Any]] = [
    {
        "action": "create",
        "kind": "version",
        "name": "m@v2",
        "state": "waiting",
        "way": "pull",
        "fields": [{"field": "source", "from": None, "to": "hf:org/m"}],
    },
    {
        "action": "update",
        "kind": "deployment",
        "name": "smollm2",
        "state": "planned",
        "way": None,
        "fields": [
            {"field": "replicas", "from": 1, "to": 2},
            {"field": "settings.context", "from": 4096, "to": None},
            {"field": "requires", "from": [], "to": ["seed", "tools"]},
            {"field": "is_enabled", "from": True, "to": False},
        ],
    },
    {"action": "create", "kind": "deployment", "name": "n", "state": "waiting", "way": None, "fields": []},
    {"action": "delete", "kind": "alias", "name": "old\x1b[2J", "state": "planned", "way": None, "fields": []},
]
SHOWN = """\
+ version m@v2  (to be pulled)
    source: hf:org/m
~ deployment smollm2
    replicas: 1 -> 2
    settings.context: 4096 -> default
    requires: none -> seed, tools
    is_enabled: true -> false
+ deployment n  (after its pull)
"""


def answer(*changes: Any, pulls: Any = ()) -> dict[str, Any]:
    return {"dry_run": False, "is_complete": not pulls, "changes": list(changes), "pulls": list(pulls)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "cluster.yaml"
    found.write_text("deployments: []\n")
    return found


def test_export_prints_the_file(slice_: Slice) -> None:
    assert slice_("export").out == "# a cluster\nmodels: []\n"


def test_diff_sends_the_file_as_a_rehearsal_and_prints_each_field(
    cluster: PlayedCluster, slice_: Slice, file: Path
) -> None:
    cluster.applied = [answer(*CHANGES)] * 3
    ended = slice_("diff", "-f", str(file), "--prune")
    assert (ended.code, ended.out.startswith(SHOWN)) == (0, True)
    assert cluster.sent("POST") == [("apply", "deployments: []\n")]
    assert slice_("diff", "-f", str(file), "--exit-code").code == 1
    assert json.loads(slice_("diff", "-f", str(file), "-o", "json").out)["changes"] == CHANGES


def test_a_terminal_gets_no_escape_sequence_from_a_name(cluster: PlayedCluster, slice_: Slice, file: Path) -> None:
    cluster.applied = [answer(*CHANGES)]
    terminal = slice_.on_terminal("diff", "-f", str(file))
    assert terminal.end() == 0
    assert "- alias old[2J" in terminal.seen


def test_no_difference_is_said_on_standard_error(slice_: Slice, file: Path) -> None:
    ended = slice_("diff", "-f", str(file), "--exit-code")
    assert (ended.code, ended.out, ended.err) == (0, "", "nothing would change\n")
    assert slice_("apply", "-f", str(file)).err == "nothing to change: the cluster is so already\n"


def test_apply_waits_for_pulls_and_sends_the_file_again(cluster: PlayedCluster, slice_: Slice, file: Path) -> None:
    pull = {"id": "pul_1", "model": "m", "source": "hf:org/m", "state": "running", "bytes_done": 0, "bytes_total": 9}
    done = {**CHANGES[1], "state": "done"}
    cluster.applied = [answer(CHANGES[0], done, pulls=[pull]), answer({**CHANGES[2], "state": "done"})]
    cluster.pull_steps = [{"state": "running"}, {"state": "done"}]
    ended = slice_("apply", "-f", str(file), "-o", "name")
    assert (ended.code, ended.out) == (0, "smollm2\nn\n")
    assert [path for path, _ in cluster.sent("POST")] == ["apply", "apply"]


def test_a_pull_of_something_else_ends_and_does_not_go_round_for_ever(
    cluster: PlayedCluster, slice_: Slice, file: Path
) -> None:
    pull = {"id": "pul_1", "model": "m", "source": "hf:org/m", "state": "done"}
    cluster.applied = [answer(CHANGES[0], pulls=[pull])] * 5
    ended = slice_("apply", "-f", str(file))
    assert ended.code == 1
    assert ended.err.startswith("error[source.digest_mismatch]: hf:org/m was pulled, but it is not the version of m")


def test_apply_waits_until_what_it_changed_serves(cluster: PlayedCluster, slice_: Slice, file: Path) -> None:
    cluster.deployments = {"smollm2": things.deployment(current_replicas=0)}
    cluster.deployment_steps = [things.deployment(current_replicas=0), things.deployment()]
    cluster.applied = [answer({**CHANGES[1], "state": "done"})]
    ended = slice_("apply", "-f", str(file), "--wait")
    assert (ended.code, ended.err.splitlines()[-1]) == (0, "smollm2 serves")


def test_a_dry_run_is_a_diff(cluster: PlayedCluster, slice_: Slice, file: Path) -> None:
    cluster.applied = [answer(*CHANGES)]
    assert slice_("apply", "-f", str(file), "--dry-run").out.startswith(SHOWN)


def test_a_refused_file_is_told_as_the_controller_tells_it(cluster: PlayedCluster, slice_: Slice, file: Path) -> None:
    refusal = things.error("request.unknown_field", "unknown key 'replica' at line 4; did you mean 'replicas'?")
    cluster.override = lambda method, path: (400, refusal) if path == "apply" else None
    ended = slice_("apply", "-f", str(file))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error[request.unknown_field]: unknown key 'replica' at line 4; did you mean 'replicas'?\n"


def test_a_file_may_come_from_standard_input_with_its_lines_as_they_are(cluster: PlayedCluster, slice_: Slice) -> None:
    assert slice_("apply", "-f", "-", stdin="\n\n# x\nmodels: []\n").code == 0
    assert cluster.sent("POST") == [("apply", "\n\n# x\nmodels: []\n")]


def test_a_file_that_cannot_be_read_is_named_with_the_reason(slice_: Slice, tmp_path: Path) -> None:
    ended = slice_("diff", "-f", str(tmp_path / "nope.yaml"))
    assert ended.code == 2
    assert ended.err.startswith(f"error[request.usage]: {tmp_path}/nope.yaml cannot be read: No such file")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    assert "no text in UTF-8" in slice_("diff", "-f", str(tmp_path / "bytes")).err
