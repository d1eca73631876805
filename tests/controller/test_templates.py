"""Chat templates that changed: production gets none that nobody has approved, by whichever way it comes."""

import hashlib
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

from controller.registry.model import Version
from controller.registry.templates import verdict
from core.errors import Failure
from tests.controller.cluster import Cluster
from tests.controller.played import PlayedNode
from tests.controller.test_api import error
from tests.controller.test_blueprint import apply, exported, told
from tests.controller.test_strange_reports import finished
from tests.controller.test_versions import file

A, B, C = "{{ messages }}", "{{ messages }} and more", "{{ something else }}"


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest() if text else ""


async def with_templates(cluster: Cluster, node: PlayedNode, *templates: str, name: str = "m") -> None:
    """Give the model `name` one version for each chat template ("" : none)."""
    for number, text in enumerate(templates, start=1):
        fields = {"chat_template": text, "chat_template_sha256": sha(text)}
        await finished(cluster, node, name, file("m.gguf", f"{number:x}"), **fields)


async def moved(cluster: Cluster, number: int, *stages: str, name: str = "m", **fields: Any) -> tuple[int, Any]:
    """Move a version from stage to stage, and return the answer to the last move."""
    answer: tuple[int, Any] = (0, None)
    for stage in stages:
        more = fields if stage == stages[-1] else {}
        path = f"/api/v1/models/{name}/versions/{number}/stage"
        answer = await cluster.request("PUT", path, {"stage": stage, **more})
    return answer


async def test_the_first_version_in_production_needs_no_approval_and_another_template_does(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await with_templates(cluster, node, A, B, A, "")
        assert (await moved(cluster, 1, "staging", "production"))[0] == 200
        status, refused = await moved(cluster, 2, "staging", "production")
        assert (status, refused["error"]["code"]) == (409, "registry.template_changed")
        assert refused["error"]["message"] == (
            f"version 2 of model 'm' has the chat template {sha(B)[:12]}..., "
            f"approved for production is {sha(A)[:12]}..."
        )
        for words in (
            "`slice show m@v2 --template`",
            "m@v1",
            "`slice stage m@v2 production --approve-template SHA256`",
        ):
            assert words in refused["error"]["hint"]
        assert (await cluster.get("models/m/versions/2"))["stage"] == "staging"
        for number in (3, 4):
            assert (await moved(cluster, number, "staging", "production"))[0] == 200, "the same template, and none"
        wrong = await moved(cluster, 2, "production", approve_template=sha(C))
        assert error(wrong) == (409, "registry.template_changed")
        assert f"{sha(B)[:12]}..., not {sha(C)[:12]}..." in wrong[1]["error"]["message"]
        assert (await moved(cluster, 2, "production", approve_template=sha(B)))[0] == 200
        history = (await cluster.get("models/m/versions/2/stages"))["items"]
        assert [(one["to"], one["approved_template"]) for one in history] == [
            ("staging", ""),
            ("production", sha(B)),
        ]
        (event,) = [
            one
            for one in (await cluster.get("events?limit=1000"))["items"]
            if one["kind"] == "stage_moved" and one["data"].get("approved_template")
        ]
        assert event["data"]["approved_template"] == sha(B)


async def test_what_was_once_in_production_stays_approved_even_when_its_version_is_gone(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await with_templates(cluster, node, A, A, B)
        await moved(cluster, 1, "staging", "production", "retired")
        assert (await cluster.request("DELETE", "/api/v1/models/m/versions/1"))[0] == 204
        assert error(await moved(cluster, 3, "staging", "production")) == (409, "registry.template_changed")
        assert (await moved(cluster, 2, "staging", "production"))[0] == 200
        assert (await cluster.request("DELETE", "/api/v1/models/m"))[0] == 204
        await with_templates(cluster, node, B)
        assert (await moved(cluster, 1, "staging", "production"))[0] == 200, "another model of that name begins anew"


async def test_a_template_that_appears_where_none_was_is_a_change(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await with_templates(cluster, node, "", B)
        await moved(cluster, 1, "staging", "production")
        status, refused = await moved(cluster, 2, "staging", "production")
        assert (status, refused["error"]["code"]) == (409, "registry.template_changed")
        assert refused["error"]["message"].endswith("approved for production is none")


async def test_an_alias_leaves_a_version_in_production_only_for_an_approved_template(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await with_templates(cluster, node, A, B, A)
        path = "/api/v1/aliases/chat"
        await cluster.ok("PUT", "aliases/chat", {"model": "m@v2"})
        await moved(cluster, 1, "staging", "production")
        await cluster.ok("PUT", "aliases/chat", {"model": "m@v1"})
        status, refused = await cluster.request("PUT", path, {"model": "m@v2"})
        assert (status, refused["error"]["code"]) == (409, "registry.template_changed")
        assert sha(A)[:12] in refused["error"]["message"]
        assert sha(B)[:12] in refused["error"]["message"]
        assert "`slice alias set chat m@v2 --approve-template SHA256`" in refused["error"]["hint"]
        assert (await cluster.get("aliases"))["items"][0]["version"] == 1
        await cluster.ok("PUT", "aliases/chat", {"model": "m@v3"})
        await cluster.ok("PUT", "aliases/chat", {"model": "m@v1"})
        wrong = await cluster.request("PUT", path, {"model": "m@v2", "approve_template": sha(A)})
        assert error(wrong) == (409, "registry.template_changed")
        body = {"model": "m@v2", "approve_template": sha(B)}
        assert (await cluster.ok("PUT", "aliases/chat", body))["version"] == 2
        events = [one for one in (await cluster.get("events?limit=1000"))["items"] if one["kind"] == "alias_set"]
        assert events[-1]["data"] == {"alias": "chat", "approved_template": sha(B)}
        assert error(await moved(cluster, 2, "staging", "production")) == (409, "registry.template_changed")
        await cluster.ok("PUT", "aliases/chat", {"model": "m"})


async def test_an_alias_of_a_whole_model_or_of_another_one_is_no_way_around_the_approval(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await with_templates(cluster, node, A, B)
        await with_templates(cluster, node, C, A, name="n")
        await moved(cluster, 1, "staging", "production")
        path = "/api/v1/aliases/chat"
        for before in ("m", "m@v1"):
            await cluster.ok("PUT", "aliases/chat", {"model": "n@v2"})
            await cluster.ok("PUT", "aliases/chat", {"model": before})
            for after in ("m@v2", "n@v1"):
                refused = await cluster.request("PUT", path, {"model": after})
                assert error(refused) == (409, "registry.template_changed"), (before, after)
            await cluster.ok("PUT", "aliases/chat", {"model": "n@v2"})
        await cluster.ok("PUT", "aliases/chat", {"model": "m"})
        assert (await cluster.ok("PUT", "aliases/chat", {"model": "n@v1", "approve_template": sha(C)}))["model"] == "n"


async def test_a_deployment_leaves_a_version_in_production_only_for_an_approved_template(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await with_templates(cluster, node, A, B, A)
        await cluster.ok("POST", "deployments", {"model": "m@v2", "name": "m", "replicas": 0})
        await cluster.ok("PATCH", "deployments/m", {"version": 1})
        await moved(cluster, 1, "staging", "production")
        path = "/api/v1/deployments/m"
        status, refused = await cluster.request("PATCH", path, {"version": 2})
        assert (status, refused["error"]["code"]) == (409, "registry.template_changed")
        assert "`slice update m --version v2 --approve-template SHA256`" in refused["error"]["hint"]
        assert (await cluster.get("deployments/m"))["version"] == 1
        wrong = await cluster.request("PATCH", path, {"version": 2, "approve_template": sha(A)})
        assert error(wrong) == (409, "registry.template_changed")
        alone = await cluster.request("PATCH", path, {"approve_template": sha(B)})
        assert error(alone) == (400, "request.invalid_field")
        assert (await cluster.ok("PATCH", "deployments/m", {"version": 3}))["version"] == 3, "the same template"
        await cluster.ok("PATCH", "deployments/m", {"version": 1})
        body = {"version": 2, "approve_template": sha(B)}
        assert (await cluster.ok("PATCH", "deployments/m", body))["version"] == 2
        events = [
            one for one in (await cluster.get("events?limit=1000"))["items"] if one["kind"] == "deployment_changed"
        ]
        assert events[-1]["data"] == {"approved_template": sha(B)}


@pytest.mark.parametrize("digest", ["ab", sha(A).upper(), f"sha256:{sha(A)}", ""])
async def test_only_a_whole_digest_approves(cluster: Cluster, digest: str) -> None:
    await cluster.ok("POST", "pulls", {"name": "fake"})
    assert (await moved(cluster, 1, "production", name="fake", approve_template=digest))[0] == 400
    body = {"model": "fake@v1", "approve_template": digest}
    assert (await cluster.request("PUT", "/api/v1/aliases/chat", body))[0] == 400


async def test_an_approval_of_nothing_is_refused(cluster: Cluster) -> None:
    await cluster.ok("POST", "pulls", {"name": "fake"})
    answer = await moved(cluster, 1, "staging", name="fake", approve_template=sha(A))
    assert error(answer) == (400, "request.invalid_field"), "only production asks"
    answer = await cluster.request("PUT", "/api/v1/aliases/chat", {"model": "fake", "approve_template": sha(A)})
    assert error(answer) == (400, "request.invalid_field"), "a whole model has no one template"
    await moved(cluster, 1, "staging", name="fake")
    answer = await moved(cluster, 1, "production", name="fake", approve_template=sha(A))
    assert error(answer) == (409, "registry.template_changed")
    assert "has no chat template, not" in answer[1]["error"]["message"]


async def test_an_export_carries_what_was_approved_and_a_file_without_it_is_refused(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await with_templates(cluster, node, A, B)
        await moved(cluster, 1, "staging", "production")
        await moved(cluster, 2, "staging", "production", approve_template=sha(B))
        text = await exported(cluster)
        versions = yaml.safe_load(text)["models"][0]["versions"]
        assert [one["approve_template"] for one in versions] == [sha(A), sha(B)]
        assert told((await apply(cluster, text, "?prune=true"))[1]) == []
        assert (await cluster.request("DELETE", "/api/v1/models/m"))[0] == 204
        await with_templates(cluster, node, A, B)
        bare = text.replace(f"    approve_template: {sha(B)}\n", "")
        assert bare != text
        status, answer = await apply(cluster, bare)
        assert (status, answer["error"]["code"]) == (409, "registry.template_changed")
        assert answer["error"]["message"].startswith("line ")
        assert (await cluster.get("models/m/versions/1"))["stage"] == "candidate", "all or nothing"
        status, answer = await apply(cluster, text)
        assert (status, answer["is_complete"]) == (200, True)
        assert await exported(cluster) == text
        history = (await cluster.get("models/m/versions/2/stages"))["items"]
        assert [one["approved_template"] for one in history] == ["", sha(B)]


async def test_an_alias_of_a_file_is_moved_with_the_approval_of_its_version(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await with_templates(cluster, node, A, B)
        await moved(cluster, 1, "staging", "production")
        await cluster.ok("PUT", "aliases/chat", {"model": "m@v1"})
        text = (await exported(cluster)).replace("model: m@v1", "model: m@v2")
        assert error(await apply(cluster, text)) == (409, "registry.template_changed")
        approving = text.replace("    stage: candidate\n", f"    stage: candidate\n    approve_template: {sha(B)}\n")
        assert told((await apply(cluster, approving))[1]) == [("update", "alias", "chat", "done")]


def version(template: str, number: int = 2) -> Version:
    return Version(
        version_id=f"ver_{number}",
        model_id="mod",
        number=number,
        digest="sha256:0",
        source="file:/m.gguf",
        format="gguf",
        size_bytes=1,
        chat_template_sha256=template,
        facts={},
        template_findings=(),
        stage="staging",
        is_deleting=False,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    ("template", "approved", "approve", "expected"),
    [
        (sha(A), (), None, ""),
        ("", (sha(A),), None, ""),
        (sha(A), (sha(B), sha(A)), None, ""),
        (sha(A), (sha(B),), sha(A), sha(A)),
        (sha(A), (sha(A),), sha(A), ""),
        (sha(A), (), sha(A), ""),
        (sha(A), (sha(B),), None, None),
        (sha(A), ("",), None, None),
        (sha(A), (sha(A),), sha(B), None),
        (sha(A), (), sha(B), None),
        ("", (), sha(B), None),
    ],
)
def test_a_template_is_approved_by_production_or_by_its_digest(
    template: str, approved: tuple[str, ...], approve: str | None, expected: str | None
) -> None:
    there = [version(sha(A), 1)]
    if expected is None:
        with pytest.raises(Failure) as caught:
            verdict("m", version(template), approved, there, approve=approve, command="slice")
        assert caught.value.code == "registry.template_changed"
    else:
        assert verdict("m", version(template), approved, there, approve=approve, command="slice") == expected
