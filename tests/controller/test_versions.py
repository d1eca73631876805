"""Versions of many files: what a node reports of a pull, what becomes of it, and which version an engine gets."""

import hashlib
import json
from typing import Any

import pytest

from controller.api import node_wire
from controller.exchange import FileReport, VersionFile
from controller.registry.arrival import arrived, digest
from controller.registry.model import Pull
from controller.registry.pulls import held_files
from core.errors import Failure
from core.ids import NodeId, PullId, Sha256
from core.states import PullState
from protos.slice.node.v1 import node_pb2 as pb
from tests.controller.cluster import Cluster
from tests.controller.played import PlayedNode
from tests.controller.test_pure import NOW
from tests.waiting import until_async

COMMIT = "a" * 40
PINNED = f"hf:org/tiny@{COMMIT}"
TEMPLATE = "{{ messages }}"
TEMPLATE_SHA256 = hashlib.sha256(TEMPLATE.encode()).hexdigest()
FACTS = {
    "format": "safetensors",
    "size_bytes": 300,
    "architecture": "llama",
    "layers": 2,
    "kv_heads": 1,
    "key_length": 8,
    "value_length": 8,
    "embedding_length": 16,
    "vocabulary": 100,
    "context_length": 64,
}


def sha(letter: str) -> Sha256:
    return Sha256(letter * 64)


def file(path: str, letter: str, source: str = "") -> pb.VersionFile:
    return pb.VersionFile(path=path, sha256=sha(letter), size_bytes=100, source=source)


SHARDS = (
    file("model-00001-of-00002.safetensors", "1", f"{PINNED}:model-00001-of-00002.safetensors"),
    file("model-00002-of-00002.safetensors", "2", f"{PINNED}:model-00002-of-00002.safetensors"),
    file("config.json", "3", f"{PINNED}:config.json"),
)


async def finish(node: PlayedNode, pull: Any, *files: pb.VersionFile, resolved: str = PINNED, **facts: Any) -> None:
    """Report a pull as done with `files`, and those as stored."""
    for one in files:
        node.files[one.sha256] = pb.FileReport(state="done", sha256=one.sha256, size_bytes=one.size_bytes)
    node.files[pull["id"]] = pb.FileReport(
        want_id=pull["id"],
        state="done",
        sha256=files[0].sha256,
        size_bytes=sum(one.size_bytes for one in files),
        facts_json=json.dumps({**FACTS, **facts}),
        version_files=files,
        chat_template=TEMPLATE,
        chat_template_sha256=TEMPLATE_SHA256,
        template_findings=["it says socket"],
        resolved_source=resolved,
    )
    await node.observe()


async def pulled(cluster: Cluster, node: PlayedNode, body: dict[str, Any], *files: pb.VersionFile, **facts: Any) -> Any:
    pull = await cluster.ok("POST", "pulls", body)
    await node.until_told(lambda told: any(one.want_id == pull["id"] for one in told.files))
    await finish(node, pull, *files, **facts)
    return await ended(cluster, pull)


async def ended(cluster: Cluster, pull: Any) -> Any:
    async def has_ended() -> bool:
        return (await cluster.get(f"pulls/{pull['id']}"))["finished_at"] is not None

    await until_async(has_ended)
    return await cluster.get(f"pulls/{pull['id']}")


async def test_a_folder_of_files_becomes_a_version_that_other_nodes_can_fetch_file_by_file(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        done = await pulled(cluster, node, {"name": "tiny", "source": "hf:org/tiny"}, *SHARDS)
        assert (done["state"], done["bytes_total"]) == ("done", 300)
        version = (await cluster.get("models/tiny"))["versions"][0]
        assert (version["format"], version["source"], version["size_bytes"]) == ("safetensors", PINNED, 300)
        assert [(one["path"], one["source"], one["nodes"]) for one in version["files"]] == [
            (one.path, one.source, ["box"]) for one in SHARDS
        ]
        assert version["template_findings"] == ["it says socket"]
        shown = await cluster.get("models/tiny/versions/1/template")
        assert shown == {
            "model": "tiny",
            "version": 1,
            "sha256": TEMPLATE_SHA256,
            "text": TEMPLATE,
            "findings": ["it says socket"],
        }
        assert (await cluster.request("GET", "/api/v1/models/tiny/versions/2/template"))[0] == 404

        await cluster.ok("POST", "deployments", {"model": "tiny", "engine": "fake"})
        want = (await node.until_told(lambda told: len(told.replicas) == 1)).replicas[0]
        assert [(one.path, one.sha256, one.size_bytes, one.source) for one in want.files] == [
            (one.path, one.sha256, 100, one.source) for one in SHARDS
        ]


async def test_the_same_content_is_no_new_version_and_other_content_is_the_next(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        body = {"name": "tiny", "source": "hf:org/tiny"}
        await pulled(cluster, node, body, *SHARDS)
        await pulled(cluster, node, body, SHARDS[1], SHARDS[0], SHARDS[2])
        assert len((await cluster.get("models/tiny"))["versions"]) == 1
        await pulled(cluster, node, body, *SHARDS[:2], file("config.json", "4"))
        assert [one["number"] for one in (await cluster.get("models/tiny"))["versions"]] == [1, 2]


async def test_pinned_bytes_that_a_node_holds_are_pulled_without_traffic_even_under_another_name(
    cluster: Cluster,
) -> None:
    async with PlayedNode(cluster.socket) as node:
        await pulled(cluster, node, {"name": "tiny", "source": "hf:org/tiny"}, *SHARDS)
        for name in ("tiny", "twin"):
            status, again = await cluster.request("POST", "/api/v1/pulls", {"name": name, "source": PINNED})
            assert (status, again["state"], again["bytes_total"]) == (200, "done", 300)
        twin = (await cluster.get("models/twin"))["versions"][0]
        assert [one["path"] for one in twin["files"]] == [one.path for one in SHARDS]
        assert (await cluster.get("models/twin/versions/1/template"))["text"] == TEMPLATE

        gguf = {"name": "tiny", "source": PINNED, "engine": "llamacpp"}
        other = await cluster.ok("POST", "pulls", gguf)
        assert other["state"] == "queued", "what is here is not what that engine eats"
        assert other["engine"] == "llamacpp"


async def test_pinned_bytes_that_no_node_holds_any_more_are_brought_again(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await pulled(cluster, node, {"name": "tiny", "source": "hf:org/tiny"}, *SHARDS)
        del node.files[sha("2")]
        node.files = {key: one for key, one in node.files.items() if not one.want_id}
        await node.observe()

        async def is_gone() -> bool:
            return (await cluster.get("models/tiny"))["versions"][0]["files"][1]["nodes"] == []

        await until_async(is_gone)
        again = await pulled(cluster, node, {"name": "tiny", "source": PINNED}, *SHARDS)
        assert again["state"] == "done"
        assert len((await cluster.get("models/tiny"))["versions"]) == 1


async def test_a_pull_for_an_engine_asks_for_its_formats_and_any_other_for_those_of_usable_engines(
    cluster: Cluster,
) -> None:
    async with PlayedNode(cluster.socket) as node:
        for body, formats in (
            ({"name": "a", "source": "hf:org/a"}, ["gguf"]),
            ({"name": "b", "source": "hf:org/b", "engine": "fake"}, ["gguf", "safetensors"]),
            ({"source": "hf:org/Some-Model.GGUF", "engine": "llamacpp"}, ["gguf"]),
        ):
            pull = await cluster.ok("POST", "pulls", body)
            told = await node.until_told(
                lambda told, wanted=pull["id"]: any(one.want_id == wanted for one in told.files)
            )
            assert [list(one.formats) for one in told.files if one.want_id == pull["id"]] == [formats]
        assert pull["model"] == "some-model.gguf"


async def test_one_source_is_pulled_for_one_engine_at_a_time(cluster: Cluster) -> None:
    body = {"name": "a", "source": "hf:org/a"}
    first = await cluster.ok("POST", "pulls", {**body, "engine": "llamacpp"})
    assert (await cluster.ok("POST", "pulls", {**body, "engine": "llamacpp"}))["id"] == first["id"]
    status, answer = await cluster.request("POST", "/api/v1/pulls", body)
    assert (status, answer["error"]["message"]) == (409, "this source is being pulled as 'a' for llamacpp")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        pytest.param({}, "request.invalid_field", id="nothing"),
        pytest.param({"name": "a", "source": "hf:org/a", "engine": "vlm"}, "engine.unknown", id="engine"),
        pytest.param({"source": "ftp:x"}, "source.unsupported", id="source"),
    ],
)
async def test_a_pull_that_cannot_be_is_refused(cluster: Cluster, body: dict[str, Any], code: str) -> None:
    status, answer = await cluster.request("POST", "/api/v1/pulls", body)
    assert (answer["error"]["code"], status >= 400) == (code, True)


async def test_a_paused_pull_says_why(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        pull = await cluster.ok("POST", "pulls", {"name": "a", "source": "hf:org/a"})
        await node.until_told(lambda told: len(told.files) == 1)
        sentence = "3.0 GiB more are needed on the disk of box; it goes on when they are free"
        node.files[pull["id"]] = pb.FileReport(want_id=pull["id"], state="running", code="disk.full", message=sentence)
        await node.observe()

        async def is_told() -> bool:
            return (await cluster.get(f"pulls/{pull['id']}"))["waiting"] == sentence

        await until_async(is_told)


async def test_a_node_that_resolves_to_another_repository_fails_the_pull(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        pull = await cluster.ok("POST", "pulls", {"name": "tiny", "source": "hf:org/tiny"})
        await node.until_told(lambda told: len(told.files) == 1)
        await finish(node, pull, *SHARDS, resolved=f"hf:evil/tiny@{COMMIT}")
        assert (await ended(cluster, pull))["error"]["code"] == "source.invalid"
        assert (await cluster.get("models"))["items"] == []


async def test_a_deployment_gets_the_newest_version_that_its_engine_eats(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        gguf = file("tiny.gguf", "9")
        await pulled(cluster, node, {"name": "tiny", "source": "hf:org/tiny"}, gguf, format="gguf")
        await pulled(cluster, node, {"name": "tiny", "source": "hf:org/tiny"}, *SHARDS)
        made = await cluster.ok("POST", "deployments", {"model": "tiny", "engine": "llamacpp", "name": "one"})
        assert made["version"] == 1
        made = await cluster.ok("POST", "deployments", {"model": "tiny", "engine": "fake", "name": "two"})
        assert made["version"] == 2


async def test_an_engine_that_eats_no_version_is_refused_with_engines_and_formats(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await pulled(cluster, node, {"name": "tiny", "source": "hf:org/tiny"}, *SHARDS)
        body = {"model": "tiny", "engine": "llamacpp"}
        status, answer = await cluster.request("POST", "/api/v1/deployments", body)
        assert (status, answer["error"]["code"]) == (400, "engine.format_unsupported")
        assert answer["error"]["message"] == "engine llamacpp does not serve the format 'safetensors'"
        assert "llamacpp (gguf)" in answer["error"]["hint"]
        assert "--engine" in answer["error"]["hint"]


@pytest.mark.parametrize(
    "files",
    [
        pytest.param([file("../x", "1")], id="up"),
        pytest.param([file("a/../../x", "1")], id="up-inside"),
        pytest.param([file("/etc/passwd", "1")], id="root"),
        pytest.param([file("a//b", "1")], id="empty-part"),
        pytest.param([file("./a", "1")], id="here"),
        pytest.param([file("", "1")], id="empty"),
        pytest.param([file("a\nb", "1")], id="line"),
        pytest.param([file("a\x00b", "1")], id="nul"),
        pytest.param([file("x" * 1025, "1")], id="long"),
        pytest.param([file("a", "1"), file("a", "2")], id="twice"),
        pytest.param([pb.VersionFile(path="a", sha256="A" * 64)], id="digest"),
        pytest.param([file(str(number), "1") for number in range(2001)], id="many"),
    ],
)
def test_a_bad_file_of_a_version_ends_the_session(files: list[pb.VersionFile]) -> None:
    message = pb.Observed(files=[pb.FileReport(state="done", version_files=files)])
    with pytest.raises(Failure) as caught:
        node_wire.observation(NodeId("n"), message)
    assert caught.value.code == "request.invalid_field"


def pull_of(source: str) -> Pull:
    return Pull(
        pull_id="p",
        model_name="m",
        source=source,
        engine="",
        node_id="n",
        state="running",
        bytes_done=0,
        bytes_total=0,
        code="",
        message="",
        hint="",
        created_at=NOW,
        finished_at=None,
    )


def version_file(path: str, letter: str) -> VersionFile:
    return VersionFile(path=path, sha256=sha(letter), size_bytes=1)


def test_a_version_of_one_file_is_known_by_its_digest_and_one_of_many_by_its_manifest() -> None:
    one, two = version_file("a", "1"), version_file("b", "2")
    assert digest([one]) == f"sha256:{sha('1')}"
    assert digest([one, two]) == digest([two, one])
    assert digest([one, two]) == "sha256:291d73947132d26b05ba91c9835e49f4b0ee866b7cd693873a6f389a5b2a557d"
    others = [[one], [one, version_file("c", "2")], [one, version_file("b", "3")], [version_file("b", "1"), two]]
    assert digest([one, two]) not in {digest(files) for files in others}


def test_a_node_of_the_former_release_reports_one_file() -> None:
    report = FileReport(
        want_id=PullId("p"), state=PullState.DONE, sha256=sha("1"), size_bytes=7, facts_json='{"format": "gguf"}'
    )
    new = arrived(pull_of("file:/models/tiny.gguf"), report)
    assert (new.digest, new.source, new.size_bytes) == (f"sha256:{sha('1')}", "file:/models/tiny.gguf", 7)
    assert [(one.path, one.source) for one in new.files] == [("tiny.gguf", "")]


def test_what_was_pinned_is_what_must_come() -> None:
    report = FileReport(want_id=PullId("p"), state=PullState.DONE, sha256=sha("1"), facts_json="{}")
    with pytest.raises(Failure) as caught:
        arrived(pull_of(f"file:/models/tiny.gguf#file={sha('2')}"), report)
    assert caught.value.code == "source.digest_mismatch"


def test_another_format_is_no_version() -> None:
    report = FileReport(want_id=PullId("p"), state=PullState.DONE, sha256=sha("1"), facts_json='{"format": "pickle"}')
    with pytest.raises(Failure) as caught:
        arrived(pull_of("file:/models/tiny.gguf"), report)
    assert caught.value.code == "format.refused"


def test_the_stores_own_report_goes_before_a_finished_pulls() -> None:
    pull = FileReport(
        want_id=PullId("p"),
        state=PullState.DONE,
        sha256=sha("1"),
        size_bytes=300,
        version_files=(version_file("a", "1"), version_file("b", "2")),
    )
    stored = FileReport(want_id=PullId(""), state=PullState.DONE, sha256=sha("1"), size_bytes=100, used_unix_s=5)
    moving = FileReport(want_id=PullId("q"), state=PullState.RUNNING, sha256=sha("3"))
    for order in ((pull, stored, moving), (moving, stored, pull)):
        assert held_files(order) == {sha("1"): (100, 5), sha("2"): (1, 0)}
