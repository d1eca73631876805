"""Lists and single things in every output format."""

import json

import pytest
import yaml

from tests.cli import things
from tests.cli.conftest import Slice
from tests.cli.played import PlayedCluster

LISTS = [
    pytest.param(["list"], "smollm2", ["NAME", "SIZE", "93.8 MiB", "Q4_1"], id="list"),
    pytest.param(["catalog"], "smollm2", ["DESCRIPTION", "A small model."], id="catalog"),
    pytest.param(
        ["ps"], "rep_00000000000000000001", ["UPTIME", "~114.4 MiB", "cpu", "llamacpp", "ready", "box"], id="ps"
    ),
    pytest.param(["deployments"], "smollm2", ["READY", "1/1"], id="deployments"),
    pytest.param(["node", "list"], "box", ["GPUS", "NVIDIA H100", "0.8s ago", "8.0 GiB"], id="node-list"),
    pytest.param(["engine", "list"], "llamacpp", ["USED BY", "64.0 MiB", "smollm2", "available"], id="engine-list"),
    pytest.param(["key", "list"], "default", ["KID", "0123456789ab", "active"], id="key-list"),
    pytest.param(["alias", "list"], "chat", ["MODEL", "smollm2"], id="alias-list"),
    pytest.param(["events"], "1", ["KIND", "replica_ready", "2026-11-01 10:00:00"], id="events"),
]


@pytest.fixture
def filled(cluster: PlayedCluster) -> PlayedCluster:
    cluster.models = {"smollm2": things.model()}
    cluster.deployments = {"smollm2": things.deployment()}
    cluster.replicas = [things.replica()]
    cluster.aliases = {"chat": "smollm2"}
    cluster.events = [things.event(1)]
    return cluster


@pytest.mark.parametrize("command, name, shown", LISTS)
def test_a_list_is_aligned_columns_in_a_pipe(
    filled: PlayedCluster, slice_: Slice, command: list[str], name: str, shown: list[str]
) -> None:
    ended = slice_(*command)
    assert (ended.code, ended.err) == (0, "")
    assert "\x1b" not in ended.out
    assert "|" not in ended.out
    for text in shown:
        assert text in ended.out


@pytest.mark.parametrize("command, name, shown", LISTS[::3])
def test_a_list_as_json_is_the_answer_of_the_api_untouched(
    filled: PlayedCluster, slice_: Slice, command: list[str], name: str, shown: list[str]
) -> None:
    ended = slice_(*command, "-o", "json")
    assert (ended.code, ended.err) == (0, "")
    path = {"list": "models", "ps": "replicas", "node": "nodes", "key": "keys", "engine": "engines", "alias": "aliases"}
    answer = filled.answer("GET", path.get(command[0], command[0]), {"after": "0", "limit": "100"}, None)[1]
    assert json.loads(ended.out) == answer


@pytest.mark.parametrize("command, name, shown", LISTS[::4])
def test_a_list_by_name_is_one_name_a_line(
    filled: PlayedCluster, slice_: Slice, command: list[str], name: str, shown: list[str]
) -> None:
    assert slice_(*command, "-o", "name").out == f"{name}\n"


def test_wide_adds_columns(filled: PlayedCluster, slice_: Slice) -> None:
    assert "4242" not in slice_("ps").out
    wide = slice_("ps", "-o", "wide").out
    for text in ("PID", "4242", "ADDRESS", "127.0.0.1:20040", "RESTARTS"):
        assert text in wide


def test_yaml_is_the_same_object_as_json(filled: PlayedCluster, slice_: Slice) -> None:
    assert yaml.safe_load(slice_("ps", "-o", "yaml").out) == json.loads(slice_("ps", "-o", "json").out)


def test_an_empty_list_says_what_to_do_on_standard_error(slice_: Slice) -> None:
    ended = slice_("ps")
    assert (ended.code, ended.out) == (0, "")
    assert "slice run MODEL" in ended.err


def test_a_dead_engine_shows_its_last_log_line(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.replicas = [things.replica(), things.dead_replica()]
    out = slice_("ps").out
    assert "last log: CUDA error: out of memory" in out
    assert "again in 4s" in out


def test_a_draining_replica_says_so(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.replicas = [things.replica(desired="drain")]
    assert "draining" in slice_("ps").out


@pytest.mark.parametrize(
    "command, shown",
    [
        pytest.param(["show", "smollm2"], ["134.5M", "SmolLM2.gguf", "settings of smollm2", "4096"], id="show"),
        pytest.param(["node", "show", "box"], ["NVIDIA H100 (simulated)", "41 °C", "no driver", "rack=7"], id="node"),
        pytest.param(["status"], ["clu_1", "1 of 2 ready", "/v1"], id="status"),
        pytest.param(["version"], ["slice", "0.1.0", "Python"], id="version"),
    ],
)
def test_one_thing_is_a_sheet_of_facts(
    filled: PlayedCluster, slice_: Slice, command: list[str], shown: list[str]
) -> None:
    ended = slice_(*command)
    assert (ended.code, ended.err) == (0, "")
    for text in shown:
        assert text in ended.out


@pytest.mark.parametrize(
    "command, name",
    [(["show", "smollm2"], "smollm2"), (["status"], "clu_1")],
    ids=["show", "status"],
)
def test_one_thing_has_machine_formats_too(filled: PlayedCluster, slice_: Slice, command: list[str], name: str) -> None:
    assert slice_(*command, "-o", "name").out == f"{name}\n"
    path = {"show": "models/smollm2", "node": "nodes/box", "status": "status"}[command[0]]
    assert json.loads(slice_(*command, "-o", "json").out) == filled.answer("GET", path, {}, None)[1]


def test_events_show_the_last_ones_of_many(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.events = [things.event(seq) for seq in range(1, 2501)]
    assert slice_("events", "-n", "3", "-o", "name").out.split() == ["2498", "2499", "2500"]


def test_version_answers_without_a_cluster(cluster: PlayedCluster, slice_: Slice) -> None:
    (slice_.data_dir / "cluster.json").unlink()
    ended = slice_("version")
    assert ended.code == 0
    assert "there is no cluster" in ended.out


def test_output_into_a_closed_pipe_ends_quietly(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.events = [things.event(seq, "x" * 500) for seq in range(1, 900)]
    process = slice_.started("events", "-n", "900")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(20) == 141
