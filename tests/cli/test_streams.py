"""`slice logs` and `slice events -f`: streams that others write."""

import json
import signal

import pytest

from tests.cli import things
from tests.cli.conftest import Slice
from tests.cli.played import PlayedCluster


@pytest.fixture
def running(cluster: PlayedCluster) -> PlayedCluster:
    first, second = things.replica(1), things.replica(2, created_at="2026-11-02T10:00:00+00:00")
    cluster.replicas = [first, second]
    cluster.logs = {first["id"]: ["one", "two"], second["id"]: ["three", "vier ü"]}
    return cluster


def test_the_log_of_a_replica_goes_to_standard_output(running: PlayedCluster, slice_: Slice) -> None:
    ended = slice_("logs", "rep_00000000000000000001")
    assert (ended.code, ended.out, ended.err) == (0, "one\ntwo\n", "")


def test_the_tail_is_the_servers_to_cut(running: PlayedCluster, slice_: Slice) -> None:
    assert slice_("logs", "rep_00000000000000000001", "-n", "1").out == "two\n"


def test_the_logs_of_a_deployment_come_newest_first_with_their_place(running: PlayedCluster, slice_: Slice) -> None:
    ended = slice_("logs", "smollm2")
    assert ended.out == "three\nvier ü\none\ntwo\n"
    assert ended.err.splitlines()[0] == "== rep_00000000000000000002 on box =="


def test_a_short_id_that_fits_several_replicas_is_refused(running: PlayedCluster, slice_: Slice) -> None:
    ended = slice_("logs", "rep_000")
    assert ended.code == 2
    assert "'rep_000' begins 2 replica ids" in ended.err


def test_an_unknown_target_exits_3_with_a_suggestion(running: PlayedCluster, slice_: Slice) -> None:
    ended = slice_("logs", "smollm")
    assert ended.code == 3
    assert "no replica of 'smollm'. Did you mean 'smollm2'?" in ended.err


def test_a_followed_log_goes_on_until_ctrl_c(running: PlayedCluster, slice_: Slice) -> None:
    running.log_stays_open = True
    process = slice_.started("logs", "-f", "smollm2")
    assert process.stdout is not None
    assert process.stdout.readline() == "three\n"
    assert process.stdout.readline() == "vier ü\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "the newest of 2 replicas" in err
    assert "Traceback" not in err


def test_followed_events_are_one_object_a_line_and_survive_a_break(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.events = [things.event(seq) for seq in range(1, 5)]
    cluster.event_stream_breaks = 1
    process = slice_.started("events", "-f", "-n", "2", "-o", "json")
    assert process.stdout is not None
    seen = [json.loads(process.stdout.readline())["seq"] for _ in range(2)]
    with cluster.lock:
        cluster.events += [things.event(5), things.event(6)]
        cluster.ended.set()  # ends the stream that waits, as a restarting controller would
    seen += [json.loads(process.stdout.readline())["seq"] for _ in range(2)]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert seen == [3, 4, 5, 6]
    assert process.returncode == 130


def test_followed_events_are_lines_for_people(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.events = [things.event(1)]
    process = slice_.started("events", "-f")
    assert process.stdout is not None
    line = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert line == "2026-11-01 10:00:00  replica_ready  rep_1  smollm2 is ready\n"
