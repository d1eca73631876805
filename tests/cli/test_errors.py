"""How slice ends badly: exit codes, sentences, never a traceback."""

import json
import stat

import pytest

from cli import exits
from core.errors import CODES, Failure, Kind
from tests.cli import things
from tests.cli.conftest import Slice
from tests.cli.played import PlayedCluster


@pytest.mark.parametrize(
    "status, code, exit_code",
    [
        (401, "auth.invalid", 4),
        (404, "node.not_found", 3),
        (409, "deployment.version_conflict", 5),
        (500, "engine.install_failed", 1),
        (503, "storage.unavailable", 6),
    ],
)
def test_the_kind_of_a_failure_decides_the_exit_code(
    cluster: PlayedCluster, slice_: Slice, status: int, code: str, exit_code: int
) -> None:
    cluster.override = lambda method, path: (status, things.error(code, "it did not work", "do this"))
    ended = slice_("list")
    assert (ended.code, ended.out) == (exit_code, "")
    assert ended.err == f"error[{code}]: it did not work\nhint: do this\n"


def test_every_kind_has_an_exit_code() -> None:
    assert set(exits.EXIT_CODES) == set(Kind)
    assert all(exits.exit_code(Failure(code, "x")) in {1, 2, 3, 4, 5, 6} for code in CODES)


def test_errors_are_json_when_json_was_asked_for(slice_: Slice) -> None:
    ended = slice_("show", "smol2", "-o", "json")
    assert (ended.code, ended.out) == (3, "")
    assert json.loads(ended.err)["error"] == {
        "code": "registry.model_not_found",
        "message": "no model 'smol2'",
        "hint": "`slice list` shows the models",
        "param": None,
        "retry": "never",
    }


def test_usage_errors_are_json_when_json_was_asked_for(slice_: Slice) -> None:
    ended = slice_("ps", "--oops", "-o", "json")
    assert ended.code == 2
    assert json.loads(ended.err)["error"]["code"] == "request.usage"


@pytest.mark.parametrize(
    "words, message",
    [
        (["lits"], "no command 'lits'. Did you mean 'list'?"),
        (["ps", "--oops"], "--oops"),
        (["show"], "Missing argument"),
        (["scale", "x", "many"], "valid integer"),
        (["--context", "far", "ps"], "name two clusters"),
    ],
    ids=["command", "option", "argument", "number", "two-clusters"],
)
def test_a_wrong_command_line_is_one_sentence_and_status_2(slice_: Slice, words: list[str], message: str) -> None:
    ended = slice_(*words)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error[request.usage]: ")
    assert message in ended.err
    assert len(ended.err.splitlines()) == 2


def test_a_noun_without_a_verb_shows_its_help_with_status_2(slice_: Slice) -> None:
    ended = slice_("node")
    assert (ended.code, ended.out) == (2, "")
    assert "List the nodes." in ended.err


def test_a_code_of_a_newer_release_is_shown_as_unexpected(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.override = lambda method, path: (409, things.error("future.code", "something new"))
    ended = slice_("list")
    assert (ended.code, ended.err) == (1, "error[internal.unexpected]: something new (future.code)\n")


def test_a_wrong_token_is_denied(cluster: PlayedCluster, slice_: Slice) -> None:
    (slice_.data_dir / "secrets" / "operator_token").write_text("stale")
    ended = slice_("list")
    assert ended.code == 4
    assert ended.err.startswith("error[auth.invalid]: the token is wrong")


def test_a_controller_that_does_not_answer_is_unreachable(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.admin_server.server_close()
    ended = slice_("list")
    assert ended.code == 6
    assert ended.err == (
        f"error[controller.unreachable]: the controller at http://127.0.0.1:{cluster.admin_port} does not answer\n"
        "hint: `slice up` starts the cluster; `slice doctor` says what is wrong\n"
    )


@pytest.mark.parametrize(
    "status, body, code",
    [
        (200, b"<html>hello</html>", "internal.unexpected"),
        (200, b"[]", "internal.unexpected"),
        (500, b"oops", "internal.unexpected"),
        (502, b"<html>bad gateway</html>", "controller.unreachable"),
    ],
    ids=["html", "list", "plain-500", "proxy"],
)
def test_a_server_that_is_no_controller_is_told_without_a_traceback(
    cluster: PlayedCluster, slice_: Slice, status: int, body: bytes, code: str
) -> None:
    cluster.override = lambda method, path: (status, body)
    ended = slice_("list")
    assert ended.err.startswith(f"error[{code}]: ")
    assert "Traceback" not in ended.err


def test_no_cluster_says_how_to_start_one(slice_: Slice) -> None:
    (slice_.data_dir / "cluster.json").unlink()
    ended = slice_("ps")
    assert ended.code == 6
    assert ended.err.startswith(f"error[cluster.not_running]: there is no cluster in {slice_.data_dir}\n")
    assert "`slice up`" in ended.err


def test_a_fault_of_our_own_goes_to_a_private_file(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.override = lambda method, path: (200, {"items": "not a list of objects"})
    ended = slice_("list")
    assert ended.code == 1
    assert ended.err.startswith("error[internal.unexpected]: slice met a fault of its own")
    assert "Traceback" not in ended.err
    (file,) = slice_.home.rglob("faults.log")
    assert str(file) in ended.err
    assert "Traceback" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_fault_of_our_own_is_shown_for_debugging(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.override = lambda method, path: (200, {"items": "not a list of objects"})
    assert "Traceback" in slice_("list", SLICE_DEBUG="1").err
