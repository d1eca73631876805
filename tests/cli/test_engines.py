"""`slice engine ...`: what is asked of the admin API, what is said meanwhile, and how it ends."""

import pytest

from cli.commands.engines import moving, parted
from core.errors import Failure
from tests.cli import things
from tests.cli.conftest import Slice
from tests.cli.played import PlayedCluster


def sent(cluster: PlayedCluster, path: str) -> dict[str, object]:
    return next(body for asked, body in cluster.sent("POST") if asked == path)


def test_an_install_asks_for_all_that_was_said(cluster: PlayedCluster, slice_: Slice) -> None:
    ended = slice_(
        *("engine", "install", "llamacpp@0.3.1", "--node", "box", "--from", "file:/x"),
        *("--allow-unlisted", "--accept-risk"),
    )
    assert (ended.code, ended.out) == (0, "")
    assert "llamacpp 0.3.1 is on its way" in ended.err
    assert sent(cluster, "engines/llamacpp/install") == {
        "version": "0.3.1",
        "node": "box",
        "source": "file:/x",
        "allow_unlisted": True,
        "accept_risk": True,
    }


def test_waiting_for_an_install_tells_each_step_and_ends_when_it_is_ready(
    cluster: PlayedCluster, slice_: Slice
) -> None:
    cluster.install_steps = [
        {"state": "queued", "message": "it has been told"},
        {"state": "installing", "message": "downloading torch, 181.7 MiB"},
        {"state": "installing", "message": "trying whether it imports"},
        {"state": "ready"},
    ]
    ended = slice_("engine", "install", "llamacpp", "--wait")
    assert ended.code == 0
    assert "box: llamacpp 0.3.1 is installing: downloading torch, 181.7 MiB" in ended.err
    assert "trying whether it imports" in ended.err
    assert ended.err.splitlines()[-1] == "llamacpp 0.3.1 is installed"


def test_waiting_for_an_install_that_fails_ends_with_the_nodes_reason(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.install_steps = [{"state": "failed", "code": "disk.full", "message": "2.0 GiB more must be free below /d"}]
    ended = slice_("engine", "install", "llamacpp", "--wait")
    assert ended.code == 6
    assert "error[disk.full]: node box: 2.0 GiB more must be free below /d" in ended.err


def test_waiting_has_a_bound(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.install_steps = [{"state": "installing"}] * 50
    ended = slice_("engine", "install", "llamacpp", "--wait", "--timeout", "1s")
    assert ended.code == 6
    assert "is not where it should be after 1s" in ended.err


def test_a_version_without_a_lock_is_said_aloud(cluster: PlayedCluster, slice_: Slice) -> None:
    ended = slice_("engine", "install", "llamacpp@9.9", "--allow-unlisted")
    assert "9.9 is installed without pinned digests" in ended.err


def test_nodes_that_are_away_are_named_and_not_waited_for(cluster: PlayedCluster, slice_: Slice) -> None:
    engine = things.engine()
    engine["nodes"].append({**engine["nodes"][0], "node": "far", "state": "offline"})
    engine["nodes"][1]["installs"] = [things.install(state="queued")]
    cluster.engines["llamacpp"] = engine
    ended = slice_("engine", "install", "llamacpp", "--wait")
    assert ended.code == 0
    assert "not heard of now, told later: far" in ended.err


def test_a_removal_waits_until_the_version_is_gone(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.install_steps = [{"state": "removing"}, None]
    ended = slice_("engine", "remove", "llamacpp@0.3.1", "--wait")
    assert (ended.code, ended.err.splitlines()[-1]) == (0, "llamacpp 0.3.1 is removed")
    assert sent(cluster, "engines/llamacpp/remove") == {"version": "0.3.1", "node": None, "force": False}


def test_a_removal_that_a_node_refuses_says_why(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.install_steps = [{"code": "engine.in_use", "message": "it stays: rep_1 of this node uses it"}]
    ended = slice_("engine", "remove", "llamacpp@0.3.1", "--wait")
    assert ended.code == 5
    assert "rep_1 of this node uses it" in ended.err


def test_a_removal_that_cannot_be_done_ends_with_the_nodes_words(cluster: PlayedCluster, slice_: Slice) -> None:
    words = "it cannot be removed: permission denied"
    cluster.install_steps = [
        {"state": "removing", "message": "the node is about to remove it"},
        *[{"state": "failed", "code": "engine.remove_failed", "message": words}] * 50,
    ]
    ended = slice_("engine", "remove", "llamacpp@0.3.1", "--wait", "--timeout", "20s")
    assert ended.code == 1
    assert f"error[engine.remove_failed]: node box: {words}" in ended.err


def test_a_removal_by_force_asks_for_it(cluster: PlayedCluster, slice_: Slice) -> None:
    assert slice_("engine", "remove", "llamacpp@0.3.1", "--force").code == 0
    assert sent(cluster, "engines/llamacpp/remove") == {"version": "0.3.1", "node": None, "force": True}


def test_an_upgrade_waits_for_new_replicas_and_says_what_moved(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.deployments = {"smollm2": things.deployment()}
    cluster.replicas = [things.replica(1), things.replica(2, engine_version="0.4.0")]
    cluster.replicas[0]["desired"] = "drain"
    ended = slice_("engine", "upgrade", "llamacpp@0.4.0", "--deployments", "smollm2", "--wait")
    assert ended.code == 0
    assert ended.err.splitlines()[-1] == "new deployments of llamacpp get 0.4.0; moved smollm2"
    assert sent(cluster, "engines/llamacpp/upgrade")["deployments"] == ["smollm2"]


def test_an_upgrade_whose_replicas_fail_names_the_way_back(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.deployments = {"smollm2": things.deployment()}
    cluster.replicas = [things.replica(1), things.replica(2, engine_version="0.4.0", state="crash_loop", message="no")]
    ended = slice_("engine", "upgrade", "llamacpp@0.4.0", "--wait")
    assert ended.code == 1
    assert "slice engine rollback llamacpp" in ended.err


def test_a_rollback_asks_for_it(cluster: PlayedCluster, slice_: Slice) -> None:
    ended = slice_("engine", "rollback", "llamacpp", "--deployments", "none")
    assert (ended.code, "0.3.0" in ended.err) == (0, True)
    assert sent(cluster, "engines/llamacpp/rollback") == {"deployments": "none", "accept_risk": False}


def test_an_adoption_asks_for_the_usual_address_and_can_be_ended(cluster: PlayedCluster, slice_: Slice) -> None:
    ended = slice_("engine", "adopt", "llamacpp")
    assert (ended.code, "on box is adopted" in ended.err) == (0, True)
    assert sent(cluster, "engines/llamacpp/adopt") == {"node": None, "url": "http://127.0.0.1:11434"}
    assert slice_("engine", "adopt", "llamacpp", "--end", "--node", "box").code == 0
    assert cluster.sent("DELETE")[0][0] == "engines/llamacpp/adopt"


def test_an_adopted_engine_and_its_models_are_shown(cluster: PlayedCluster, slice_: Slice) -> None:
    engine = things.engine("ollama", is_program=True, default_version="", floor=None)
    model = {"name": "gemma4:latest", "digest": "sha256:" + "c" * 64, "size_bytes": 9608350245}
    engine["nodes"][0]["installs"] = []
    engine["nodes"][0]["adopted"] = {
        "base_url": "http://127.0.0.1:11434",
        "version": "0.33.0",
        "models": [model],
        "message": "",
    }
    cluster.engines["ollama"] = engine
    listed = slice_("engine", "list").out
    assert "1 model at http://127.0.0.1:11434" in listed
    shown = slice_("engine", "show", "ollama").out
    for text in ("the newest program on the node", "gemma4:latest", "8.9 GiB", "sha256:cccccccccccc"):
        assert text in shown


def test_an_engine_that_is_not_there_is_exit_code_3(cluster: PlayedCluster, slice_: Slice) -> None:
    assert slice_("engine", "show", "vllm9").code == 3


@pytest.mark.parametrize("text", ["@1", "llamacpp@", ""])
def test_what_is_no_engine_is_refused(text: str) -> None:
    with pytest.raises(Failure):
        parted(text)


def test_all_and_none_stand_alone() -> None:
    assert (moving(None), moving(["none"]), moving(["a", "b"])) == ("all", "none", ["a", "b"])
    with pytest.raises(Failure):
        moving(["all", "a"])


@pytest.mark.parametrize("verb", ["upgrade", "remove"])
def test_a_change_without_a_version_is_a_usage_error(slice_: Slice, verb: str) -> None:
    ended = slice_("engine", verb, "llamacpp")
    assert (ended.code, "which version?" in ended.err) == (2, True)


def test_the_table_fits_a_terminal_of_100_columns(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.engines["llamacpp"] = things.engine(
        nodes=[
            {
                **things.engine()["nodes"][0],
                "node": "gpu-box-number-seven",
                "installs": [
                    things.install("2026.10.11549", deployments=["smollm2", "chat-default"]),
                    things.install("2026.9.1", state="failed", message="the package index could not be reached " * 3),
                ],
            }
        ]
    )
    terminal = slice_.on_terminal("engine", "list")
    assert terminal.end() == 0
    assert all(len(line) <= 100 for line in terminal.seen.replace("\r", "").splitlines() if "\x1b" not in line)
    assert "2026.10.11549" in terminal.seen


def test_an_upgrade_does_not_wait_for_replicas_of_what_is_disabled(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.deployments["smollm2"] = things.deployment(is_enabled=False)
    cluster.replicas = []
    ended = slice_(
        *("engine", "upgrade", "llamacpp@0.4.0", "--deployments", "smollm2", "--wait", "--timeout", "1s"),
    )
    assert ended.code == 0, ended.err
    assert ended.err.splitlines()[-1] == "new deployments of llamacpp get 0.4.0; moved smollm2"
