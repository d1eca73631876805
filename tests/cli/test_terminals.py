"""What a terminal sees and a pipe does not, and NO_COLOR and TERM=dumb."""

import pytest

from tests.cli import things
from tests.cli.conftest import Slice
from tests.cli.played import PlayedCluster


@pytest.fixture
def troubled(cluster: PlayedCluster) -> PlayedCluster:
    cluster.replicas = [things.replica(), things.dead_replica()]
    return cluster


def test_a_terminal_gets_colour_for_trouble_alone(troubled: PlayedCluster, slice_: Slice) -> None:
    terminal = slice_.on_terminal("ps")
    assert terminal.end() == 0
    assert "\x1b[33mbackoff" in terminal.seen
    assert "\x1b[32m" not in terminal.seen
    assert "│" not in terminal.seen


@pytest.mark.parametrize("variable", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "dumb"])
def test_no_escape_sequence_is_sent_when_none_is_wanted(
    troubled: PlayedCluster, slice_: Slice, variable: dict[str, str]
) -> None:
    terminal = slice_.on_terminal("ps", **variable)
    assert terminal.end() == 0
    assert "backoff" in terminal.seen
    assert "\x1b" not in terminal.seen


def test_an_identifier_is_never_cut_on_a_narrow_terminal(troubled: PlayedCluster, slice_: Slice) -> None:
    terminal = slice_.on_terminal("ps", "-o", "wide")
    assert terminal.end() == 0
    assert "rep_00000000000000000002" in terminal.seen
    assert "127.0.0.1:20040" in terminal.seen


def test_a_sheet_of_facts_is_drawn_on_a_terminal(cluster: PlayedCluster, slice_: Slice) -> None:
    terminal = slice_.on_terminal("node", "show", "box")
    assert terminal.end() == 0
    assert "NVIDIA H100 (simulated)" in terminal.seen


def test_json_is_never_wrapped_nor_coloured_on_a_terminal(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.models = {"smollm2": things.model(note="x" * 300)}
    terminal = slice_.on_terminal("list", "-o", "json")
    assert terminal.end() == 0
    assert "\x1b" not in terminal.seen
    assert "x" * 300 in terminal.seen


def test_escape_sequences_of_others_are_taken_out_of_a_table(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.replicas = [things.replica(state="failed", message="bad \x1b[2Jfile")]
    cluster.models = {"smollm2": things.model(aliases=["a\x1b[2Jb"])}
    sheet = slice_.on_terminal("show", "smollm2")
    assert sheet.end() == 0
    assert "a[2Jb" in sheet.seen
    terminal = slice_.on_terminal("ps")
    assert terminal.end() == 0
    assert "bad [2Jfile" in terminal.seen
    assert "\x1b[2J" not in terminal.seen


def test_a_wait_on_a_terminal_is_one_line_that_goes_away(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.models = {"smollm2": things.model()}
    cluster.deployments = {"smollm2": things.starting("box installs llamacpp")}
    cluster.deployment_steps = [things.starting("box installs llamacpp"), things.deployment()]
    terminal = slice_.on_terminal("run", "smollm2", "hi")
    assert terminal.end() == 0
    assert "box installs llamacpp" in terminal.seen
    assert terminal.seen.rstrip().endswith("Hello")


def test_a_dumb_terminal_gets_whole_lines_of_progress(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.pull_steps = [{"state": "running", "bytes_done": 50, "bytes_total": 100}, {"state": "done"}]
    terminal = slice_.on_terminal("pull", "smollm2", TERM="dumb")
    assert terminal.end() == 0
    assert "pulling smollm2: 50 % of 100 B\r\n" in terminal.seen
    assert "\x1b" not in terminal.seen
