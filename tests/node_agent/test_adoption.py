"""An Ollama that somebody else runs: read over loopback, never written, gone and come again."""

import contextlib
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import registry
from adapters.contract import Adoptable, AdoptedModel
from core.errors import Failure
from core.infra.clock import SystemClock
from core.infra.logs import Log
from core.infra.tasks import TaskGuard
from node_agent.engines.adoption import Adoptions, read
from node_agent.engines.orders import EngineOrder
from tests.node_agent import trees

DIGEST = "c6eb396dbd5992bbe3f5cdb947e8bbc0ee413d7c17e2beaae69f5d569cf982eb"
# The example of ListResponse in Ollama's docs/openapi.yaml.
SUMMARY = {
    "name": "gemma4",
    "model": "gemma4",
    "modified_at": "2025-10-03T23:34:03.409490317-07:00",
    "size": 9608350245,
    "digest": DIGEST,
    "details": {
        "format": "gguf",
        "family": "gemma4",
        "families": ["gemma4"],
        "parameter_size": "8.0B",
        "quantization_level": "Q4_K_M",
    },
}
GEMMA = AdoptedModel(
    name="gemma4", sha256=DIGEST, size_bytes=9608350245, format="gguf", architecture="gemma4", quantization="Q4_K_M"
)


_FOUND = registry.adapter("ollama")
assert isinstance(_FOUND, Adoptable)
OLLAMA: Adoptable = _FOUND


class Ollama:
    """What a running Ollama answers, and every request that it heard."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {"/api/version": {"version": "0.33.0"}, "/api/tags": {"models": [SUMMARY]}}
        self.status = 200
        self.heard: list[str] = []
        self.url = ""


@contextlib.contextmanager
def ollama(port: int = 0) -> Iterator[Ollama]:
    played = Ollama()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            played.heard.append(f"{self.command} {self.path}")
            found = played.answers.get(self.path, {})
            body = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(played.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    played.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield played
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.asynccontextmanager
async def adoptions():
    log = Log("test", SystemClock(), io.StringIO())
    async with TaskGuard(log) as guard:
        yield Adoptions(adapter=registry.adapter, guard=guard, log=log, changed=lambda: None, read_every_s=0.05)


def wish(url: str) -> EngineOrder:
    return EngineOrder(engine="ollama", version="", adopt_url=url)


def test_what_an_ollama_tells_is_read() -> None:
    with ollama() as played:
        found = read(played.url, OLLAMA)
    assert (found.version, found.models, found.message) == ("0.33.0", (GEMMA,), "")
    assert played.heard == ["GET /api/version", "GET /api/tags"]


async def test_an_adopted_ollama_that_ends_keeps_its_models_and_says_that_it_is_silent() -> None:
    async with adoptions() as reading:
        with ollama() as played:
            reading.apply([wish(played.url)])
            await trees.until(lambda: reading.now().get("ollama"))
            assert reading.now()["ollama"].models == (GEMMA,)
            played.answers["/api/tags"] = {"models": []}
            await trees.until(lambda: not reading.now()["ollama"].models)
            played.answers["/api/tags"] = {"models": [SUMMARY]}
            await trees.until(lambda: reading.now()["ollama"].models)
        await trees.until(lambda: reading.now()["ollama"].message)
        assert "does not answer" in reading.now()["ollama"].message
        assert reading.now()["ollama"].models == (GEMMA,)
        reading.apply([])
        assert reading.now() == {}
    assert {line.split()[0] for line in played.heard} == {"GET"}


@pytest.mark.parametrize("url", ["http://10.0.0.1:11434", "https://127.0.0.1:1", "http://ollama:11434", "junk"])
async def test_a_node_reads_nothing_but_its_own_loopback(url: str) -> None:
    async with adoptions() as reading:
        reading.apply([wish(url)])
        found = await trees.until(lambda: reading.now().get("ollama"))
        assert "is no address on the node itself" in found.message


@pytest.mark.parametrize(
    ("path", "answer", "status"),
    [
        ("/api/tags", b"<html>", 200),
        ("/api/tags", b"[]", 200),
        ("/api/tags", b"[" * 100_000, 200),
        ("/api/version", b"{}", 500),
        ("/api/tags", b" " * (4 * 1024**2 + 1), 200),
    ],
    ids=["html", "list", "deep", "status", "long"],
)
def test_what_is_no_ollama_is_a_sentence(path: str, answer: bytes, status: int) -> None:
    with ollama() as played:
        played.answers[path], played.status = answer, status
        with pytest.raises(Failure) as caught:
            read(played.url, OLLAMA)
    assert caught.value.code == "source.unreachable"
    assert "<html>" not in str(caught.value)


@pytest.mark.parametrize(
    "item",
    [
        {**SUMMARY, "remote_host": "https://ollama.com"},
        {**SUMMARY, "digest": "short"},
        {**SUMMARY, "name": "", "model": ""},
        {**SUMMARY, "model": "a\x1b[31m"},
        "text",
        None,
    ],
    ids=["remote", "digest", "nameless", "escape", "text", "null"],
)
def test_a_model_that_is_not_there_or_odd_is_left_out(item: object) -> None:
    with ollama() as played:
        played.answers["/api/tags"] = {
            "models": [item, SUMMARY, {**SUMMARY, "details": None, "size": -1, "model": "b"}]
        }
        assert read(played.url, OLLAMA).models == (
            AdoptedModel(name="b", sha256=DIGEST, size_bytes=0, format="", architecture="", quantization=""),
            GEMMA,
        )


async def test_an_engine_that_cannot_be_adopted_says_so() -> None:
    async with adoptions() as reading:
        reading.apply([EngineOrder(engine="fake", version="", adopt_url="http://127.0.0.1:1")])
        found = await trees.until(lambda: reading.now().get("fake"))
        assert "cannot be adopted" in found.message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*SUMMARY, "x"]), inner),
    max_leaves=20,
)


@given(json_values)
def test_no_list_of_models_is_more_than_refused(value: object) -> None:
    for models in (value, [value]):
        # Any other exception than our own refusal fails the test.
        with contextlib.suppress(Failure):
            OLLAMA.adopted(b'{"version": "1"}', json.dumps({"models": models}).encode())
