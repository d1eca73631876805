"""Engines through the whole controller: wishes become desired sets, reports become what is shown, upgrades move."""

from typing import Any

import pytest

from adapters import registry
from protos.slice.node.v1 import node_pb2
from tests.controller.cluster import Cluster
from tests.controller.played import PlayedDoor, PlayedNode
from tests.controller.test_reconcile import SMOL, until_state
from tests.waiting import until_async

LLAMACPP = registry.adapter("llamacpp")
DEFAULT = LLAMACPP.default_version
DIGEST = "c6eb396dbd5992bbe3f5cdb947e8bbc0ee413d7c17e2beaae69f5d569cf982eb"


def fact(*installs: node_pb2.EngineInstall, engine: str = "llamacpp", **fields: Any) -> node_pb2.EngineFact:
    ready = [one.version for one in installs if one.state == "ready"]
    return node_pb2.EngineFact(
        engine=engine, is_usable=True, device_kinds=["cpu"], installed_versions=ready, installs=installs, **fields
    )


def install(version: str, state: str = "ready", **fields: Any) -> node_pb2.EngineInstall:
    return node_pb2.EngineInstall(version=version, state=state, size_bytes=fields.pop("size_bytes", 7), **fields)


async def refused(cluster: Cluster, method: str, path: str, body: object = None) -> tuple[int, str]:
    status, answer = await cluster.request(method, f"/api/v1/{path}", body)
    assert status >= 400, answer
    return status, answer["error"]["code"]


async def shown(cluster: Cluster, version: str = DEFAULT, node: str = "box") -> dict[str, Any] | None:
    engine = await cluster.get("engines/llamacpp")
    installs = [one for item in engine["nodes"] if item["node"] == node for one in item["installs"]]
    return next((one for one in installs if one["version"] == version), None)


async def until_shown(cluster: Cluster, state: str | None, version: str = DEFAULT, node: str = "box") -> Any:
    async def is_so() -> bool:
        found = await shown(cluster, version, node)
        return (found["state"] if found else None) == state

    await until_async(is_so, timeout_s=10, what=f"llamacpp {version} {state} on {node}")
    return await shown(cluster, version, node)


async def reports(node: PlayedNode, *facts: node_pb2.EngineFact) -> None:
    node.engines = list(facts)
    await node.observe()


async def deployed(cluster: Cluster, node: PlayedNode, *names: str) -> None:
    """Deploy smollm2 on llama.cpp under each name."""
    pull = await cluster.ok("POST", "pulls", {"name": "smollm2"})
    await node.until_told(lambda told: told.files)
    await node.finish_pull(pull["id"], SMOL)

    async def is_done() -> bool:
        return (await cluster.get(f"pulls/{pull['id']}"))["state"] == "done"

    await until_async(is_done)
    for name in names:
        await cluster.ok("POST", "deployments", {"model": "smollm2", "name": name})
        await until_state(cluster, name, "ready")


async def test_every_engine_is_listed_with_what_it_can(cluster: Cluster) -> None:
    engines = {one["name"]: one for one in (await cluster.get("engines"))["items"]}
    assert set(engines) == {adapter.name for adapter in registry.adapters()}
    found = engines["llamacpp"]
    assert (found["default_version"], found["formats"], found["is_program"]) == (DEFAULT, ["gguf"], False)
    assert {"chat", "seed"} <= set(found["capabilities"])
    assert found["nodes"] == []
    assert await refused(cluster, "GET", "engines/llamacp") == (404, "engine.unknown")


async def test_a_wanted_version_goes_to_the_node_and_its_progress_comes_back(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await node.until_told(lambda told: True)
        answer = await cluster.ok("POST", "engines/llamacpp/install", {})
        assert answer["version"] == DEFAULT
        told = await node.until_told(lambda told: len(told.engines) == 1)
        assert (told.engines[0].engine, told.engines[0].version, told.engines[0].is_removed) == (
            "llamacpp",
            DEFAULT,
            False,
        )
        queued = await shown(cluster)
        assert queued is not None
        assert (queued["state"], queued["is_wanted"], queued["is_default"]) == ("queued", True, True)
        for step in ("downloading torch", "unpacking 3 packages"):
            await reports(node, fact(install(DEFAULT, "installing", message=step)))

            async def is_told(step: str = step) -> bool:
                found = await shown(cluster)
                return found is not None and found["message"] == step

            await until_async(is_told)
        await reports(node, fact(install(DEFAULT, digest=DIGEST)))
        ready = await until_shown(cluster, "ready")
        assert (ready["digest"], ready["size_bytes"], ready["warning"]) == (DIGEST, 7, "")
        await reports(node, fact(install(DEFAULT, "failed", code="disk.full", message="2 GiB more must be free")))
        failed = await until_shown(cluster, "failed")
        assert (failed["code"], failed["message"]) == ("disk.full", "2 GiB more must be free")
        kinds = [event["kind"] for event in (await cluster.get("events?limit=1000"))["items"]]
        assert "engine_wanted" in kinds


async def test_a_node_that_was_away_hears_of_it_when_it_is_back(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await node.until_told(lambda told: True)
        await node.hang_up()
        await cluster.ok("POST", "engines/llamacpp/install", {"node": "box"})
        assert (await shown(cluster) or {})["state"] == "queued"
        await node.dial()
        await node.until_told(lambda told: len(told.engines) == 1)


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("llamacpp/install", {"version": "9.9"}, (404, "engine.version_unknown")),
        ("llamacpp/install", {"node": "bix"}, (404, "node.not_found")),
        ("llamacpp/install", {"source": "file:/x"}, (400, "source.unsupported")),
        ("llamacpp/install", {"version": "1; rm"}, (400, "request.invalid_field")),
        ("fake/install", {}, (400, "request.invalid_field")),
        ("nope/install", {}, (404, "engine.unknown")),
        ("llamacpp/remove", {"version": DEFAULT}, (409, "engine.not_installed")),
        ("llamacpp/upgrade", {"version": "9.9"}, (404, "engine.version_unknown")),
        ("llamacpp/upgrade", {"version": DEFAULT, "deployments": ["nope"]}, (404, "deployment.not_found")),
        ("llamacpp/upgrade", {"version": DEFAULT, "deployments": "some"}, (400, "request.invalid_field")),
        ("llamacpp/rollback", {}, (404, "engine.version_unknown")),
        ("ollama/adopt", {"url": "http://10.0.0.1:11434"}, (400, "request.invalid_field")),
        ("ollama/install", {"version": "0.33.0"}, (400, "source.invalid")),
        ("ollama/install", {"version": "0.17.0", "source": "file:/o"}, (409, "engine.below_floor")),
        ("llamacpp/adopt", {"url": "http://127.0.0.1:11434"}, (400, "engine.runtime_unsupported")),
    ],
    ids=str,
)
async def test_a_wish_that_cannot_be_says_why(
    cluster: Cluster, path: str, body: object, expected: tuple[int, str]
) -> None:
    async with PlayedNode(cluster.socket) as node:
        await node.until_told(lambda told: True)
        assert await refused(cluster, "POST", f"engines/{path}", body) == expected
        assert not node.last.engines


async def test_an_unlisted_version_is_installed_when_somebody_insists(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await node.until_told(lambda told: True)
        await cluster.ok("POST", "engines/llamacpp/install", {"version": "9.9", "allow_unlisted": True})
        told = await node.until_told(lambda told: len(told.engines) == 1)
        assert told.engines[0].version == "9.9"
        await reports(node, fact(install("9.9")))
        await until_shown(cluster, "ready", "9.9")
        await cluster.ok("POST", "engines/llamacpp/install", {"version": "9.9"})


async def test_a_removal_is_refused_while_used_and_forgotten_when_done(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node, PlayedDoor(cluster.socket):
        await deployed(cluster, node, "chat")
        await reports(node, fact(install(DEFAULT)))
        used = await until_shown(cluster, "ready")
        assert used["deployments"] == ["chat"]
        status, answer = await cluster.request("POST", "/api/v1/engines/llamacpp/remove", {"version": DEFAULT})
        assert (status, answer["error"]["code"], "chat" in answer["error"]["message"]) == (409, "engine.in_use", True)
        await cluster.ok("DELETE", "deployments/chat")
        await node.until_told(lambda told: not told.replicas)
        await cluster.ok("POST", "engines/llamacpp/remove", {"version": DEFAULT, "force": True})
        told = await node.until_told(lambda told: len(told.engines) == 1)
        assert told.engines[0].is_removed
        assert (await until_shown(cluster, "removing"))["is_wanted"] is False
        await reports(node, fact())
        await node.until_told(lambda told: not told.engines)
        await until_shown(cluster, None)


async def test_a_removal_names_the_default_and_idle_deployments_that_pin_it_and_goes_on_by_force(
    cluster: Cluster,
) -> None:
    async with PlayedNode(cluster.socket) as node, PlayedDoor(cluster.socket):
        await deployed(cluster, node, "chat")
        await reports(node, fact(install(DEFAULT), install("9.8")))
        await until_shown(cluster, "ready", "9.8")
        for name, more in (("off", {"is_enabled": False}), ("none", {"replicas": 0}), ("away", {"node": "far"})):
            body = {"model": "smollm2", "name": name, "engine_version": "9.8", **more}
            await cluster.ok("POST", "deployments", body)
        path = "/api/v1/engines/llamacpp/remove"
        status, answer = await cluster.request("POST", path, {"version": "9.8"})
        assert (status, answer["error"]["code"]) == (409, "engine.in_use")
        assert answer["error"]["message"] == "llamacpp 9.8 is pinned by none, off (disabled)"
        assert "force" in answer["error"]["hint"]
        await cluster.ok("POST", "engines/llamacpp/remove", {"version": "9.8", "force": True})
        await node.until_told(lambda told: [(one.version, one.is_removed) for one in told.engines] == [("9.8", True)])

        for body in ({"version": DEFAULT}, {"version": DEFAULT, "force": True}):
            status, answer = await cluster.request("POST", path, body)
            assert (status, answer["error"]["code"]) == (409, "engine.in_use"), "no force stops a replica"
            assert answer["error"]["message"] == (
                f"llamacpp {DEFAULT} runs for chat, and is the version that new deployments get"
            )
        await cluster.ok("DELETE", "deployments/chat")
        await node.until_told(lambda told: not told.replicas)
        _, answer = await cluster.request("POST", path, {"version": DEFAULT})
        assert answer["error"]["message"] == f"llamacpp {DEFAULT} is the version that new deployments get"


async def test_a_failed_install_that_is_to_go_is_shown_as_going_and_what_cannot_go_says_so(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await node.until_told(lambda told: True)
        await cluster.ok("POST", "engines/llamacpp/install", {"version": "9.9", "allow_unlisted": True})
        await reports(node, fact(install("9.9", "failed", size_bytes=0, code="disk.full", message="2 GiB more")))
        await until_shown(cluster, "failed", "9.9")
        await cluster.ok("POST", "engines/llamacpp/remove", {"version": "9.9"})
        going = await until_shown(cluster, "removing", "9.9")
        assert (going["code"], going["message"]) == ("", "the node is about to remove it")
        words = "it cannot be removed: permission denied"
        await reports(node, fact(install("9.9", "failed", code="engine.remove_failed", message=words)))
        kept = await until_shown(cluster, "failed", "9.9")
        assert (kept["code"], kept["message"]) == ("engine.remove_failed", words)


async def test_a_rollback_takes_back_the_wish_to_remove_what_it_returns_to(cluster: Cluster) -> None:
    async with (
        PlayedNode(cluster.socket) as node,
        PlayedNode(cluster.socket, node_id="nod_2", name="far", machine_id="m2") as far,
    ):
        for one in (node, far):
            await one.until_told(lambda told: True)
            await reports(one, fact(install(DEFAULT), install("9.9")))
        for name in ("box", "far"):
            await until_shown(cluster, "ready", "9.9", name)
        await cluster.ok("POST", "engines/llamacpp/upgrade", {"version": "9.9"})
        await far.hang_up()
        await cluster.ok("POST", "engines/llamacpp/remove", {"version": DEFAULT})
        await node.until_told(lambda told: any(one.is_removed for one in told.engines))
        await cluster.ok("POST", "engines/llamacpp/rollback", {})
        await node.until_told(lambda told: told.engines and not any(one.is_removed for one in told.engines))
        await far.dial()
        both = [("9.9", False), (DEFAULT, False)]
        await far.until_told(lambda told: sorted((one.version, one.is_removed) for one in told.engines) == sorted(both))


async def test_what_slice_did_not_install_it_does_not_remove(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await node.until_told(lambda told: True)
        await reports(node, fact(install("1.2", size_bytes=0, message="found at /usr/bin/x")))
        await until_shown(cluster, "ready", "1.2")
        status, answer = await cluster.request("POST", "/api/v1/engines/llamacpp/remove", {"version": "1.2"})
        assert (status, answer["error"]["code"]) == (409, "engine.not_installed")
        assert "found at /usr/bin/x" in answer["error"]["message"]


async def version_of(cluster: Cluster, name: str) -> str:
    return str((await cluster.get(f"deployments/{name}"))["engine_version"])


async def test_an_upgrade_moves_what_ran_the_default_and_a_rollback_moves_it_back(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await deployed(cluster, node, "one", "two")
        await reports(node, fact(install(DEFAULT), install("9.8"), install("9.9")))
        await until_shown(cluster, "ready", "9.9")
        pinned = {"model": "smollm2", "name": "pinned", "engine_version": "9.8"}
        await cluster.ok("POST", "deployments", pinned)
        before = await cluster.get("deployments/one")
        answer = await cluster.ok("POST", "engines/llamacpp/upgrade", {"version": "9.9"})
        assert (answer["moved"], answer["default_version"], answer["previous_version"]) == (
            ["one", "two"],
            "9.9",
            DEFAULT,
        )
        assert await version_of(cluster, "pinned") == "9.8"
        told = await node.until_told(
            lambda told: (
                sorted(want.engine_version for want in told.replicas if want.desired == "run") == ["9.8", "9.9", "9.9"]
            )
        )
        assert {want.version for want in told.engines} == {"9.9"}
        assert (await until_state(cluster, "one", "ready"))["generation"] == before["generation"] + 1
        await cluster.ok("POST", "deployments", {"model": "smollm2", "name": "new"})
        assert await version_of(cluster, "new") == "9.9"

        back = await cluster.ok("POST", "engines/llamacpp/rollback", {"deployments": ["one"]})
        assert (back["moved"], back["version"], back["previous_version"]) == (["one"], DEFAULT, "9.9")
        assert (await version_of(cluster, "one"), await version_of(cluster, "two")) == (DEFAULT, "9.9")
        again = await cluster.ok("POST", "engines/llamacpp/rollback", {"deployments": "none"})
        assert (again["moved"], again["version"]) == ([], "9.9")


async def test_a_named_deployment_of_another_engine_is_not_moved_and_nothing_else_either(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await deployed(cluster, node, "one")
        await cluster.ok("POST", "deployments", {"model": "fake", "name": "drill", "engine": "fake"})
        await reports(node, fact(install("9.9")))
        await until_shown(cluster, "ready", "9.9")
        body = {"version": "9.9", "deployments": ["one", "drill"]}
        assert await refused(cluster, "POST", "engines/llamacpp/upgrade", body) == (400, "request.invalid_field")
        assert await version_of(cluster, "one") == DEFAULT
        assert (await cluster.get("engines/llamacpp"))["default_version"] == DEFAULT


# -- adopted engines --------------------------------------------------------------------------------------------------


def adopted(*names: str, digest: str = DIGEST, message: str = "") -> node_pb2.EngineFact:
    models = [
        node_pb2.AdoptedModel(name=name, sha256=digest, size_bytes=9, format="gguf", architecture="gemma4")
        for name in names
    ]
    engine = node_pb2.AdoptedEngine(base_url="http://127.0.0.1:11434", version="0.33.0", models=models, message=message)
    return fact(engine="ollama", adopted=engine)


async def model_names(cluster: Cluster) -> set[str]:
    return {one["name"] for one in (await cluster.get("models"))["items"]}


async def until_models(cluster: Cluster, *names: str) -> None:
    async def are_there() -> bool:
        return set(names) <= await model_names(cluster)

    await until_async(are_there, timeout_s=5, what=f"models {names}")


async def test_the_models_of_an_adopted_engine_are_listed_and_unavailable_when_they_go(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await node.until_told(lambda told: True)
        await reports(node, adopted("gemma4:latest", "Qwen2.5:0.5B"))
        await until_models(cluster, "gemma4", "qwen2.5-0.5b")
        version = (await cluster.get("models/gemma4"))["versions"][0]
        assert (version["format"], version["source"], version["digest"]) == (
            "ollama",
            "adopted:box/gemma4:latest",
            f"sha256:{DIGEST}",
        )
        assert (version["is_available"], version["adopted_on"], version["files"]) == (True, ["box"], [])
        await reports(node, adopted("Qwen2.5:0.5B", digest="a" * 64))

        async def has_gone() -> bool:
            return not (await cluster.get("models/gemma4"))["versions"][0]["is_available"]

        await until_async(has_gone)
        assert "gemma4" in await model_names(cluster)
        versions = (await cluster.get("models/qwen2.5-0.5b"))["versions"]
        assert [(one["number"], one["is_available"]) for one in versions] == [(1, False), (2, True)]


async def test_an_adopted_model_never_becomes_a_version_of_ours(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await deployed(cluster, node, "chat")
        await reports(node, adopted("smollm2:latest"))
        await until_models(cluster, "smollm2-ollama")
        assert len((await cluster.get("models/smollm2"))["versions"]) == 1


@pytest.mark.skipif(
    not any("ollama" in adapter.formats for adapter in registry.adapters()),
    reason="no adapter of this tree eats the models of an adopted Ollama",
)
async def test_an_adopted_model_is_deployed_on_its_node_under_its_name_there(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await node.until_told(lambda told: True)
        await cluster.ok("POST", "engines/ollama/adopt", {"url": "http://127.0.0.1:11434"})
        told = await node.until_told(lambda told: len(told.engines) == 1)
        assert told.engines[0].adopt_url == "http://127.0.0.1:11434"
        await reports(node, adopted("gemma4:latest"))
        await until_models(cluster, "gemma4")
        made = await cluster.ok("POST", "deployments", {"model": "gemma4"})
        assert made["engine"] == "ollama"
        assert made["settings"]["address"] == "http://127.0.0.1:11434"
        assert made["settings"]["remote_model"] == "gemma4:latest"
        # Deployments show their runtime in trees whose nodes can probe an engine that is not theirs.
        if "runtime" in made:
            assert made["runtime"] == "external"
            want = (await node.until_told(lambda told: len(told.replicas) == 1)).replicas[0]
            assert want.runtime == "external"
        await reports(node, adopted())

        async def is_refused() -> bool:
            status, answer = await cluster.request("POST", "/api/v1/deployments", {"model": "gemma4", "name": "late"})
            return status == 404 and answer["error"]["code"] == "registry.version_not_found"

        await until_async(is_refused)


async def test_an_adopted_deployment_goes_to_another_version_with_its_place(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await node.until_told(lambda told: True)
        await reports(node, adopted("gemma4:latest"))
        await until_models(cluster, "gemma4")
        await cluster.ok("POST", "deployments", {"model": "gemma4"})
        moved = adopted("gemma4:latest", digest="a" * 64)
        moved.adopted.base_url = "http://127.0.0.1:11500"
        await reports(node, moved)

        async def has_two() -> bool:
            return len((await cluster.get("models/gemma4"))["versions"]) == 2

        await until_async(has_two)
        changed = await cluster.ok("PATCH", "deployments/gemma4", {"version": 2})
        assert (changed["version"], changed["settings"]["address"]) == (2, "http://127.0.0.1:11500")
        assert changed["settings"]["remote_model"] == "gemma4:latest"
        # What that engine has no more cannot be served from it.
        back = await refused(cluster, "PATCH", "deployments/gemma4", {"version": 1})
        assert back == (404, "registry.version_not_found")


async def test_nothing_is_pulled_into_a_model_that_an_adopted_engine_has(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await node.until_told(lambda told: True)
        source = f"file:/models/x.gguf#file={5:064x}"
        early = await cluster.ok("POST", "pulls", {"name": "gemma4", "source": source})
        await reports(node, adopted("gemma4:latest"))
        await until_models(cluster, "gemma4")
        assert await refused(cluster, "POST", "pulls", {"name": "gemma4", "source": source}) == (
            409,
            "registry.name_taken",
        )
        await node.finish_pull(early["id"], f"{5:064x}")

        async def has_failed() -> bool:
            error = (await cluster.get(f"pulls/{early['id']}"))["error"]
            return error is not None and error["code"] == "registry.name_taken"

        await until_async(has_failed)
        assert len((await cluster.get("models/gemma4"))["versions"]) == 1


async def test_what_follows_from_where_an_adopted_model_is_cannot_be_asked_for_otherwise(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await node.until_told(lambda told: True)
        await reports(node, adopted("gemma4:latest"))
        await until_models(cluster, "gemma4")
        await cluster.ok("PUT", "secrets/token", {"value": "s"})
        for field, value in (
            ("image", "x@sha256:" + "1" * 64),
            ("runtime", "process"),
            ("node", "other"),
            ("secret", "token"),
        ):
            status, answer = await cluster.request("POST", "/api/v1/deployments", {"model": "gemma4", field: value})
            assert (status, answer["error"]["code"], answer["error"]["param"]) == (
                400,
                "request.invalid_field",
                field,
            )
        await cluster.ok("POST", "deployments", {"model": "gemma4", "runtime": "external", "node": "box"})
