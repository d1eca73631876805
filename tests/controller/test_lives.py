"""The life of models on a whole controller: versions side by side, pinned aliases, stages, switches, copies, ends."""

import asyncio
from typing import Any

import pytest

from tests.controller.cluster import Cluster
from tests.controller.played import PlayedDoor, PlayedNode
from tests.controller.test_api import error
from tests.controller.test_reconcile import until_gone, until_state
from tests.waiting import until_async


def source(number: int) -> str:
    return f"file:/models/m{number}.gguf#file={number:064x}"


async def with_versions(cluster: Cluster, node: PlayedNode, count: int, name: str = "m") -> None:
    """Give the model `name` so many GGUF versions, as pulls by the played node would."""
    for number in range(1, count + 1):
        pull = await cluster.ok("POST", "pulls", {"name": name, "source": source(number)})
        await node.finish_pull(pull["id"], f"{number:064x}")

        async def is_done(pull_id: str = pull["id"]) -> bool:
            return (await cluster.get(f"pulls/{pull_id}"))["state"] == "done"

        await until_async(is_done)


async def test_versions_run_side_by_side_under_names_of_their_own(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node, PlayedDoor(cluster.socket):
        await with_versions(cluster, node, 2)
        new = await cluster.ok("POST", "deployments", {"model": "m"})
        old = await cluster.ok("POST", "deployments", {"model": "m@v1", "name": "m-old"})
        assert (new["version"], old["version"]) == (2, 1)
        told = await node.until_told(lambda told: len(told.replicas) == 2)
        assert {(want.deployment, want.files[0].sha256) for want in told.replicas} == {
            ("m", f"{2:064x}"),
            ("m-old", f"{1:064x}"),
        }
        for name in ("m", "m-old"):
            await until_state(cluster, name, "ready")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("fake@v9", (404, "registry.version_not_found")),
        ("fake@", (400, "request.invalid_name")),
        ("fake@x", (400, "request.invalid_name")),
        ("fake@v1@v2", (400, "request.invalid_name")),
        ("@v1", (400, "request.invalid_name")),
        ("fakee@v1", (404, "registry.model_not_found")),
    ],
)
async def test_a_version_that_is_none_is_refused(cluster: Cluster, model: str, expected: tuple[int, str]) -> None:
    await cluster.ok("POST", "pulls", {"name": "fake"})
    assert error(await cluster.request("POST", "/api/v1/deployments", {"model": model})) == expected
    assert error(await cluster.request("PUT", "/api/v1/aliases/chat", {"model": model})) == expected


async def test_a_deployment_goes_to_another_version_without_a_moment_unserved(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket, obeys=False) as node, PlayedDoor(cluster.socket) as door:
        await with_versions(cluster, node, 2)
        await cluster.ok("POST", "deployments", {"model": "m@v1"})
        first = (await node.until_told(lambda told: len(told.replicas) == 1)).replicas[0]
        await node.set(first.replica_id, "ready")
        await door.until_routed("m", 1)
        changed = await cluster.ok("PATCH", "deployments/m", {"version": 2, "resource_version": 1})
        assert (changed["version"], changed["generation"], changed["resource_version"]) == (2, 2, 2)
        told = await node.until_told(lambda told: len(told.replicas) == 2)
        files = {want.replica_id: want.files[0].sha256 for want in told.replicas}
        second = next(one for one in files if one != first.replica_id)
        assert files == {first.replica_id: f"{1:064x}", second: f"{2:064x}"}, "the old one keeps its own files"
        assert door.route("m").targets[0].replica_id == first.replica_id  # type: ignore[union-attr]
        await node.set(second, "ready", port=20041)

        async def is_switched() -> bool:
            route = door.route("m")
            return route is not None and [one.replica_id for one in route.targets] == [second]

        await until_async(is_switched)
        seen = [len(table.routes[0].targets) for table in door.tables if table.routes]
        assert 0 not in seen[seen.index(1) :]


async def test_a_pinned_alias_goes_to_its_version_alone_and_moves_at_once(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node, PlayedDoor(cluster.socket) as door:
        await with_versions(cluster, node, 3)
        await cluster.ok("POST", "deployments", {"model": "m@v1", "name": "one"})
        await cluster.ok("POST", "deployments", {"model": "m@v2", "name": "two"})
        made = await cluster.ok("PUT", "aliases/chat", {"model": "m@v1"})
        assert (made["model"], made["version"], made["resource_version"]) == ("m", 1, 1)
        assert (await door.until_routed("chat", 1)).deployment == "one"
        await cluster.ok("PUT", "aliases/chat", {"model": "m@v2", "resource_version": 1})

        async def is_moved() -> bool:
            route = door.route("chat")
            return route is not None and route.deployment == "two"

        await until_async(is_moved)
        targets = [[len(r.targets) for r in table.routes if r.public_name == "chat"] for table in door.tables]
        assert [] not in targets[targets.index([1]) :]
        assert [0] not in targets[targets.index([1]) :]
        await cluster.ok("PUT", "aliases/chat", {"model": "m@v3"})

        async def is_waiting() -> bool:
            route = door.route("chat")
            return route is not None and route.waiting == "model m@v3 is not deployed"

        await until_async(is_waiting)
        again = await cluster.ok("PUT", "aliases/chat", {"model": "m@v3"})
        assert again["resource_version"] == 3, "what changes nothing counts nothing"


async def test_stages_move_by_the_table_and_keep_their_history(cluster: Cluster) -> None:
    await cluster.ok("POST", "pulls", {"name": "fake"})
    shown = await cluster.get("models/fake")
    assert (shown["versions"][0]["stage"], shown["resource_version"]) == ("candidate", 2)
    path = "models/fake/versions/1/stage"
    status, refused = await cluster.request("PUT", f"/api/v1/{path}", {"stage": "production"})
    assert (status, refused["error"]["code"]) == (409, "registry.stage_conflict")
    assert refused["error"]["hint"] == "from candidate it may go to: staging, retired"
    for stage in ("staging", "production", "production", "retired"):
        moved = await cluster.ok("PUT", path, {"stage": stage, "reason": f"to {stage}"})
        assert (moved["model"], moved["stage"]) == ("fake", stage)
    history = (await cluster.get("models/fake/versions/1/stages"))["items"]
    assert [(one["from"], one["to"], one["reason"]) for one in history] == [
        ("candidate", "staging", "to staging"),
        ("staging", "production", "to production"),
        ("production", "retired", "to retired"),
    ]
    events = [one for one in (await cluster.get("events?limit=1000"))["items"] if one["kind"] == "stage_moved"]
    assert [one["data"]["to"] for one in events] == ["staging", "production", "retired"]
    status, refused = await cluster.request("POST", "/api/v1/deployments", {"model": "fake"})
    assert (status, refused["error"]["message"]) == (404, "every version of model 'fake' is retired")
    assert (await cluster.ok("POST", "deployments", {"model": "fake@v1"}))["version"] == 1


async def test_a_stage_of_a_version_that_is_none_is_refused(cluster: Cluster) -> None:
    for path, expected in (
        ("models/nope/versions/1/stage", (404, "registry.model_not_found")),
        ("models/fake/versions/2/stage", (404, "registry.version_not_found")),
        ("models/fake/versions/0/stage", (400, "request.out_of_range")),
        ("models/fake/versions/x/stage", (400, "request.invalid_field")),
    ):
        await cluster.ok("POST", "pulls", {"name": "fake"})
        assert error(await cluster.request("PUT", f"/api/v1/{path}", {"stage": "staging"})) == expected
    answer = await cluster.request("PUT", "/api/v1/models/fake/versions/1/stage", {"stage": "prod"})
    assert error(answer) == (400, "request.invalid_field")


@pytest.mark.parametrize("answer", ["not_found", "unavailable"])
async def test_a_disabled_deployment_drains_stops_and_comes_back(cluster: Cluster, answer: str) -> None:
    async with PlayedNode(cluster.socket) as node, PlayedDoor(cluster.socket) as door:
        await cluster.ok("POST", "deployments", {"model": "fake", "replicas": 2})
        await cluster.ok("PUT", "aliases/chat", {"model": "fake"})
        await door.until_routed("fake", 2)
        door.loads = {door.route("fake").targets[0].replica_id: 1}  # type: ignore[union-attr]
        await door.report()
        body = {"is_enabled": False, "disabled_answer": answer}
        changed = await cluster.ok("PATCH", "deployments/fake", body)
        assert (changed["is_enabled"], changed["disabled_answer"], changed["state"]) == (False, answer, "disabled")
        for name in ("fake", "chat"):
            assert (await door.until_routed(name, 0)).disabled == answer
        busy = next(iter(door.loads))
        # The idle one is gone; the one with a stream drains.
        await node.until_told(
            lambda told: [(want.replica_id, want.desired) for want in told.replicas] == [(busy, "drain")]
        )
        door.loads = {}
        await door.report()
        await node.until_told(lambda told: not told.replicas)
        waiting = (await cluster.get("deployments/fake"))["waiting"]
        assert waiting == "it is disabled"
        assert (await cluster.get("deployments/fake"))["replicas"] == 2
        await cluster.ok("PATCH", "deployments/fake", {"is_enabled": True})
        assert (await door.until_routed("fake", 2)).disabled == ""
        assert (await until_state(cluster, "fake", "ready"))["generation"] == 3


async def test_an_alias_prefers_what_is_enabled(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket), PlayedDoor(cluster.socket) as door:
        await cluster.ok("POST", "deployments", {"model": "fake", "is_enabled": False})
        await cluster.ok("POST", "deployments", {"model": "fake", "name": "second"})
        await cluster.ok("PUT", "aliases/chat", {"model": "fake"})
        assert (await door.until_routed("chat", 1)).deployment == "second"


async def test_a_deployment_is_copied_with_other_settings(cluster: Cluster) -> None:
    await cluster.ok("POST", "deployments", {"model": "fake", "settings": {"tokens": 3}, "requires": ["chat"]})
    await cluster.ok("PATCH", "deployments/fake", {"is_enabled": False})
    made = await cluster.ok("POST", "deployments/fake/copy", {"to": "other", "settings": {"start_delay_s": 1}})
    assert (made["name"], made["settings"]["tokens"], made["settings"]["start_delay_s"]) == ("other", 3, 1.0)
    assert (made["requires"], made["is_enabled"], made["generation"]) == (["chat"], True, 1)
    for body, expected in (
        ({"to": "other"}, (409, "deployment.name_taken")),
        ({"to": "A b"}, (400, "request.invalid_name")),
        ({"to": "third", "settings": {"nope": 1}}, (400, "engine.setting_invalid")),
        ({"to": "third", "resource_version": 1}, (409, "request.version_conflict")),
    ):
        assert error(await cluster.request("POST", "/api/v1/deployments/fake/copy", body)) == expected
    assert error(await cluster.request("POST", "/api/v1/deployments/nope/copy", {"to": "x"}))[0] == 404


async def test_a_version_in_use_is_named_with_all_its_users_and_its_number_never_comes_back(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node, PlayedDoor(cluster.socket):
        await with_versions(cluster, node, 2)
        await cluster.ok("POST", "deployments", {"model": "m@v2", "name": "big"})
        await cluster.ok("POST", "deployments", {"model": "m@v2", "name": "small"})
        await cluster.ok("PUT", "aliases/chat", {"model": "m@v2"})
        await cluster.ok("PUT", "aliases/any", {"model": "m"})
        await until_state(cluster, "big", "ready")
        status, refused = await cluster.request("DELETE", "/api/v1/models/m/versions/2")
        assert (status, refused["error"]["code"]) == (409, "registry.model_in_use")
        assert refused["error"]["message"] == "model 'm@v2' is used by deployments big, small and alias chat"
        _, refused = await cluster.request("DELETE", "/api/v1/models/m")
        assert refused["error"]["message"] == "model 'm' is used by deployments big, small and aliases any, chat"
        assert (await cluster.request("DELETE", "/api/v1/models/m/versions/1"))[0] == 204
        assert (await cluster.request("DELETE", "/api/v1/models/m/versions/2?force=true"))[0] == 204
        assert (await cluster.get("models/m"))["versions"] == []
        assert [one["name"] for one in (await cluster.get("aliases"))["items"]] == ["any"]
        await until_gone(cluster, "big")
        await until_gone(cluster, "small")
        pull = await cluster.ok("POST", "pulls", {"name": "m", "source": source(2)})
        await node.finish_pull(pull["id"], f"{2:064x}")

        async def is_back() -> bool:
            return [one["number"] for one in (await cluster.get("models/m"))["versions"]] == [3]

        await until_async(is_back)


async def test_required_capabilities_choose_or_refuse_the_engine(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await with_versions(cluster, node, 1)
        made = await cluster.ok("POST", "deployments", {"model": "m", "requires": ["tools", "embeddings"]})
        assert (made["engine"], made["requires"]) == ("llamacpp", ["embeddings", "tools"])
        fake = {"model": "m", "name": "n", "engine": "fake", "requires": ["tools"]}
        status, refused = await cluster.request("POST", "/api/v1/deployments", fake)
        assert (status, refused["error"]["code"]) == (409, "engine.capability_missing")
        assert "llamacpp" in refused["error"]["hint"]
        off = {"settings": {"embeddings": False}}
        status, refused = await cluster.request("PATCH", "/api/v1/deployments/m", off)
        assert (status, refused["error"]["code"]) == (409, "engine.capability_missing")
        assert refused["error"]["hint"] == "llamacpp has it with --set embeddings=true"
        await cluster.ok("PATCH", "deployments/m", {**off, "requires": []})
        wrong = {"model": "m", "name": "n", "requires": ["tool"]}
        status, refused = await cluster.request("POST", "/api/v1/deployments", wrong)
        assert (status, refused["error"]["code"]) == (400, "request.invalid_field")
        assert "Did you mean 'tools'?" in refused["error"]["message"]


async def test_an_unknown_engine_version_is_refused_with_those_that_exist(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket):

        async def is_here() -> bool:
            return bool((await cluster.get("nodes"))["items"])

        await until_async(is_here)
        wrong = {"model": "fake", "engine": "fake", "engine_version": "99"}
        status, refused = await cluster.request("POST", "/api/v1/deployments", wrong)
        assert (status, refused["error"]["code"]) == (404, "engine.version_unknown")
        assert refused["error"]["hint"].startswith("known versions: ")
        made = await cluster.ok("POST", "deployments", {**wrong, "engine_version": "1"})
        assert made["engine_version"] == "1", "the node says that it has this one"
        answer = await cluster.request("PATCH", "/api/v1/deployments/fake", {"engine_version": "99"})
        assert error(answer) == (404, "engine.version_unknown")


@pytest.mark.parametrize("name", ["../../etc", "x" * 300, "a\u202eb", "A", "a/b", "-a", "a b", ""], ids=repr)
async def test_a_bad_name_of_a_deployment_is_refused(cluster: Cluster, name: str) -> None:
    await cluster.ok("POST", "pulls", {"name": "fake"})
    for path, body in (
        ("deployments", {"model": "fake", "name": name}),
        ("models/fake/copy", {"to": name}),
    ):
        status, refused = await cluster.request("POST", f"/api/v1/{path}", body)
        assert status == 400
        assert refused["error"]["code"] in ("request.invalid_name", "request.out_of_range"), refused
    assert (await cluster.get("deployments"))["items"] == []


@pytest.mark.parametrize(
    ("replicas", "code"),
    [
        (-1, "request.out_of_range"),
        (10**9, "request.out_of_range"),
        ("3", "request.invalid_field"),
        (1.5, "request.invalid_field"),
        (True, "request.invalid_field"),
    ],
)
async def test_a_bad_number_of_replicas_is_refused(cluster: Cluster, replicas: Any, code: str) -> None:
    await cluster.ok("POST", "deployments", {"model": "fake"})
    body = {"model": "fake", "name": "x", "replicas": replicas}
    assert error(await cluster.request("POST", "/api/v1/deployments", body)) == (400, code)
    assert error(await cluster.request("PATCH", "/api/v1/deployments/fake", {"replicas": replicas})) == (400, code)


@pytest.mark.parametrize("name", ["--host", "--trust-remote-code", "host", "api-key", "api_key", "Port", "served-name"])
async def test_settings_that_are_slices_own_are_refused(cluster: Cluster, name: str) -> None:
    body = {"model": "fake", "settings": {name: "0.0.0.0"}}
    status, refused = await cluster.request("POST", "/api/v1/deployments", body)
    assert (status, refused["error"]["code"], refused["error"]["param"]) == (400, "engine.setting_reserved", name)


async def test_a_change_of_what_somebody_else_has_changed_is_refused_with_the_current_version(cluster: Cluster) -> None:
    await cluster.ok("POST", "deployments", {"model": "fake"})
    await cluster.ok("PATCH", "deployments/fake", {"replicas": 2, "resource_version": 1})
    await cluster.ok("PUT", "aliases/chat", {"model": "fake"})
    version = (await cluster.get("models/fake"))["resource_version"]
    stale: list[tuple[str, str, dict[str, Any]]] = [
        ("PATCH", "deployments/fake", {"replicas": 3}),
        ("DELETE", "deployments/fake", {}),
        ("PUT", "aliases/chat", {"model": "fake"}),
        ("DELETE", "aliases/chat", {}),
        ("PUT", "models/fake/versions/1/stage", {"stage": "staging"}),
        ("DELETE", "models/fake/versions/1?force=true", {}),
        ("DELETE", "models/fake?force=true", {}),
    ]
    for method, path, body in stale:
        status, refused = await cluster.request(method, f"/api/v1/{path}", {**body, "resource_version": 77})
        assert (status, refused["error"]["code"]) == (409, "request.version_conflict"), path
        assert (
            f"it is at resource version {({'d': 2, 'a': 1, 'm': version})[path[0]]}, not 77"
            in (refused["error"]["message"])
        )
        answer = await cluster.request(method, f"/api/v1/{path}", body or None, headers={"If-Match": '"77"'})
        assert error(answer) == (409, "request.version_conflict")
    assert (await cluster.get("deployments/fake"))["replicas"] == 2
    both = await cluster.request(
        "PATCH", "/api/v1/deployments/fake", {"replicas": 3, "resource_version": 2}, headers={"If-Match": "3"}
    )
    assert error(both) == (400, "request.invalid_field")
    wrong = await cluster.request("PATCH", "/api/v1/deployments/fake", {"replicas": 3}, headers={"If-Match": "abc"})
    assert error(wrong) == (400, "request.invalid_field")
    for header in ('"2"', "*", 'W/"3"'):
        answer = await cluster.request(
            "PATCH", "/api/v1/deployments/fake", {"replicas": 4 + len(header)}, headers={"If-Match": header}
        )
        assert answer[0] == 200, (header, answer)
        if header == "*":
            await cluster.ok("PATCH", "deployments/fake", {"replicas": 1, "if_generation": 4})
            await cluster.ok("PATCH", "deployments/fake", {"replicas": 1, "resource_version": 5})
            answer = await cluster.request("PATCH", "/api/v1/deployments/fake", {"replicas": 2, "if_generation": 4})
            assert error(answer) == (409, "deployment.version_conflict")
            break


async def test_of_many_changes_at_one_resource_version_one_is_made(cluster: Cluster) -> None:
    await cluster.ok("POST", "deployments", {"model": "fake"})
    answers = await asyncio.gather(
        *(
            cluster.request("PATCH", "/api/v1/deployments/fake", {"replicas": count, "resource_version": 1})
            for count in range(2, 10)
        )
    )
    assert sorted(status for status, _ in answers) == [200, *[409] * 7]
