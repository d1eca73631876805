"""Versions, stages, switches and copies from the command line: what is sent, and what is shown."""

import json
import re

import pytest

from tests.cli import things
from tests.cli.conftest import Slice
from tests.cli.played import PlayedCluster


@pytest.fixture
def filled(cluster: PlayedCluster) -> PlayedCluster:
    """One model in two versions, each with a deployment, and an alias for the second."""
    first = things.model()["versions"][0]
    second = {**first, "number": 2, "digest": "sha256:" + "f" * 64, "stage": "production"}
    cluster.models = {"smollm2": things.model(versions=[first, second])}
    cluster.deployments = {
        "smollm2": things.deployment(),
        "smollm2-new": things.deployment("smollm2-new", version=2, requires=["tools"]),
    }
    cluster.aliases = {"chat": "smollm2@v2", "any": "smollm2"}
    return cluster


def test_deploy_of_a_version_with_what_it_must_be_able_to_do(filled: PlayedCluster, slice_: Slice) -> None:
    ended = slice_("deploy", "smollm2@v1", "--name", "old", "--require", "tools", "--require", "embeddings")
    assert ended.code == 0
    body = filled.sent("POST")[0][1]
    assert (body["model"], body["name"], body["requires"]) == ("smollm2@v1", "old", ["tools", "embeddings"])


def test_update_sends_what_changes_and_nothing_else(filled: PlayedCluster, slice_: Slice) -> None:
    assert slice_("update", "smollm2", "--version", "v2").code == 0
    assert slice_("update", "smollm2", "--set", "context=null", "--replicas", "2", "--engine-version", "9").code == 0
    assert [body for _, body in filled.sent("PATCH")] == [
        {"version": 2},
        {"engine_version": "9", "replicas": 2, "settings": {"context": None}},
    ]


@pytest.mark.parametrize("words", [[], ["--version", "latest"], ["--version", "x"]], ids=["nothing", "latest", "word"])
def test_an_update_of_nothing_is_a_usage_error(filled: PlayedCluster, slice_: Slice, words: list[str]) -> None:
    assert slice_("update", "smollm2", *words).code == 2
    assert filled.sent("PATCH") == []


def test_update_waits_for_replicas_of_the_new_generation(filled: PlayedCluster, slice_: Slice) -> None:
    filled.deployment_steps = [
        things.deployment(version=2, current_replicas=0),
        things.deployment(version=2, current_replicas=1),
    ]
    ended = slice_("update", "smollm2", "--version", "2", "--wait")
    assert ended.code == 0
    assert ended.err.splitlines()[0] == "smollm2: 0 of 1 replicas are new"


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("smollm2", ["smollm2"]),
        ("smollm2@v2", ["smollm2-new"]),
        ("chat", ["smollm2-new"]),
        ("any", ["smollm2", "smollm2-new"]),
    ],
)
def test_disable_takes_what_a_name_means_out_of_service(
    filled: PlayedCluster, slice_: Slice, name: str, changed: list[str]
) -> None:
    ended = slice_("disable", name, "--answer", "not_found")
    assert (ended.code, ended.err.splitlines()) == (0, [f"disabled {one}" for one in changed])
    body = {"is_enabled": False, "disabled_answer": "not_found"}
    assert filled.sent("PATCH") == [(f"deployments/{one}", body) for one in changed]


def test_enable_and_disable_leave_the_answer_as_it_was(filled: PlayedCluster, slice_: Slice) -> None:
    slice_("disable", "smollm2")
    slice_("enable", "smollm2")
    assert [body for _, body in filled.sent("PATCH")] == [{"is_enabled": False}, {"is_enabled": True}]


def test_one_mistyped_name_disables_nothing(filled: PlayedCluster, slice_: Slice) -> None:
    ended = slice_("disable", "smollm2", "smolm2-new")
    assert ended.code == 3
    assert "Did you mean 'smollm2-new'?" in ended.err
    assert filled.sent("PATCH") == []


def test_run_never_starts_what_is_disabled(filled: PlayedCluster, slice_: Slice) -> None:
    filled.deployments = {"smollm2": things.deployment(is_enabled=False, state="disabled", ready_replicas=0)}
    ended = slice_("run", "smollm2", "hi")
    assert ended.code == 5
    assert ended.err == (
        "error[deployment.disabled]: smollm2 is disabled\nhint: `slice enable smollm2` lets it serve again\n"
    )
    assert (filled.sent("PATCH"), filled.sent("POST")) == ([], [])


def test_run_of_a_version_asks_its_deployment(filled: PlayedCluster, slice_: Slice) -> None:
    assert slice_("run", "smollm2@v2", "hi").out == "Hello\n"
    assert filled.chats[0]["model"] == "smollm2-new"


def test_run_of_a_version_without_a_deployment_makes_one_beside_the_others(
    filled: PlayedCluster, slice_: Slice
) -> None:
    del filled.deployments["smollm2-new"]
    filled.deployment_steps = [things.deployment("smollm2-v2", version=2)]
    assert slice_("run", "smollm2@v2", "hi").code == 0
    body = filled.sent("POST")[0][1]
    assert (body["model"], body["name"]) == ("smollm2@v2", "smollm2-v2")


def test_an_alias_of_a_version_is_set_and_listed(filled: PlayedCluster, slice_: Slice) -> None:
    assert slice_("alias", "set", "old", "smollm2@v1").err == "old stands for smollm2@v1\n"
    rows = [line.split() for line in slice_("alias", "list").out.splitlines()]
    assert rows == [
        ["NAME", "MODEL", "VERSION"],
        ["chat", "smollm2", "v2"],
        ["any", "smollm2", "-"],
        ["old", "smollm2", "v1"],
    ]


def test_a_version_moves_between_stages_and_tells_its_history(filled: PlayedCluster, slice_: Slice) -> None:
    ended = slice_("stage", "smollm2@v1", "staging", "--reason", "evals passed")
    assert (ended.code, ended.err) == (0, "smollm2@v1 is staging\n")
    assert filled.sent("PUT") == [("models/smollm2/versions/1/stage", {"stage": "staging", "reason": "evals passed"})]
    shown = slice_("stage", "history", "smollm2@v1").out
    for text in ("FROM", "candidate", "staging", "evals passed"):
        assert text in shown
    assert slice_("stage", "smollm2@v1", "stagin").err.startswith(
        "error[request.usage]: there is no stage 'stagin'. Did you mean 'staging'?"
    )
    assert slice_("stage", "smollm2", "staging").code == 2
    assert slice_("stage", "smollm2@v9", "staging").code == 3


def test_a_changed_template_is_approved_by_its_digest(filled: PlayedCluster, slice_: Slice) -> None:
    digest = "ab" * 32
    assert slice_("stage", "smollm2@v2", "production", "--approve-template", digest).code == 0
    assert slice_("alias", "set", "chat", "smollm2@v1", "--approve-template", digest).code == 0
    assert [body.get("approve_template") for _, body in filled.sent("PUT")] == [digest, digest]
    assert "APPROVED" not in slice_("stage", "history", "smollm2@v2").out
    filled.stages = [{**filled.stages[0], "approved_template": digest}]
    assert digest[:12] in slice_("stage", "history", "smollm2@v2").out


def test_a_move_that_the_table_lacks_is_a_conflict(filled: PlayedCluster, slice_: Slice) -> None:
    assert slice_("stage", "smollm2@v1", "production").code == 5


def test_stages_and_versions_are_shown(filled: PlayedCluster, slice_: Slice) -> None:
    assert "STAGE" not in slice_("list").out
    wide = slice_("list", "-o", "wide").out.splitlines()
    assert "production" in wide[1]
    assert "v2" in wide[1]
    sheet = slice_("show", "smollm2").out
    assert "candidate" in sheet
    assert sheet.count("smollm2-new") == 2
    old = slice_("show", "smollm2@v1").out
    assert old.splitlines()[1].split() == ["version", "v1"]
    assert "smollm2-new" not in old
    assert json.loads(slice_("show", "smollm2@v1", "-o", "json").out)["number"] == 1


def test_a_version_of_a_model_is_copied(filled: PlayedCluster, slice_: Slice) -> None:
    assert slice_("cp", "smollm2@v1", "mine").err == "copied smollm2@v1 to mine\n"
    assert filled.sent("POST") == [("models/smollm2/copy", {"to": "mine", "version": 1})]


def test_a_deployment_is_copied_with_other_settings(filled: PlayedCluster, slice_: Slice) -> None:
    assert slice_("cp", "--deployment", "smollm2", "big", "--set", "context=8192", "--replicas", "2").code == 0
    body = {"to": "big", "settings": {"context": 8192}, "replicas": 2}
    assert filled.sent("POST") == [("deployments/smollm2/copy", body)]
    assert slice_("cp", "smollm2", "big", "--set", "context=8192").code == 2


def test_one_version_is_deleted(filled: PlayedCluster, slice_: Slice) -> None:
    ended = slice_("rm", "smollm2@v1")
    assert (ended.code, ended.err.splitlines()[1]) == (
        5,
        "hint: `slice rm --force smollm2@v1` deletes what uses it too",
    )
    assert slice_("rm", "--force", "smollm2@v1").err == "deleted smollm2@v1\n"
    assert [one["number"] for one in filled.models["smollm2"]["versions"]] == [2]


@pytest.mark.parametrize(
    "words",
    [
        ["show", "smollm2"],
        ["deployments"],
        ["alias", "list"],
        ["stage", "history", "smollm2@v1"],
    ],
    ids=" ".join,
)
def test_the_tables_fit_a_terminal_of_a_hundred_columns(filled: PlayedCluster, slice_: Slice, words: list[str]) -> None:
    filled.stages = [{"at": things.CREATED, "from": "candidate", "to": "staging", "reason": "evals passed " * 12}]
    filled.stages.append({**filled.stages[0], "approved_template": "ab" * 32})
    terminal = slice_.on_terminal(*words, NO_COLOR="1")
    assert terminal.end() == 0
    lines = re.sub(r"\x1b\[[0-9;]*m|\r", "", terminal.seen).split("\n")
    assert max(len(line) for line in lines) <= 100, terminal.seen
