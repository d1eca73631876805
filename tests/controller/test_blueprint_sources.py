"""Blueprints and where versions come from: whatever a file's source is, what was applied has nothing left to change."""

from typing import Any

import pytest

from protos.slice.node.v1 import node_pb2 as pb
from tests.controller.cluster import Cluster
from tests.controller.played import PlayedNode
from tests.controller.test_api import error
from tests.controller.test_blueprint import apply, exported, told
from tests.controller.test_lives import with_versions
from tests.controller.test_secrets import GPT, VALUE
from tests.controller.test_versions import SHARDS, ended, file, finish, pulled
from tests.waiting import until_async

COMMIT = "a" * 40


async def applied(cluster: Cluster, node: PlayedNode, text: str, *pulls: tuple[tuple[pb.VersionFile, ...], str]) -> Any:
    """Apply `text` again and again, each pull bringing files and the source that it turned out to be."""
    for files, resolved in pulls:
        status, answer = await apply(cluster, text)
        assert status == 200, answer
        (pull,) = answer["pulls"]
        await node.until_told(lambda said, wanted=pull["id"]: any(one.want_id == wanted for one in said.files))
        await finish(node, pull, *files, resolved=resolved)
        done = await ended(cluster, pull)
        assert done["state"] == "done", done
    status, answer = await apply(cluster, text)
    assert status == 200, answer
    assert (answer["is_complete"], answer["pulls"]) == (True, [])
    return answer


async def nothing_changes(cluster: Cluster, text: str, *, prunes: bool = True) -> None:
    for query in ("?dry_run=true", "?dry_run=true&prune=true")[: 1 + prunes]:
        status, answer = await apply(cluster, text, query)
        assert (status, told(answer), answer["is_complete"]) == (200, [], True)


ONE = (file("tiny.gguf", "1"),)
TWO = (file("tiny.gguf", "2"),)
PARTS = (file("demo.gguf", "3"), file("ollama/template", "4"), file("ollama/params", "5"))


@pytest.mark.parametrize(
    ("source", "files", "resolved"),
    [
        ("hf:org/tiny", SHARDS, f"hf:org/tiny@{COMMIT}:safetensors"),
        ("hf:org/tiny@main", ONE, f"hf:org/tiny@{COMMIT}:tiny.gguf#file={'1' * 64}"),
        ("hf:org/tiny:Q4_K_M", ONE, f"hf:org/tiny@{COMMIT}:tiny-Q4_K_M.gguf#file={'1' * 64}"),
        ("ollama:demo", PARTS, f"ollama:demo#manifest={'e' * 64}"),
        ("ollama:demo:135m", ONE, f"ollama:demo:135m@sha256:{'1' * 64}#file={'1' * 64}"),
        ("file:/models/tiny.gguf", ONE, f"file:/models/tiny.gguf#file={'1' * 64}"),
        (f"file:/models/tiny.gguf#file={'1' * 64}", ONE, f"file:/models/tiny.gguf#file={'1' * 64}"),
        ("https://example.org/tiny.gguf?x=1", ONE, f"https://example.org/tiny.gguf?x=1#file={'1' * 64}"),
    ],
)
async def test_a_source_without_a_digest_has_come_when_it_was_pulled(
    cluster: Cluster, source: str, files: tuple[pb.VersionFile, ...], resolved: str
) -> None:
    text = f"models:\n- name: tiny\n  versions: [{{source: '{source}', stage: staging}}]\n"
    text += "aliases:\n- {name: chat, model: tiny@v1}\n"
    async with PlayedNode(cluster.socket) as node:
        await applied(cluster, node, text, (files, resolved))
        await nothing_changes(cluster, text)
        whole = await exported(cluster)
        assert resolved in whole
        await nothing_changes(cluster, whole)


async def test_what_a_pinned_manifest_names_is_taken_over_whole_or_pulled(cluster: Cluster) -> None:
    pinned = f"ollama:demo:135m#manifest={'e' * 64}"
    async with PlayedNode(cluster.socket) as node:
        await pulled(
            cluster, node, {"name": "demo", "source": "ollama:demo:135m"}, *PARTS, resolved=pinned, format="gguf"
        )
        status, pull = await cluster.request("POST", "/api/v1/pulls", {"name": "twin", "source": pinned})
        assert (status, pull["state"]) == (200, "done")
        assert len((await cluster.get("models/twin"))["versions"][0]["files"]) == 3
        other = pinned.replace("e" * 64, "d" * 64)
        assert (await cluster.ok("POST", "pulls", {"name": "twin", "source": other}))["state"] == "queued"


async def test_two_revisions_of_one_repository_are_two_pulls_even_of_the_same_bytes(cluster: Cluster) -> None:
    text = (
        "models:\n- name: tiny\n  versions:\n  - {number: 5, source: 'hf:org/tiny@main'}\n"
        "  - {number: 6, source: 'hf:org/tiny@dev'}\n  - {number: 7, source: 'hf:org/tiny@new'}\n"
        "aliases:\n- {name: chat, model: tiny@v7}\n"
    )
    resolved = f"hf:org/tiny@{COMMIT}:tiny.gguf"
    async with PlayedNode(cluster.socket) as node:
        pinned = f"{resolved}#file={'1' * 64}"
        other = f"hf:org/tiny@{'b' * 40}:tiny.gguf#file={'2' * 64}"
        await applied(cluster, node, text, (ONE, pinned), (ONE, pinned), (TWO, other))
        await nothing_changes(cluster, text)
        assert [one["number"] for one in (await cluster.get("models/tiny"))["versions"]] == [1, 2]
        assert (await cluster.get("aliases"))["items"][0]["version"] == 2


async def test_bytes_that_are_here_under_another_source_are_taken_over_once(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await pulled(cluster, node, {"name": "tiny", "source": "hf:org/tiny"}, *ONE, resolved="", format="gguf")
        text = f"models:\n- name: tiny\n  versions: [{{source: 'https://example.org/x.gguf#file={'1' * 64}'}}]\n"
        await nothing_changes(cluster, text)
        text = text.replace("name: tiny", "name: twin")
        assert told((await apply(cluster, text))[1]) == [("create", "version", "twin@v1", "done")]
        await nothing_changes(cluster, text, prunes=False)


async def test_other_bytes_at_the_same_place_are_another_version(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await pulled(cluster, node, {"name": "tiny", "source": "file:/m.gguf"}, *ONE, resolved="", format="gguf")
        text = f"models:\n- name: tiny\n  versions: [{{source: 'file:/m.gguf#file={'2' * 64}'}}]\n"
        await applied(cluster, node, text, (TWO, f"file:/m.gguf#file={'2' * 64}"))
        assert len((await cluster.get("models/tiny"))["versions"]) == 2
        await nothing_changes(cluster, text, prunes=False)


@pytest.mark.parametrize(
    ("source", "digest"),
    [
        (f"file:/m.gguf#file={'2' * 64}", f"sha256:{'1' * 64}"),
        (f"ollama:demo@sha256:{'2' * 64}", f"sha256:{'1' * 64}"),
        ("builtin:fake", f"sha256:{'1' * 64}"),
    ],
)
async def test_a_digest_that_the_source_contradicts_is_refused_with_its_line(
    cluster: Cluster, source: str, digest: str
) -> None:
    text = f"models:\n- name: tiny\n  versions:\n  - source: '{source}'\n    digest: '{digest}'\n"
    status, answer = await apply(cluster, text)
    assert (status, answer["error"]["code"]) == (400, "request.invalid_field")
    assert answer["error"]["message"].startswith("line 5: ")


async def test_a_copied_model_that_lies_elsewhere_comes_back_from_its_file(cluster: Cluster) -> None:
    await cluster.ok("PUT", "secrets/openai-key", {"value": VALUE})
    await cluster.ok("POST", "deployments", GPT)
    await cluster.ok("POST", "models/gpt/copy", {"to": "other"})
    await cluster.ok("POST", "deployments", {**GPT, "model": "other@v1", "name": "second", "replicas": 0})
    text = await exported(cluster)
    await nothing_changes(cluster, text)
    for name in ("gpt", "second"):
        await cluster.ok("DELETE", f"deployments/{name}")

    async def are_gone() -> bool:
        return not (await cluster.get("deployments"))["items"]

    await until_async(are_gone)
    for name in ("gpt", "other"):
        assert (await cluster.request("DELETE", f"/api/v1/models/{name}"))[0] == 204
    status, answer = await apply(cluster, text)
    assert (status, answer.get("is_complete")) == (200, True), answer
    assert await exported(cluster) == text


@pytest.mark.parametrize("source", ["builtin:remote-", "builtin:remote-A b", "builtin:nope"])
async def test_a_builtin_that_is_none_is_refused(cluster: Cluster, source: str) -> None:
    text = f"models:\n- name: tiny\n  versions: [{{source: '{source}'}}]\n"
    assert error(await apply(cluster, text)) == (404, "source.not_found")


async def test_settings_are_checked_against_the_version_that_the_file_means(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await pulled(cluster, node, {"name": "m", "source": "file:/s.gguf"}, *ONE, resolved="", format="gguf")
        big = (file("big.gguf", "2"),)
        more = {"format": "gguf", "context_length": 8192}
        await pulled(cluster, node, {"name": "m", "source": "file:/b.gguf"}, *big, resolved="", **more)
        # In the file the big one has number 1, which is the small one's here.
        text = (
            f"models:\n- name: NAME\n  versions: [{{source: 'file:/b.gguf', digest: 'sha256:{'2' * 64}'}}]\n"
            "deployments:\n- {name: d, model: NAME@v1, engine: llamacpp, replicas: 0, settings: {context: 4000}}\n"
        )
        for name in ("m", "copied"):
            own = text.replace("NAME", name).replace("name: d,", f"name: d-{name},")
            status, answer = await apply(cluster, own)
            assert (status, answer.get("is_complete")) == (200, True), answer
            await nothing_changes(cluster, own, prunes=False)
            assert (await cluster.get(f"deployments/d-{name}"))["settings"]["context"] == 4000
        small = text.replace("NAME", "m").replace(f"digest: 'sha256:{'2' * 64}'", f"digest: 'sha256:{'1' * 64}'")
        status, answer = await apply(cluster, small.replace("file:/b", "file:/s"))
        assert (status, answer["error"]["code"]) == (400, "engine.setting_invalid")
        assert "must be at most 64, the model's own limit" in answer["error"]["message"]


async def test_settings_of_a_new_deployment_are_those_of_the_newest_version(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await pulled(
            cluster, node, {"name": "m", "source": "file:/s.gguf"}, *ONE, resolved="", format="gguf", context_length=512
        )
        text = "deployments:\n- {name: d, model: m, engine: llamacpp, replicas: 0, settings: {context: 4096}}\n"
        status, answer = await apply(cluster, text)
        assert (status, answer["error"]["code"]) == (400, "engine.setting_invalid"), "4096 is no default of this model"
        text = text.replace("4096", "512")
        assert told((await apply(cluster, text))[1]) == [("create", "deployment", "d", "done")]
        await nothing_changes(cluster, text)


async def test_what_stands_twice_under_requires_is_meant_once(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await with_versions(cluster, node, 1)
        text = "deployments:\n- {name: d, model: m, replicas: 0, requires: [tools, seed, tools]}\n"
        assert told((await apply(cluster, text))[1]) == [("create", "deployment", "d", "done")]
        await nothing_changes(cluster, text)
        text = text.replace("seed, tools", "tools")
        assert [(one["from"], one["to"]) for one in (await apply(cluster, text))[1]["changes"][0]["fields"]] == [
            (["seed", "tools"], ["tools"])
        ]
        await nothing_changes(cluster, text)


async def test_a_split_gguf_goes_out_and_comes_back_whole(cluster: Cluster) -> None:
    source = "file:/models/big-00001-of-00002.gguf"
    parts = (file("big-00001-of-00002.gguf", "1"), file("big-00002-of-00002.gguf", "2"))
    async with PlayedNode(cluster.socket) as node:
        await pulled(cluster, node, {"name": "big", "source": source}, *parts, resolved=source, format="gguf")
        text = await exported(cluster)
        assert f"source: {source}\n" in text
        assert (await cluster.request("DELETE", "/api/v1/models/big"))[0] == 204
        node.files.clear()
        await node.observe()
        await applied(cluster, node, text, (parts, source))
        assert await exported(cluster) == text
