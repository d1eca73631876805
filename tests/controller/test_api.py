"""The admin API's edges: credentials on every route and call, malformed inputs, documented errors."""

import asyncio
import stat
from pathlib import Path
from typing import Any

import grpc
import pytest

from controller.api import app as api
from controller.api.stage import Stage
from core.infra.grpc import bearer
from core.infra.metrics import MetricsPage
from protos.slice.node.v1 import node_pb2
from protos.slice.routes.v1 import routes_pb2
from tests.controller.cluster import DOOR, NODE, Cluster
from tests.controller.played import PlayedNode
from tests.postgres import Server
from tests.waiting import until_async


def every_route() -> list[tuple[str, str]]:
    app = api.fast_api(Stage(), MetricsPage(()), version="0")
    paths = app.openapi()["paths"]
    found = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    return [*found, ("GET", "/openapi.json"), ("GET", "/nothing"), ("HEAD", "/health"), ("POST", "/health")]


def rpcs() -> list[str]:
    return [
        f"/{service.full_name}/{method.name}"
        for file in (node_pb2.DESCRIPTOR, routes_pb2.DESCRIPTOR)
        for service in file.services_by_name.values()
        for method in service.methods
    ]


def error(answer: tuple[int, Any]) -> tuple[int, str]:
    assert set(answer[1]["error"]) == {"code", "message", "hint", "param", "retry"}, answer
    return answer[0], answer[1]["error"]["code"]


async def test_every_route_but_health_wants_the_operator_token(cluster: Cluster) -> None:
    assert len(every_route()) > 30
    for method, path in every_route():
        filled = path.replace("{", "").replace("}", "")
        status, body = await cluster.request(
            method, filled, {} if method in ("POST", "PUT", "PATCH") else None, token=None
        )
        if (method, path) == ("GET", "/health"):
            assert (status, body) == (200, {"status": "ok"})
        else:
            assert status == 401, (method, path)
        for wrong in (NODE, DOOR, "", "operator-toke", "operator-token2"):
            status, _ = await cluster.request(method, filled, token=wrong)
            assert status == (200 if (method, path) == ("GET", "/health") else 401), (method, path)


@pytest.mark.parametrize("rpc", rpcs())
async def test_every_rpc_wants_the_token_of_its_service(cluster: Cluster, rpc: str) -> None:
    other = DOOR if "node" in rpc else NODE
    async with grpc.aio.insecure_channel(f"unix:{cluster.socket}") as channel:
        for metadata in ((), bearer(other), bearer("operator-token")):
            call = channel.stream_stream(rpc)(metadata=metadata)
            if rpc.rpartition("/")[2] in ("Renew", "Certify", "Leave", "ReportUsage"):
                await call.write(b"")  # they take one message, and are answered when it has come
            # Joins are taken on their own port alone.
            is_here = "NodeJoin" not in rpc
            status = grpc.StatusCode
            assert await call.code() is (status.UNAUTHENTICATED if is_here else status.UNIMPLEMENTED)


async def test_the_control_socket_is_ours_alone(cluster: Cluster) -> None:
    assert stat.S_IMODE(cluster.socket.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("POST", "deployments", b"{", (400, "request.invalid_json")),
        ("POST", "deployments", b"\xff\xfe", (400, "request.invalid_json")),
        ("POST", "deployments", b"[" * 50_000, (400, "request.invalid_json")),
        ("POST", "deployments", b"[]", (400, "request.invalid_field")),
        ("POST", "deployments", b"{}", (400, "request.invalid_field")),
        ("POST", "deployments", b'{"model": "fake", "extra": 1}', (400, "request.unknown_field")),
        ("POST", "deployments", b'{"model": "fake", "replicas": -1}', (400, "request.out_of_range")),
        ("POST", "deployments", b'{"model": "fake", "replicas": "2"}', (400, "request.invalid_field")),
        ("POST", "deployments", b'{"model": "fa\\u0000ke"}', (400, "request.invalid_field")),
        ("POST", "deployments", b'{"model": "\\ud800"}', (400, "request.invalid_field")),
        ("POST", "deployments", b'{"model": "nope"}', (404, "registry.model_not_found")),
        ("POST", "deployments", b'{"model": "fake", "engine": "vllm9"}', (404, "engine.unknown")),
        ("POST", "deployments", b'{"model": "fake", "engine": "llamacpp"}', (400, "engine.format_unsupported")),
        ("POST", "deployments", b'{"model": "fake", "name": "A B"}', (400, "request.invalid_name")),
        ("POST", "deployments", b'{"model": "fake", "settings": {"port": 1}}', (400, "engine.setting_reserved")),
        ("POST", "deployments", b'{"model": "fake", "settings": {"x": 1}}', (400, "engine.setting_invalid")),
        ("POST", "deployments", b'{"model": "fake", "settings": {"tokens": NaN}}', (400, "engine.setting_invalid")),
        ("POST", "deployments", b'{"model": "fake", "engine_version": "1; rm"}', (400, "request.invalid_field")),
        ("POST", "pulls", b'{"name": "smolm2"}', (404, "source.not_found")),
        ("POST", "pulls", b'{"name": "x", "source": "builtin:fake"}', (400, "source.unsupported")),
        ("POST", "pulls", b'{"name": "x", "source": "file:/../etc"}', (400, "source.invalid")),
        ("POST", "pulls", b'{"name": "x", "source": "file:/a\\u0000b"}', (400, "request.invalid_field")),
        ("POST", "keys", b'{"name": "k", "expires_in_s": 0}', (400, "request.out_of_range")),
        ("POST", "keys", b'{"name": "k", "expires_in_s": true}', (400, "request.invalid_field")),
        ("PUT", "aliases/A", b'{"model": "fake"}', (400, "request.invalid_name")),
        ("PUT", "aliases/a", b'{"model": "nope"}', (404, "registry.model_not_found")),
        ("DELETE", "aliases/a", None, (404, "registry.alias_not_found")),
        ("DELETE", "models/a", None, (404, "registry.model_not_found")),
        ("DELETE", "deployments/a", None, (404, "deployment.not_found")),
        ("DELETE", "pulls/a", None, (404, "registry.pull_not_found")),
        ("DELETE", "keys/a", None, (404, "key.not_found")),
        ("GET", "replicas/a", None, (404, "replica.not_found")),
        ("GET", "replicas/a/logs", None, (404, "replica.not_found")),
        ("GET", "replicas/a/logs?tail=-1", None, (400, "request.out_of_range")),
        ("GET", "nodes/a", None, (404, "node.not_found")),
        ("GET", "models/%00", None, (404, "request.not_found")),
        ("GET", "models/%ff", None, (404, "registry.model_not_found")),
        ("GET", "events?after=99999999999999999999", None, (400, "request.out_of_range")),
        ("GET", "events?after=x", None, (400, "request.invalid_field")),
        ("GET", "usage?by=moon", None, (400, "request.invalid_field")),
        ("GET", "usage?since=yesterday", None, (400, "request.invalid_field")),
        ("GET", "usage?since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z", None, (400, "request.out_of_range")),
        ("GET", "nothing", None, (404, "request.not_found")),
        ("PUT", "models", b"{}", (405, "request.method_not_allowed")),
        ("POST", "pulls", b" " * (1024**2 + 1), (413, "request.body_too_large")),
    ],
    ids=lambda value: str(value)[:60],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_malformed_call_is_refused_in_the_documented_shape(
    shared: Cluster, method: str, path: str, body: bytes | None, expected: tuple[int, str]
) -> None:
    assert error(await shared.request(method, f"/api/v1/{path}", raw=body)) == expected


async def test_a_strange_host_is_refused(cluster: Cluster) -> None:
    answer = await cluster.request("GET", "/health", headers={"Host": "evil.example"}, token=None)
    assert error(answer) == (400, "request.invalid_field")


async def test_keys_are_shown_once_and_revoked(cluster: Cluster) -> None:
    made = await cluster.ok("POST", "keys", {"name": "app"})
    assert made["key"].startswith("slice_")
    assert error(await cluster.request("POST", "/api/v1/keys", {"name": "app"})) == (409, "key.name_taken")
    listed = await cluster.get("keys")
    assert [key["name"] for key in listed["items"]] == ["app"]
    assert "key" not in listed["items"][0]
    assert (await cluster.ok("DELETE", "keys/app"))["revoked_at"]
    assert (await cluster.ok("DELETE", f"keys/{made['kid']}"))["revoked_at"]
    await cluster.ok("POST", "keys", {"name": "app"})


async def test_events_are_followed_as_they_commit(cluster: Cluster) -> None:
    session: Any = cluster._session
    headers = {"Authorization": "Bearer operator-token"}
    async with asyncio.timeout(5), session.get(f"{cluster.base}/api/v1/events?follow=true", headers=headers) as answer:
        await cluster.ok("POST", "keys", {"name": "one"})
        assert b'"key_created"' in await answer.content.readline()
        await cluster.ok("POST", "keys", {"name": "two"})
        assert b"two" in await answer.content.readline()


async def test_copies_and_aliases_point_at_one_file(cluster: Cluster) -> None:
    await cluster.ok("POST", "pulls", {"name": "fake"})
    copy = await cluster.ok("POST", "models/fake/copy", {"to": "other"})
    assert copy["versions"][0]["digest"] == "builtin:fake"
    assert await cluster.ok("PUT", "aliases/chat", {"model": "other"}) == {
        "name": "chat",
        "model": "other",
        "version": None,
        "resource_version": 1,
    }
    assert (await cluster.get("models/chat"))["name"] == "other"
    assert error(await cluster.request("PUT", "/api/v1/aliases/fake", {"model": "other"}))[0] == 409
    assert error(await cluster.request("POST", "/api/v1/models/fake/copy", {"to": "chat"}))[0] == 409
    status, refused = await cluster.request("DELETE", "/api/v1/models/other")
    assert (status, refused["error"]["message"]) == (409, "model 'other' is used by alias chat")
    assert (await cluster.request("DELETE", "/api/v1/models/other?force=true"))[0] == 204
    assert (await cluster.get("aliases"))["items"] == []


async def test_a_mistyped_pull_is_told_of_the_model_alias_or_deployment_that_was_meant(cluster: Cluster) -> None:
    await cluster.ok("POST", "deployments", {"model": "fake", "name": "quick-brown-fox", "replicas": 0})
    await cluster.ok("POST", "models/fake/copy", {"to": "llama-tiny"})
    await cluster.ok("PUT", "aliases/conversation", {"model": "llama-tiny"})
    for typed, meant in (
        ("llama-tny", "llama-tiny"),
        ("conversaton", "conversation"),
        ("quick-brown-fx", "quick-brown-fox"),
        ("smolm2", "smollm2"),
    ):
        _, answer = await cluster.request("POST", "/api/v1/pulls", {"name": typed})
        assert answer["error"]["message"].endswith(f"Did you mean '{meant}'?")
        assert "--source " in answer["error"]["hint"]


async def test_a_refused_field_is_named_and_nobody_is_sent_to_a_schema(cluster: Cluster) -> None:
    _, unknown = await cluster.request("POST", "/api/v1/deployments", {"model": "fake", "extra": 1})
    assert (unknown["error"]["message"], unknown["error"]["hint"]) == ("the field 'extra' is not known", "")
    _, wrong = await cluster.request("POST", "/api/v1/deployments", {"model": "fake", "replicas": 1001})
    assert wrong["error"]["message"] == (
        "the field 'replicas' is not right: Input should be less than or equal to 1000"
    )
    assert wrong["error"]["hint"] == ""


async def test_metrics_and_status_tell_of_the_cluster(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket):

        async def is_counted() -> bool:
            return 'slice_nodes{state="ready"} 1.0' in (await cluster.request("GET", "/metrics"))[1]

        await until_async(is_counted)
        status = await cluster.get("status")
        assert status["nodes"] == {"ready": 1, "total": 1}
        node = await cluster.get("nodes/box")
        assert node["devices"][0]["free_bytes"] == 6 * 1024**3
        page = (await cluster.request("GET", "/metrics"))[1]
        for name in ("slice_reconcile_passes_total", "slice_reconcile_seconds", "slice_process_resident_bytes"):
            assert name in page


async def test_the_controller_outlives_its_database(server: Server, cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await cluster.ok("POST", "deployments", {"model": "fake", "engine": "fake"})

        async def is_ready() -> bool:
            return (await cluster.get("deployments/fake"))["state"] == "ready"

        async def is_routed() -> bool:
            return [len(one["targets"]) for one in (await cluster.get("routes"))["items"]] == [1]

        await until_async(is_ready)
        await until_async(is_routed)  # a pass publishes after it has written that it is ready
        await asyncio.to_thread(server.stop)
        try:
            answer = await cluster.request("GET", "/api/v1/models")
            assert error(answer) == (503, "storage.unavailable")
            assert len((await cluster.get("routes"))["items"][0]["targets"]) == 1
        finally:
            await asyncio.to_thread(server.start)

        async def is_back() -> bool:
            return (await cluster.request("GET", "/api/v1/deployments/fake"))[0] == 200

        await until_async(is_back)
        await until_async(is_ready)
        await cluster.ok("PATCH", "deployments/fake", {"replicas": 2})
        await node.until_told(lambda told: len(told.replicas) == 2)


async def test_a_controller_without_a_database_says_so_and_begins_when_it_comes(
    server: Server, url: str, runtime: Path
) -> None:
    await asyncio.to_thread(server.stop)
    try:
        async with Cluster(url, runtime) as cluster:
            assert await cluster.request("GET", "/health", token=None) == (503, {"status": "starting"})

            async def is_named() -> bool:
                return error(await cluster.request("GET", "/api/v1/models")) == (503, "storage.unavailable")

            await until_async(is_named)
            await asyncio.to_thread(server.start)
            await cluster.ready()
    finally:
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)


async def test_a_frozen_database_is_an_answer_and_not_a_hang(server: Server, cluster: Cluster) -> None:
    server.freeze()
    try:
        async with asyncio.timeout(8):
            answers = await asyncio.gather(*(cluster.request("GET", "/api/v1/models") for _ in range(3)))
        assert {error(answer) for answer in answers} == {(503, "storage.unavailable")}
        assert (await cluster.request("GET", "/api/v1/routes"))[0] == 200
    finally:
        server.thaw()

    async def is_back() -> bool:
        return (await cluster.request("GET", "/api/v1/models"))[0] == 200

    await until_async(is_back)
