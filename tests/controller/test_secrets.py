"""Secrets: sealed in the database, open only where they are sent, and named by deployments of external engines."""

import json
from typing import Any

import psycopg
import pytest

from controller.secrets.model import SealedSecret
from controller.secrets.vault import Vault
from core.errors import Failure
from core.infra.entropy import SystemEntropy
from tests.controller.cluster import Cluster
from tests.controller.played import PlayedDoor, PlayedNode
from tests.controller.test_pure import NOW
from tests.waiting import until_async

KEY = bytes(range(32))
VALUE = "sk-very-secret-0123456789"
GPT = {
    "model": "gpt",
    "engine": "openai",
    "settings": {"base_url": "https://api.example/v1", "remote_model": "gpt-4o"},
    "secret": "openai-key",
}


def sealed(name: str, value: str, key: bytes = KEY) -> SealedSecret:
    nonce = SystemEntropy().token_bytes(12)
    return SealedSecret(name=name, nonce=nonce, ciphertext=Vault(key).seal(name, value, nonce), created_at=NOW)


def test_a_secret_opens_with_its_own_key_under_its_own_name_alone() -> None:
    row = sealed("a", VALUE)
    assert Vault(KEY).open(row) == VALUE
    renamed = SealedSecret(name="b", nonce=row.nonce, ciphertext=row.ciphertext, created_at=NOW)
    other = bytes([row.ciphertext[0] ^ 1, *row.ciphertext[1:]])
    changed = SealedSecret(name="a", nonce=row.nonce, ciphertext=other, created_at=NOW)
    for vault, wrong in ((Vault(b"x" * 32), row), (Vault(KEY), renamed), (Vault(KEY), changed)):
        with pytest.raises(Failure) as caught:
            vault.open(wrong)
        assert caught.value.code == "secret.unreadable"
        assert VALUE not in str(caught.value)


def test_a_vault_says_what_it_cannot_open_and_serves_the_rest() -> None:
    vault = Vault(KEY)
    faults = vault.take([sealed("mine", VALUE), sealed("theirs", "other", b"x" * 32)])
    assert [fault.code for fault in faults] == ["secret.unreadable"]
    assert (vault.value("mine"), vault.value("theirs"), vault.value("none")) == (VALUE, "", "")
    assert vault.values() == {"mine": VALUE}
    vault.take([])
    assert vault.value("mine") == ""


def test_a_key_file_that_is_cut_short_is_a_clear_failure() -> None:
    with pytest.raises(Failure) as caught:
        Vault(b"short")
    assert caught.value.code == "secret.unreadable"


async def text_of(cluster: Cluster) -> str:
    """Return everything that the admin API shows and the controller logged."""
    shown = [await cluster.get(path) for path in ("secrets", "deployments", "replicas", "routes", "models", "nodes")]
    return json.dumps([*shown, await cluster.get("events?limit=1000")]) + cluster.log.getvalue()


async def test_a_secret_is_stored_listed_and_kept_while_it_is_used(cluster: Cluster, url: str) -> None:
    made = await cluster.ok("PUT", "secrets/openai-key", {"value": VALUE})
    assert (made["name"], made["used_by"], made["is_readable"]) == ("openai-key", [], True)
    await cluster.ok("POST", "deployments", GPT)
    assert (await cluster.get("secrets"))["items"][0]["used_by"] == ["gpt"]
    status, refused = await cluster.request("DELETE", "/api/v1/secrets/openai-key")
    assert (status, refused["error"]["code"]) == (409, "secret.in_use")
    assert VALUE not in await text_of(cluster)
    async with await psycopg.AsyncConnection.connect(url) as connection:
        rows = await (await connection.execute("SELECT ciphertext FROM controller.secret")).fetchall()
        assert VALUE.encode() not in rows[0][0]
    await cluster.ok("DELETE", "deployments/gpt")

    async def is_deleted() -> bool:
        return (await cluster.request("DELETE", "/api/v1/secrets/openai-key"))[0] == 204

    await until_async(is_deleted, what="the secret is free")
    assert (await cluster.request("DELETE", "/api/v1/secrets/openai-key"))[1]["error"]["code"] == "secret.not_found"


@pytest.mark.parametrize(
    ("name", "body", "code"),
    [
        ("UPPER", {"value": "x"}, "request.invalid_name"),
        ("a", {"value": ""}, "request.out_of_range"),
        ("a", {"value": "two\nlines"}, "request.invalid_field"),
        ("a", {"value": "spa ce"}, "request.invalid_field"),
        ("a", {"value": "é"}, "request.invalid_field"),
        ("a", {"value": "x" * 9000}, "request.out_of_range"),
        ("a", {}, "request.invalid_field"),
    ],
)
async def test_a_secret_that_no_header_can_carry_is_refused_and_not_echoed(
    cluster: Cluster, name: str, body: dict[str, str], code: str
) -> None:
    status, answer = await cluster.request("PUT", f"/api/v1/secrets/{name}", body)
    assert (status, answer["error"]["code"]) == (400, code)
    assert "two" not in answer["error"]["message"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"secret": "openai-kee"}, "secret.not_found"),
        ({"settings": {"base_url": "http://8.8.8.8"}}, "engine.setting_invalid"),
        ({"settings": {"base_url": "https://[fe80::1]"}}, "engine.setting_invalid"),
        ({"settings": {}}, "engine.setting_invalid"),
        ({"runtime": "process"}, "engine.runtime_unsupported"),
        ({"runtime": "vm"}, "request.invalid_field"),
        ({"node": "NO"}, "request.invalid_name"),
        ({"model": "fake", "engine": "fake", "settings": {}}, "request.invalid_field"),
        ({"image": "x:latest"}, "engine.runtime_unsupported"),
    ],
)
async def test_a_wish_for_an_external_engine_that_cannot_be_is_refused(
    cluster: Cluster, change: dict[str, Any], code: str
) -> None:
    await cluster.ok("PUT", "secrets/openai-key", {"value": VALUE})
    status, answer = await cluster.request("POST", "/api/v1/deployments", {**GPT, **change})
    assert answer["error"]["code"] == code, (status, answer)
    assert (await cluster.get("deployments"))["items"] == []
    assert (await cluster.get("models"))["items"] == []


async def test_a_key_reaches_the_node_and_the_door_and_a_new_one_does_too(cluster: Cluster) -> None:
    await cluster.ok("PUT", "secrets/openai-key", {"value": VALUE})
    async with PlayedNode(cluster.socket, obeys=False) as node, PlayedDoor(cluster.socket) as door:
        made = await cluster.ok("POST", "deployments", GPT)
        assert (made["runtime"], made["secret"], made["footprint"]["total_bytes"]) == ("external", "openai-key", 0)
        (want,) = (await node.until_told(lambda told: len(told.replicas) == 1)).replicas
        assert (want.runtime, want.engine_key, list(want.files)) == ("external", VALUE, [])
        assert [promise.bytes for promise in want.devices] == [0]
        where = {"host": "api.example", "port": 443, "base_url": "https://api.example"}
        await node.set(want.replica_id, "ready", **where)
        route = await door.until_routed("gpt", 1)
        assert (route.served_name, route.engine) == ("gpt-4o", "openai")
        assert (route.targets[0].base_url, route.targets[0].engine_key) == ("https://api.example", VALUE)
        assert (await cluster.get("replicas"))["items"][0]["address"] == "https://api.example"
        await cluster.ok("PUT", "secrets/openai-key", {"value": "sk-new"})

        async def is_new() -> bool:
            table = door.tables[-1]
            targets = [target for one in table.routes for target in one.targets]
            return bool(targets) and targets[0].engine_key == node.desired[-1].replicas[0].engine_key == "sk-new"

        await until_async(is_new, what="the new key")
        assert VALUE not in await text_of(cluster)
        assert "sk-new" not in await text_of(cluster)


async def test_with_another_key_file_it_is_told_what_to_do_and_nothing_is_routed(cluster: Cluster, url: str) -> None:
    await cluster.ok("PUT", "secrets/openai-key", {"value": VALUE})
    async with await psycopg.AsyncConnection.connect(url) as connection:
        row = sealed("openai-key", VALUE, b"another key, of 32 bytes exactly")
        values = {"nonce": row.nonce, "ciphertext": row.ciphertext}
        await connection.execute("UPDATE controller.secret SET nonce = %(nonce)s, ciphertext = %(ciphertext)s", values)
    assert (await cluster.get("secrets"))["items"][0]["is_readable"] is False
    status, answer = await cluster.request("POST", "/api/v1/deployments", GPT)
    assert (status, answer["error"]["code"]) == (409, "secret.unreadable")
    assert "slice secret set" in answer["error"]["hint"]
