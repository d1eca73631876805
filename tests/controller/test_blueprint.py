"""Export and apply on a whole controller: round trips, all or nothing, pulls, prune."""

from typing import Any

import yaml

from tests.controller.cluster import Cluster
from tests.controller.played import PlayedNode
from tests.controller.test_api import error
from tests.controller.test_lives import source, with_versions
from tests.controller.test_secrets import GPT, VALUE
from tests.waiting import until_async


async def apply(cluster: Cluster, text: str, query: str = "") -> tuple[int, Any]:
    return await cluster.request("POST", f"/api/v1/apply{query}", raw=text.encode())


async def exported(cluster: Cluster) -> str:
    status, text = await cluster.request("GET", "/api/v1/export")
    assert status == 200
    return str(text)


def told(answer: Any) -> list[tuple[str, str, str, str]]:
    return [(one["action"], one["kind"], one["name"], one["state"]) for one in answer["changes"]]


async def furnished(cluster: Cluster, node: PlayedNode) -> None:
    await with_versions(cluster, node, 2)
    for stage in ("staging", "production"):
        await cluster.ok("PUT", "models/m/versions/2/stage", {"stage": stage})
    await cluster.ok("PUT", "aliases/chat", {"model": "m@v2"})
    await cluster.ok("PUT", "aliases/any", {"model": "m"})
    body = {"model": "m@v1", "name": "old", "settings": {"context": 512}, "requires": ["tools"], "replicas": 0}
    await cluster.ok("POST", "deployments", body)
    await cluster.ok("POST", "deployments", {"model": "m", "is_enabled": False, "disabled_answer": "not_found"})
    await cluster.ok("POST", "pulls", {"name": "fake"})


async def test_an_export_applied_where_it_came_from_changes_nothing(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await furnished(cluster, node)
        text = await exported(cluster)
        assert text.startswith("# ")
        for query in ("", "?prune=true", "?dry_run=true&prune=true"):
            status, answer = await apply(cluster, text, query)
            assert (status, told(answer), answer["is_complete"]) == (200, [], True)
        assert await exported(cluster) == text
        whole = yaml.safe_load(text)
        assert whole["deployments"][0] == {
            "name": "m",
            "model": "m@v2",
            "engine": "llamacpp",
            "engine_version": whole["deployments"][0]["engine_version"],
            "replicas": 1,
            "is_enabled": False,
            "disabled_answer": "not_found",
        }
        assert whole["deployments"][1]["settings"] == {"context": 512}


async def test_an_export_makes_an_empty_cluster_the_same_after_its_pulls(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await furnished(cluster, node)
        text = await exported(cluster)
        for name in ("old", "m"):
            await cluster.ok("DELETE", f"deployments/{name}")

        async def are_gone() -> bool:
            return not (await cluster.get("deployments"))["items"]

        await until_async(are_gone)
        for name in ("m", "fake"):
            assert (await cluster.request("DELETE", f"/api/v1/models/{name}?force=true"))[0] == 204
        node.files.clear()
        await node.observe()
        status, answer = await apply(cluster, text, "?dry_run=true")
        assert (status, answer["is_complete"], answer["pulls"]) == (200, False, [])
        assert ("create", "version", "fake@v1", "planned") in told(answer)
        assert ("create", "deployment", "old", "waiting") in told(answer)
        assert (await cluster.get("models"))["items"] == [], "a rehearsal changes nothing"
        status, answer = await apply(cluster, text)
        assert status == 200
        for number in (1, 2):
            assert [pull["source"] for pull in answer["pulls"]] == [source(number)], "one after another, in order"
            await node.finish_pull(answer["pulls"][0]["id"], f"{number:064x}")

            async def is_pulled(count: int = number) -> bool:
                models = {one["name"]: len(one["versions"]) for one in (await cluster.get("models"))["items"]}
                return models == {"fake": 1, "m": count}

            await until_async(is_pulled)
            status, answer = await apply(cluster, text)
        assert (status, answer["is_complete"], answer["pulls"]) == (200, True, [])
        assert await exported(cluster) == text
        history = (await cluster.get("models/m/versions/2/stages"))["items"]
        assert [one["to"] for one in history] == ["staging", "production"]


async def test_a_file_with_one_bad_thing_changes_nothing_at_all(cluster: Cluster) -> None:
    await cluster.ok("POST", "pulls", {"name": "fake"})
    good = "aliases:\n- {name: chat, model: fake}\ndeployments:\n- {name: one, model: fake, engine: fake}\n"
    for bad, code, message in (
        ("- {name: two, model: fake, engine: fake, replica: 2}\n", "request.unknown_field", "unknown key 'replica' at"),
        ("- {name: two, model: fake, engine: fak}\n", "engine.unknown", "line 5: deployment two: there is no"),
        ("- {name: two, model: fake, settings: {toks: 1}}\n", "engine.setting_invalid", "line 5, deployment two: fake"),
        (
            "- {name: two, model: fake, engine: fake, settings: {tokens: x}}\n",
            "engine.setting_invalid",
            "line 5: deplo",
        ),
        ("- {name: two, model: fake, engine: llamacpp}\n", "engine.format_unsupported", "line 5, deployment two: eng"),
        ("- {name: two, model: fake, engine: fake, requires: [tools]}\n", "engine.capability_missing", "line 5, depl"),
        ("- {name: two, model: fake, engine: fake, engine_version: '99'}\n", "engine.version_unknown", "line 5, depl"),
        ("- {name: two, model: nope}\n", "registry.model_not_found", "line 5: there is no model 'nope'"),
    ):
        status, answer = await apply(cluster, good + bad)
        assert (answer["error"]["code"], answer["error"]["message"][: len(message)]) == (code, message)
        assert status in (400, 404, 409)
        assert (await cluster.get("deployments"))["items"] == []
        assert (await cluster.get("aliases"))["items"] == []
    status, answer = await apply(cluster, good)
    assert told(answer) == [("create", "deployment", "one", "done"), ("create", "alias", "chat", "done")]


async def test_fields_change_and_fall_back_to_their_defaults(cluster: Cluster) -> None:
    body = {"model": "fake", "settings": {"tokens": 3, "start_delay_s": 1.5}, "replicas": 3, "is_enabled": False}
    await cluster.ok("POST", "deployments", body)
    text = "deployments:\n- name: fake\n  model: fake\n  settings: {tokens: 4}\n"
    _, answer = await apply(cluster, text, "?dry_run=true")
    assert [(one["field"], one["from"], one["to"]) for one in answer["changes"][0]["fields"]] == [
        ("replicas", 3, 1),
        ("settings.start_delay_s", 1.5, None),
        ("settings.tokens", 3, 4),
        ("is_enabled", False, True),
    ]
    await apply(cluster, text)
    shown = await cluster.get("deployments/fake")
    assert (shown["replicas"], shown["settings"]["tokens"], shown["is_enabled"]) == (1, 4, True)
    assert shown["settings"]["start_delay_s"] == 0.0
    assert told((await apply(cluster, text))[1]) == []
    assert (await cluster.get("deployments/fake"))["generation"] == shown["generation"]
    other = "deployments:\n- {name: fake, model: fake, engine: llamacpp}\n"
    status, answer = await apply(cluster, other)
    assert (status, answer["error"]["code"]) == (409, "deployment.name_taken")
    assert answer["error"]["message"] == (
        "line 2, deployment fake: it is there with another engine, which cannot be changed"
    )


async def test_a_setting_that_is_the_default_anyway_is_no_change(cluster: Cluster) -> None:
    await cluster.ok("POST", "deployments", {"model": "fake"})
    default = (await cluster.get("deployments/fake"))["settings"]["tokens"]
    text = f"deployments:\n- name: fake\n  model: fake\n  settings: {{tokens: {default}}}\n"
    assert told((await apply(cluster, text))[1]) == []


async def test_prune_deletes_what_its_sections_do_not_name(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket):
        await cluster.ok("POST", "deployments", {"model": "fake"})
        await cluster.ok("POST", "models/fake/copy", {"to": "other"})
        await cluster.ok("PUT", "aliases/chat", {"model": "other"})
        await cluster.ok("PUT", "aliases/keep", {"model": "fake"})
        text = (
            "models:\n- name: fake\n  versions: [{source: 'builtin:fake', digest: 'builtin:fake'}]\ndeployments: []\n"
        )
        status, answer = await apply(cluster, text, "?prune=true")
        assert (status, answer["error"]["code"]) == (409, "registry.model_in_use"), "an alias of it is not in question"
        assert (await cluster.get("deployments/fake"))["is_deleting"] is False
        text += "aliases: [{name: keep, model: fake}]\n"
        status, answer = await apply(cluster, text, "?prune=true")
        assert sorted(told(answer)) == [
            ("delete", "alias", "chat", "done"),
            ("delete", "deployment", "fake", "done"),
            ("delete", "model", "other", "done"),
        ]
        assert [one["name"] for one in (await cluster.get("models"))["items"]] == ["fake"]


async def test_a_copy_of_what_is_here_needs_no_pull(cluster: Cluster) -> None:
    async with PlayedNode(cluster.socket) as node:
        await with_versions(cluster, node, 1)
        text = f"models:\n- name: n\n  versions:\n  - {{source: '{source(1)}', digest: 'sha256:{1:064x}'}}\n"
        text += "aliases:\n- {name: chat, model: n@v1}\n"
        _, answer = await apply(cluster, text)
        assert told(answer) == [("create", "version", "n@v1", "done"), ("create", "alias", "chat", "done")]
        assert (answer["pulls"], answer["changes"][0]["way"]) == ([], "copy")


async def test_text_that_is_none_is_refused(cluster: Cluster) -> None:
    answer = await cluster.request("POST", "/api/v1/apply", raw=b"models: \xff")
    assert error(answer) == (400, "request.invalid_field")
    assert error(await cluster.request("POST", "/api/v1/apply", raw=b"")) == (400, "request.invalid_field")


async def test_an_external_deployment_comes_back_from_its_file_with_its_secrets_name_alone(cluster: Cluster) -> None:
    await cluster.ok("PUT", "secrets/openai-key", {"value": VALUE})
    await cluster.ok("POST", "deployments", GPT)
    text = await exported(cluster)
    assert VALUE not in text
    shown = yaml.safe_load(text)["deployments"][0]
    assert (shown["runtime"], shown["secret"], shown["engine"]) == ("external", "openai-key", "openai")
    assert told((await apply(cluster, text, "?prune=true"))[1]) == []
    status, answer = await apply(cluster, text.replace("secret: openai-key", "secret: other"))
    assert (status, answer["error"]["code"]) == (409, "deployment.name_taken")
    name = shown["name"]
    await cluster.ok("DELETE", f"deployments/{name}")

    async def is_gone() -> bool:
        return not (await cluster.get("deployments"))["items"]

    await until_async(is_gone)
    assert (await cluster.request("DELETE", f"/api/v1/models/{shown['model'].partition('@')[0]}"))[0] == 204
    assert (await apply(cluster, text))[1]["is_complete"]
    assert await exported(cluster) == text


async def test_a_pull_that_is_refused_leaves_nothing_of_the_file_behind(cluster: Cluster) -> None:
    await cluster.ok("POST", "pulls", {"name": "fake"})
    await cluster.ok("PUT", "aliases/chat", {"model": "fake"})
    await cluster.ok("POST", "pulls", {"name": "q", "source": source(1), "engine": "llamacpp"})
    rest = "deployments:\n- {name: one, model: fake, engine: fake}\n"
    for name, wanted, message in (
        ("chat", "file:/models/q.gguf", "line 3, version chat@v1: 'chat' is an alias"),
        ("q", source(1), "line 3, version q@v1: this source is being pulled as 'q' for llamacpp"),
    ):
        text = f"models:\n- name: {name}\n  versions: [{{source: '{wanted}'}}]\n" + rest
        for query in ("?dry_run=true", ""):
            status, answer = await apply(cluster, text, query)
            assert (status, answer["error"]["code"], answer["error"]["message"]) == (
                409,
                "registry.name_taken",
                message,
            )
        assert (await cluster.get("deployments"))["items"] == []
