"""`slice pull`: progress in a pipe and on a terminal, failure, and Ctrl-C."""

import json
import signal

from tests.cli.conftest import Slice
from tests.cli.played import PlayedCluster
from tests.waiting import until

TOTAL = 100 * 1024**2


def _at(percent: int, **changes: object) -> dict[str, object]:
    return {"state": "running", "bytes_done": TOTAL * percent // 100, "bytes_total": TOTAL, **changes}


DONE = _at(100, state="done")


def test_a_pull_in_a_pipe_tells_ten_percent_steps(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.pull_steps = [_at(3), _at(7), _at(55), DONE]
    ended = slice_("pull", "smollm2")
    assert (ended.code, ended.out) == (0, "")
    assert ended.err.splitlines() == [
        "smollm2 is queued",
        "pulling smollm2: 0 % of 100.0 MiB",
        "pulling smollm2: 50 % of 100.0 MiB",
        "pulling smollm2: 100 % of 100.0 MiB",
        "pulled smollm2, 100.0 MiB",
    ]


def test_a_pull_says_why_it_waits(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.pull_steps = [{"waiting": "no node is connected"}, DONE]
    assert "smollm2 waits: no node is connected" in slice_("pull", "smollm2").err


def test_a_pull_by_source_sends_the_source(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.pull_steps = [DONE]
    assert slice_("pull", "mine", "--source", "file:/m.gguf", "-o", "name").out == "pul_1\n"
    assert cluster.sent("POST") == [("pulls", {"name": "mine", "source": "file:/m.gguf"})]


def test_a_finished_pull_as_json_is_the_pull(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.pull_steps = [DONE]
    assert json.loads(slice_("pull", "smollm2", "-o", "json").out) == cluster.pull


def test_a_model_that_is_here_needs_no_pull(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.models = {"smollm2": {}}
    assert slice_("pull", "smollm2").err == "smollm2 is here already\n"


def test_an_unknown_model_exits_3_with_a_suggestion(slice_: Slice) -> None:
    ended = slice_("pull", "smol2")
    assert ended.code == 3
    assert ended.err == (
        "error[registry.model_not_found]: no model 'smol2'. Did you mean 'smollm2'?\nhint: give --source\n"
    )


def test_a_failed_pull_shows_the_servers_reason(cluster: PlayedCluster, slice_: Slice) -> None:
    fault = {"code": "source.digest_mismatch", "message": "the file is not the one named", "hint": "pull again"}
    cluster.pull_steps = [_at(50), {"state": "failed", "error": fault}]
    ended = slice_("pull", "smollm2")
    assert ended.code == 1
    assert "error[source.digest_mismatch]: the file is not the one named\nhint: pull again\n" in ended.err


def test_a_pull_survives_a_controller_that_restarts(cluster: PlayedCluster, slice_: Slice) -> None:
    starting = {"error": {"code": "controller.not_ready", "message": "the controller is starting", "hint": ""}}
    outage = [(503, starting), (503, starting)]
    cluster.override = lambda method, path: outage.pop() if path == "pulls/pul_1" and outage else None
    cluster.pull_steps = [DONE]
    ended = slice_("pull", "smollm2")
    assert ended.code == 0
    assert "the controller is starting; trying again" in ended.err


def test_ctrl_c_cancels_the_pull_and_says_how_to_begin_anew(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.pull_steps = [_at(40)]
    process = slice_.started("pull", "smollm2")
    until(lambda: ("GET", "pulls/pul_1", None) in cluster.requests)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert "`slice pull smollm2` begins it anew" in err
    assert cluster.sent("DELETE") == [("pulls/pul_1", None)]


def test_a_pull_on_a_terminal_draws_a_bar(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.pull_steps = [_at(40), _at(70), DONE]
    terminal = slice_.on_terminal("pull", "smollm2")
    assert terminal.end() == 0
    assert "━" in terminal.seen
    assert "MB" in terminal.seen or "MiB" in terminal.seen
    assert "pulled smollm2" in terminal.seen


def test_ctrl_c_on_a_terminal_cancels_too(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.pull_steps = [_at(40)]
    terminal = slice_.on_terminal("pull", "smollm2")
    terminal.until("pulling smollm2")
    terminal.interrupt()
    assert terminal.end() == 130
    assert "begins it anew" in terminal.seen
    assert "Traceback" not in terminal.seen
