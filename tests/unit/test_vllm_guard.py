"""The guard in front of vLLM: which paths exist, and who may use them."""

import hashlib
import json

import pytest

from adapters.vllm.program.serve import GUARDED_PATHS, Guard, is_key_right

KEY = "a-key"
DIGEST = hashlib.sha256(KEY.encode()).digest()


async def answered(path: str, authorization: str = "", kind: str = "http") -> tuple[bool, list[dict]]:
    """Return whether vLLM was reached, and what was sent instead."""
    reached, sent = [], []

    async def vllm(scope, receive, send):
        reached.append(scope["path"])

    async def receive():
        raise AssertionError("nothing is read before the key is known")

    async def send(message):
        sent.append(message)

    guard = Guard(vllm)
    guard.digest = DIGEST
    headers = [(b"authorization", authorization.encode())] if authorization else []
    await guard({"type": kind, "path": path, "headers": headers}, receive, send)
    return bool(reached), sent


@pytest.mark.parametrize(
    "path",
    [
        *("/invocations", "/pause", "/tokenize", "/collective_rpc", "/update_weights", "/inference/v1/generate"),
        *("/v1/load_lora_adapter", "/v1/completions/render", "/v1/chat/completions/", "//v1/models"),
        *("/health/", "/metrics/x", ""),
    ],
)
async def test_a_path_that_is_not_named_does_not_exist_even_with_the_key(path):
    reached, sent = await answered(path, f"Bearer {KEY}")
    assert not reached
    assert sent[0]["status"] == 404


@pytest.mark.parametrize("path", sorted(GUARDED_PATHS))
@pytest.mark.parametrize("authorization", ["", "Bearer wrong", f"Basic {KEY}", KEY, "Bearer"])
async def test_nothing_but_the_probe_is_open_without_the_key(path, authorization):
    reached, sent = await answered(path, authorization)
    assert not reached
    assert sent[0]["status"] == 401
    assert json.loads(sent[1]["body"])["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("path", sorted(GUARDED_PATHS))
async def test_the_key_opens_what_is_named(path):
    assert await answered(path, f"Bearer {KEY}") == (True, [])


async def test_the_probe_needs_no_key():
    assert await answered("/health") == (True, [])


async def test_no_web_socket_is_opened():
    reached, sent = await answered("/v1/realtime", f"Bearer {KEY}", kind="websocket")
    assert not reached
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_the_scheme_may_be_written_as_one_likes():
    assert is_key_right(b"bearer a-key", DIGEST)
    assert not is_key_right(b"bearer a-key2", DIGEST)
