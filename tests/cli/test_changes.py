"""Commands that change something: what they send, what they print."""

import json

import pytest

from tests.cli import things
from tests.cli.conftest import Slice
from tests.cli.played import PlayedCluster


@pytest.fixture
def filled(cluster: PlayedCluster) -> PlayedCluster:
    cluster.models = {"smollm2": things.model()}
    cluster.deployments = {"smollm2": things.deployment()}
    return cluster


def test_deploy_sends_the_whole_wish(filled: PlayedCluster, slice_: Slice) -> None:
    ended = slice_(
        *("deploy", "smollm2", "--name", "fast", "--engine", "llamacpp", "--replicas", "2"),
        *("--set", "context=4096", "--set", "flash=true", "--set", "note=a=b"),
    )
    assert (ended.code, ended.out) == (0, "")
    assert "deployed fast" in ended.err
    assert filled.sent("POST") == [
        (
            "deployments",
            {
                "name": "fast",
                "model": "smollm2",
                "engine": "llamacpp",
                "engine_version": None,
                "replicas": 2,
                "settings": {"context": 4096, "flash": True, "note": "a=b"},
            },
        )
    ]


def test_deploy_prints_the_deployment_as_json(filled: PlayedCluster, slice_: Slice) -> None:
    ended = slice_("deploy", "smollm2", "--name", "fast", "-o", "json")
    assert json.loads(ended.out) == filled.deployments["fast"]
    assert ended.err == ""


def test_deploy_waits_until_it_serves(filled: PlayedCluster, slice_: Slice) -> None:
    filled.deployment_steps = [things.starting("box fetches"), things.deployment("fast")]
    ended = slice_("deploy", "smollm2", "--name", "fast", "--wait")
    assert ended.code == 0
    assert ended.err.splitlines() == ["smollm2: box fetches", "fast serves"]


def test_a_setting_without_a_value_is_a_usage_error(slice_: Slice) -> None:
    ended = slice_("deploy", "smollm2", "--set", "oops")
    assert ended.code == 2
    assert ended.err.startswith("error[request.usage]: 'oops' is no setting")


def test_scale_sets_the_replicas(filled: PlayedCluster, slice_: Slice) -> None:
    assert slice_("scale", "smollm2", "3", "-o", "name").out == "smollm2\n"
    assert filled.sent("PATCH") == [("deployments/smollm2", {"replicas": 3})]


@pytest.mark.parametrize("name", ["fast", "smollm2", "chat"], ids=["deployment", "model", "alias"])
def test_stop_scales_what_the_name_means_to_zero(cluster: PlayedCluster, slice_: Slice, name: str) -> None:
    cluster.deployments = {"fast": things.deployment("fast")}
    cluster.aliases = {"chat": "smollm2"}
    assert slice_("stop", name).code == 0
    assert cluster.sent("PATCH") == [("deployments/fast", {"replicas": 0})]


def test_stop_of_an_unknown_name_suggests_a_known_one(filled: PlayedCluster, slice_: Slice) -> None:
    ended = slice_("stop", "smolm2")
    assert ended.code == 3
    assert ended.err.splitlines()[0] == (
        "error[deployment.not_found]: nothing serves 'smolm2'. Did you mean 'smollm2'?"
    )


def test_undeploy_deletes_the_deployment(filled: PlayedCluster, slice_: Slice) -> None:
    assert slice_("undeploy", "smollm2").code == 0
    assert filled.sent("DELETE") == [("deployments/smollm2", None)]


def test_undeploy_and_ps_say_what_a_silent_node_keeps_and_what_cures_it(filled: PlayedCluster, slice_: Slice) -> None:
    blocked = {
        "code": "replica.node_silent",
        "message": "node far is silent: what ran there counts until it returns or is forgotten",
        "hint": "start the node agent there, or, if it will not return: `slice node forget far`",
        "nodes": ["far"],
    }
    filled.replicas = [things.replica(state="lost", desired="stop", blocked=blocked)]
    filled.deployments["smollm2"].update({"waiting": "it is being deleted", "blocked": blocked})
    for words in (("ps",), ("deployments",), ("undeploy", "smollm2")):
        ended = slice_(*words)
        assert ended.code == 0
        assert "`slice node forget far`" in ended.out + ended.err


def test_rm_of_a_deployed_model_is_refused_with_the_way_out(filled: PlayedCluster, slice_: Slice) -> None:
    ended = slice_("rm", "smollm2")
    assert ended.code == 5
    assert ended.err == (
        "error[registry.model_in_use]: smollm2 is deployed\nhint: `slice rm --force smollm2` deletes what uses it too\n"
    )


def test_rm_with_force_deletes(filled: PlayedCluster, slice_: Slice) -> None:
    assert slice_("rm", "--force", "smollm2").code == 0
    assert filled.models == {}


def test_rm_takes_several_models(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.models = {"a": things.model("a"), "b": things.model("b")}
    ended = slice_("rm", "a", "b")
    assert (ended.code, cluster.models) == (0, {})
    assert ended.err == "deleted a\ndeleted b\n"


def test_cp_gives_a_second_name(filled: PlayedCluster, slice_: Slice) -> None:
    assert slice_("cp", "smollm2", "mine", "-o", "name").out == "mine\n"
    assert "mine" in filled.models


def test_a_new_key_alone_goes_to_standard_output(cluster: PlayedCluster, slice_: Slice) -> None:
    ended = slice_("key", "create", "ci", "--expires", "2h")
    assert ended.out == "slice_fresh\n"
    assert "not shown again" in ended.err
    assert cluster.sent("POST") == [("keys", {"name": "ci", "expires_in_s": 7200})]


def test_a_new_key_is_shown_even_where_only_its_name_was_asked_for(slice_: Slice) -> None:
    assert slice_("key", "create", "ci", "-o", "name").out == "slice_fresh\n"


def test_a_new_key_as_json_is_the_whole_object(slice_: Slice) -> None:
    assert json.loads(slice_("key", "create", "ci", "-o", "json").out)["key"] == "slice_fresh"


def test_a_key_is_revoked_by_name(cluster: PlayedCluster, slice_: Slice) -> None:
    assert slice_("key", "revoke", "ci").err == "revoked ci\n"
    assert cluster.sent("DELETE") == [("keys/ci", None)]


def test_an_alias_is_set_and_deleted(cluster: PlayedCluster, slice_: Slice) -> None:
    assert slice_("alias", "set", "chat", "smollm2").code == 0
    assert cluster.aliases == {"chat": "smollm2"}
    assert slice_("alias", "rm", "chat").code == 0
    assert cluster.aliases == {}


def test_a_name_with_a_slash_stays_one_segment_of_the_path(cluster: PlayedCluster, slice_: Slice) -> None:
    assert slice_("show", "../keys").code == 3
    assert cluster.requests[0][1] == "models/..%2Fkeys"
