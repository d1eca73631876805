"""Idempotency-Key: the same request once, another request never, and no secret on the shelf."""

import asyncio

import psycopg
import pytest

from core.infra import postgres
from tests.controller.cluster import Cluster
from tests.controller.test_api import error


def key(text: str) -> dict[str, str]:
    return {"Idempotency-Key": text}


async def test_a_repeated_request_gets_the_same_answer_and_is_done_once(cluster: Cluster) -> None:
    body = {"model": "fake", "name": "one"}
    first = await cluster.request("POST", "/api/v1/deployments", body, headers=key("k1"))
    again = await cluster.request("POST", "/api/v1/deployments", body, headers=key("k1"))
    assert first == again
    assert first[0] == 201
    assert error(await cluster.request("POST", "/api/v1/deployments", body)) == (409, "deployment.name_taken")
    assert (await cluster.request("DELETE", "/api/v1/models/fake?force=true", headers=key("k2")))[0] == 204
    assert (await cluster.request("DELETE", "/api/v1/models/fake?force=true", headers=key("k2")))[0] == 204


async def test_a_key_of_another_request_is_refused(cluster: Cluster) -> None:
    await cluster.request("POST", "/api/v1/deployments", {"model": "fake"}, headers=key("k"))
    for method, path, body in (
        ("POST", "deployments", {"model": "fake", "name": "b"}),
        ("POST", "pulls", {"model": "fake"}),
        ("DELETE", "deployments/fake", None),
        ("DELETE", "deployments/fake?force=true", None),
    ):
        answer = await cluster.request(method, f"/api/v1/{path}", body, headers=key("k"))
        assert error(answer) == (409, "request.idempotency_conflict")
    assert (await cluster.get("deployments/fake"))["is_deleting"] is False


async def test_of_many_at_once_one_executes_and_all_hear_of_it(cluster: Cluster) -> None:
    answers = await asyncio.gather(
        *(cluster.request("POST", "/api/v1/deployments", {"model": "fake"}, headers=key("same")) for _ in range(12))
    )
    assert {status for status, _ in answers} == {201}
    assert all(answer == answers[0] for answer in answers)
    created = [one for one in (await cluster.get("events?limit=1000"))["items"] if one["kind"] == "deployment_created"]
    assert len(created) == 1


async def test_what_was_refused_may_be_tried_again_under_its_key(cluster: Cluster) -> None:
    body = {"model": "m"}
    assert (await cluster.request("POST", "/api/v1/deployments", body, headers=key("k")))[0] == 404
    await cluster.ok("POST", "pulls", {"name": "fake"})
    await cluster.ok("POST", "models/fake/copy", {"to": "m"})
    assert (await cluster.request("POST", "/api/v1/deployments", body, headers=key("k")))[0] == 201


async def test_a_restarted_controller_still_knows_its_answers(cluster: Cluster) -> None:
    first = await cluster.request("POST", "/api/v1/deployments", {"model": "fake"}, headers=key("k"))
    await cluster.stop()
    await cluster.start()
    await cluster.ready()
    assert await cluster.request("POST", "/api/v1/deployments", {"model": "fake"}, headers=key("k")) == first


async def test_a_request_that_its_controller_did_not_live_to_answer_is_not_done_again(
    cluster: Cluster, url: str
) -> None:
    await cluster.request("POST", "/api/v1/deployments", {"model": "fake"}, headers=key("k"))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE controller.idempotency SET status = 0, answer = '{}'")
    status, refused = await cluster.request("POST", "/api/v1/deployments", {"model": "fake"}, headers=key("k"))
    assert (status, refused["error"]["code"]) == (409, "request.idempotency_conflict")
    assert "not known" in refused["error"]["message"]


async def test_a_new_keys_secret_is_never_stored_and_a_repeated_request_does_not_show_it(
    cluster: Cluster, url: str
) -> None:
    first = await cluster.request("POST", "/api/v1/keys", {"name": "app"}, headers=key("k"))
    secret = first[1]["key"]
    status, again = await cluster.request("POST", "/api/v1/keys", {"name": "app"}, headers=key("k"))
    assert (status, again) == (201, {**first[1], "key": None})
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute("SELECT answer::text, request_sha256 FROM controller.idempotency").fetchall()
    assert len(rows) == 1
    assert secret not in str(rows)


@pytest.mark.parametrize("text", ["", " ", "a b", "x" * 256, "ü"], ids=repr)
async def test_a_malformed_key_is_refused(cluster: Cluster, text: str) -> None:
    answer = await cluster.request("POST", "/api/v1/deployments", {"model": "fake"}, headers=key(text))
    assert error(answer) == (400, "request.invalid_field")


async def test_answers_are_forgotten_after_a_day(cluster: Cluster, database: postgres.Database) -> None:
    await cluster.request("POST", "/api/v1/deployments", {"model": "fake"}, headers=key("old"))
    async with database.connection() as connection:
        await connection.execute("UPDATE controller.idempotency SET created_at = now() - interval '25 hours'")
    answer = await cluster.request("POST", "/api/v1/deployments", {"model": "fake"}, headers=key("old"))
    assert error(answer) == (409, "deployment.name_taken"), "it was executed anew"


async def test_reading_needs_no_key(cluster: Cluster) -> None:
    assert (await cluster.request("GET", "/api/v1/models", headers=key("x y")))[0] == 200
