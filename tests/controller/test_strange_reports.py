"""What a node says may hold words of strangers that no database takes: they are made fit, or the pull is refused.

Through the real servicer, the reconcile loop and PostgreSQL: no report may end a session or hold the loop up.
"""

import asyncio
import hashlib
import json
from typing import Any

import grpc
import pytest

from adapters.facts import facts_from_json
from core.infra.grpc import CHANNEL_OPTIONS, bearer
from protos.slice.node.v1 import node_pb2 as pb
from tests.controller.cluster import NODE, Cluster
from tests.controller.played import PlayedNode
from tests.controller.test_versions import FACTS, TEMPLATE, ended, file
from tests.waiting import until_async

GGUF = file("tiny.gguf", "9")


def report(pull: Any, *files: pb.VersionFile, **fields: Any) -> pb.FileReport:
    whole: dict[str, Any] = {
        "want_id": pull["id"],
        "state": "done",
        "sha256": files[0].sha256,
        "size_bytes": 100,
        "facts_json": json.dumps({**FACTS, "format": "gguf"}),
        "version_files": files,
        "chat_template": TEMPLATE,
        "chat_template_sha256": hashlib.sha256(TEMPLATE.encode()).hexdigest(),
        **fields,
    }
    return pb.FileReport(**whole)


async def finished(cluster: Cluster, node: PlayedNode, name: str, *files: pb.VersionFile, **fields: Any) -> Any:
    pull = await cluster.ok("POST", "pulls", {"name": name, "source": f"file:/models/{name}.gguf"})
    await node.until_told(lambda told: any(one.want_id == pull["id"] for one in told.files))
    node.files[pull["id"]] = report(pull, *files, **fields)
    await node.observe()
    done = await ended(cluster, pull)
    assert node.reject is None
    return done


async def test_facts_with_escaped_characters_that_are_none_become_a_version(cluster: Cluster) -> None:
    facts = json.dumps({**FACTS, "format": "gguf", "architecture": "lla\ud800ma\x00", "quantization": "Q4\\u0000"})
    assert "\\ud800" in facts
    async with PlayedNode(cluster.socket) as node:
        done = await finished(cluster, node, "tiny", GGUF, facts_json=facts)
        assert (done["state"], done["error"]) == ("done", None)
        version = (await cluster.get("models/tiny"))["versions"][0]
        assert (version["architecture"], version["quantization"]) == ("lla?ma?", "Q4\\u0000")
        await cluster.ok("POST", "deployments", {"model": "tiny"})
        assert "reconcile_failed" not in cluster.log.getvalue()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "half-a-surrogate": ({"facts_json": '{"format": "gguf", "architecture": "\\ud8'}, "request.invalid_json"),
    "nul-in-format": ({"facts_json": '{"format": "gg\\u0000uf"}'}, "format.refused"),
    "deep": ({"facts_json": "[" * 60_000}, "request.invalid_json"),
    "long-number": ({"facts_json": "1" * 20_000}, "request.invalid_json"),
    "long-facts": ({"facts_json": " " * 70_000}, "request.invalid_field"),
    "long-template": ({"chat_template": "x" * (256 * 1024 + 1)}, "request.invalid_field"),
    "another-template": ({"chat_template": "another than was hashed"}, "source.digest_mismatch"),
    "no-source": ({"resolved_source": "file:\u2028"}, "source.invalid"),
    "more-than-bigint": (
        {"version_files": [pb.VersionFile(path="a", sha256="1" * 64, size_bytes=2**63 - 1), GGUF]},
        "request.invalid_field",
    ),
    "invisible": ({"version_files": [file("a\u200bb.gguf", "1")]}, "request.invalid_field"),
    "right-to-left": ({"version_files": [file("a\u202eb.gguf", "1")]}, "request.invalid_field"),
    "up": ({"version_files": [file("../b.gguf", "1")]}, "request.invalid_field"),
}


@pytest.mark.parametrize(("fields", "code"), BAD.values(), ids=BAD)
async def test_a_report_that_cannot_be_a_version_fails_its_pull_and_nothing_else(
    cluster: Cluster, fields: dict[str, Any], code: str
) -> None:
    async with PlayedNode(cluster.socket) as node:
        failed = await finished(cluster, node, "bad", GGUF, **fields)
        assert (failed["state"], failed["error"]["code"]) == ("failed", code)
        assert (await cluster.get("models"))["items"] == []
        done = await finished(cluster, node, "other", GGUF)
        assert done["state"] == "done", "the node's session and the loop go on"
        assert "reconcile_failed" not in cluster.log.getvalue()


async def test_words_of_strangers_in_messages_logs_and_templates_are_stored(cluster: Cluster) -> None:
    template = "{{ \u2028 \U0001f600 }}"
    async with PlayedNode(cluster.socket) as node:
        await finished(
            cluster,
            node,
            "tiny",
            GGUF,
            chat_template=template,
            chat_template_sha256=hashlib.sha256(template.encode()).hexdigest(),
            template_findings=["it says \x00\u200b"],
        )
        shown = await cluster.get("models/tiny/versions/1/template")
        assert (shown["text"], shown["findings"]) == (template, ["it says \u200b"])
        await cluster.ok("POST", "deployments", {"model": "tiny"})
        want = (await node.until_told(lambda told: len(told.replicas) == 1)).replicas[0]
        words = "a\x00\\u0000\\ud800\u2028"
        await node.set(want.replica_id, "failed", code="disk.full\x00", message=words, log_tail=[words] * 30)

        async def is_told() -> bool:
            return (await cluster.get(f"replicas/{want.replica_id}"))["state"] == "failed"

        await until_async(is_told)
        replica = await cluster.get(f"replicas/{want.replica_id}")
        assert (replica["message"], replica["code"]) == ("a\\u0000\\ud800\u2028", "disk.full")
        install = pb.EngineInstall(version="1\x00", state="failed", code="disk.full", message=words)
        node.engines = [pb.EngineFact(engine="llamacpp", is_usable=True, reason=words, installs=[install])]
        await node.observe()

        async def is_shown() -> bool:
            engine = await cluster.get("engines/llamacpp")
            return [one["version"] for item in engine["nodes"] for one in item["installs"]] == ["1"]

        await until_async(is_shown)
        assert "reconcile_failed" not in cluster.log.getvalue()


@pytest.mark.parametrize("is_first", [True, False], ids=["hello", "later"])
async def test_text_that_is_no_utf8_is_refused_in_words_on_its_own_stream_alone(
    cluster: Cluster, is_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with PlayedNode(cluster.socket) as node:
        await node.until_told(lambda told: True)
        bad = pb.NodeMessage(goodbye=pb.Goodbye(reason="xx")).SerializeToString().replace(b"xx", b"\xed\xa0")
        other = PlayedNode(cluster.socket, node_id="nod_2", name="other", machine_id="m2")
        async with grpc.aio.insecure_channel(f"unix:{cluster.socket}", options=CHANNEL_OPTIONS) as channel:
            call = channel.stream_stream("/slice.node.v1.NodeControl/Session")(metadata=bearer(NODE))
            if not is_first:
                await call.write(pb.NodeMessage(hello=other.hello()).SerializeToString())
            await call.write(bad)
            async with asyncio.timeout(10):
                told = [pb.ControllerMessage.FromString(raw) async for raw in call]
        assert (told[-1].reject.code, told[-1].reject.is_fatal) == ("request.invalid_field", True)
        assert not [one for one in caplog.records if one.levelname == "ERROR"]
        assert (await finished(cluster, node, "tiny", GGUF))["state"] == "done"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"a\\u0000b"', "a?b"),
        ('"a\\ud800b"', "a?b"),
        ('"a\\\\u0000b"', "a\\u0000b"),
        ('"\\ud83d\\ude00"', "\U0001f600"),
    ],
)
def test_a_fact_is_made_of_characters_that_are_some(text: str, expected: str) -> None:
    assert facts_from_json(f'{{"architecture": {text}}}').architecture == expected
