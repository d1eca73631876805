"""`slice store`, and what `slice rm`, `slice show` and `slice pull` tell of files and chat templates."""

import json

from tests.cli import things
from tests.cli.conftest import Slice
from tests.cli.played import PlayedCluster

MIB = 1024**2
DONE = {"state": "done", "bytes_done": MIB, "bytes_total": MIB}


def test_the_store_is_listed_with_who_uses_what(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.stored = [
        things.stored("a", versions=["smollm2@v1"]),
        things.stored("b"),
        things.stored("c", is_leaving=True),
    ]
    lines = slice_("store", "list").out.splitlines()
    assert lines[0].split() == ["NODE", "FILE", "SIZE", "USED", "BY", "LAST", "USED"]
    assert lines[1].split()[:5] == ["box", "a" * 12, "1.0", "MiB", "smollm2@v1"]
    assert lines[2].split()[4] == "-"
    assert "(being removed)" in lines[3]
    assert slice_("store", "list", "-o", "name").out.split() == ["a" * 64, "b" * 64, "c" * 64]


def test_an_empty_store_says_what_brings_a_model(slice_: Slice) -> None:
    assert slice_("store", "list").err == "the stores are empty; `slice pull NAME` brings a model\n"


def test_a_dry_run_removes_nothing_and_says_how_much_would_go(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.stored = [things.stored("a", versions=["smollm2@v1"]), things.stored("b")]
    ended = slice_("store", "gc", "--dry-run", "--node", "box", "--older-than", "7d")
    assert cluster.sent("POST") == [("store/gc", {"node": "box", "older_than_s": 7 * 86400, "dry_run": True})]
    assert "b" * 12 in ended.out
    assert "a" * 12 not in ended.out
    assert ended.err == "1 unused file, 1.0 MiB would be removed\n"


def test_a_collection_says_what_goes(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.stored = [things.stored("a"), things.stored("b")]
    assert slice_("store", "gc").err == "2 unused files, 2.0 MiB will be gone in a moment\n"
    assert cluster.sent("POST") == [("store/gc", {"node": None, "older_than_s": 0, "dry_run": False})]
    assert json.loads(slice_("store", "gc", "-o", "json").out)["total_bytes"] == 2 * MIB
    cluster.stored = []
    assert slice_("store", "gc").err == "nothing is removed\n"


def test_a_wrong_age_is_a_usage_error(slice_: Slice) -> None:
    ended = slice_("store", "gc", "--older-than", "week")
    assert ended.code == 2
    assert "request.invalid_duration" in ended.err


def test_rm_says_what_stays_on_disk_and_how_to_free_it(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.models = {"smollm2": things.model()}
    cluster.stored = [things.stored(sha256="ab"), things.stored("b")]
    assert slice_("rm", "smollm2").err == (
        "deleted smollm2; 1.0 MiB of it stay in the store of box; `slice store gc` frees them\n"
    )


def test_rm_says_nothing_of_files_that_another_model_uses(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.models = {"smollm2": things.model()}
    cluster.stored = [things.stored(sha256="ab", versions=["twin@v1"])]
    assert slice_("rm", "smollm2").err == "deleted smollm2\n"


def test_show_tells_of_the_chat_template(cluster: PlayedCluster, slice_: Slice) -> None:
    version = {
        **things.model()["versions"][0],
        "chat_template_sha256": "cd" * 32,
        "template_findings": ["it says socket"],
    }
    cluster.models = {"smollm2": things.model(versions=[version])}
    assert "sha256:cdcdcdcdcdcd (it says socket)" in slice_("show", "smollm2").out
    ended = slice_("show", "smollm2", "--template")
    assert ended.out == "{{ messages }}\n"
    assert ended.err == "note: it says socket\nnote: its SHA-256 is 00\n"
    assert json.loads(slice_("show", "smollm2", "--template", "-o", "json").out)["text"] == "{{ messages }}"
    cluster.template = ""
    assert slice_("show", "smollm2", "--template").err.endswith("version 1 of smollm2 has no chat template\n")


def test_a_source_names_the_model_itself(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.pull_steps = [DONE]
    ended = slice_("pull", "hf:HuggingFaceTB/SmolLM2-135M-Instruct", "--engine", "vllm")
    assert cluster.sent("POST") == [
        (
            "pulls",
            {
                "name": "smollm2-135m-instruct",
                "source": "hf:HuggingFaceTB/SmolLM2-135M-Instruct",
                "engine": "vllm",
            },
        )
    ]
    assert ended.err.endswith("pulled smollm2-135m-instruct, 1.0 MiB\n")


def test_two_sources_are_a_usage_error(slice_: Slice) -> None:
    ended = slice_("pull", "hf:a/b", "--source", "hf:c/d")
    assert (ended.code, "both a source and --source" in ended.err) == (2, True)


def test_a_malformed_source_is_told_before_anything_is_asked(cluster: PlayedCluster, slice_: Slice) -> None:
    ended = slice_("pull", "hf:only-a-name")
    assert ended.code == 2
    assert "error[source.invalid]" in ended.err
    assert cluster.requests == []


def test_a_pull_tells_what_is_odd_in_the_template(cluster: PlayedCluster, slice_: Slice) -> None:
    version = {**things.model()["versions"][0], "template_findings": ["it says socket"]}
    cluster.override = lambda method, path: (
        (200, things.model(versions=[version])) if (method, path) == ("GET", "models/smollm2") else None
    )
    cluster.pull_steps = [DONE]
    assert slice_("pull", "smollm2").err.splitlines()[-2:] == [
        "note: in its chat template: it says socket",
        "`slice show smollm2 --template` shows it",
    ]
