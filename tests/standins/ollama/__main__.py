"""A stand-in for the program `ollama`, 0.33: `ollama --version` and `ollama serve`.

It keeps models on disk as Ollama does, answers /api and /v1 as its documentation and source say, and runs one
llama.cpp child named `llama-server` for each loaded model. Of the environment it reads OLLAMA_HOST, OLLAMA_MODELS,
OLLAMA_CONTEXT_LENGTH, OLLAMA_NUM_PARALLEL, OLLAMA_MAX_LOADED_MODELS, OLLAMA_MAX_QUEUE, OLLAMA_KEEP_ALIVE and
OLLAMA_NOPRUNE; other settings it ignores.
What it lacks: registries (pull and push fail as they do offline), `from`, quantising, images, thinking, adapters.
"""

import http.client
import json
import os
import signal
import sys
import threading
from pathlib import Path

from tests.standins.ollama import openai
from tests.standins.ollama.answering import Answering
from tests.standins.ollama.errors import ApiError
from tests.standins.ollama.native import VERSION, Native, as_api_error
from tests.standins.ollama.scheduler import Scheduler, seconds
from tests.standins.ollama.store import Store
from tests.standins.serving import Handler, Route, Server

_DEFAULT_CONTEXT = 4096  # without a GPU


class OllamaHandler(Handler):
    """Errors are {"error": text} below /api and OpenAI's objects below /v1."""

    def is_streamed_upload(self) -> bool:
        return self.command == "POST" and self.path.startswith("/api/blobs/")

    def _dispatch(self) -> None:
        try:
            super()._dispatch()
        except (ApiError, ValueError) as raised:
            error = as_api_error(raised)
            is_openai = self.path.startswith("/v1/")
            self.json(error.status, openai.error_object(error) if is_openai else {"error": error.text})

    do_GET = do_POST = do_HEAD = do_DELETE = _dispatch


def routes(answering: Answering) -> dict[tuple[str, str], Route]:
    native, imitation = Native(answering), openai.OpenAi(answering)
    posts = {
        name: getattr(native, name)
        for name in ("show", "chat", "generate", "embed", "embeddings", "create", "copy", "pull", "push")
    }
    found: dict[tuple[str, str], Route] = {("POST", f"/api/{name}"): route for name, route in posts.items()}
    for method in ("GET", "HEAD"):
        found |= {
            (method, "/"): lambda handler: handler.text(200, "Ollama is running"),
            (method, "/api/version"): native.version,
            (method, "/api/tags"): native.tags,
        }
    return found | {
        ("GET", "/api/ps"): native.ps,
        ("DELETE", "/api/delete"): native.delete,
        ("HEAD", "/api/blobs/*"): native.head_blob,
        ("POST", "/api/blobs/*"): native.post_blob,
        ("POST", "/v1/chat/completions"): imitation.chat,
        ("POST", "/v1/completions"): imitation.completions,
        ("POST", "/v1/embeddings"): imitation.embeddings,
        ("GET", "/v1/models"): imitation.models,
    }


def number(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip("\"' ")
    return int(text) if text.isdigit() else default


def serve() -> None:
    host, _, port = os.environ.get("OLLAMA_HOST", "127.0.0.1:11434").rpartition(":")
    home = Path(os.environ.get("HOME", "/")) / ".ollama"
    store = Store(Path(os.environ.get("OLLAMA_MODELS") or home / "models"))
    if not os.environ.get("OLLAMA_NOPRUNE"):
        store.prune()
    scheduler = Scheduler(
        context=number("OLLAMA_CONTEXT_LENGTH", _DEFAULT_CONTEXT),
        parallel=number("OLLAMA_NUM_PARALLEL", 1),
        max_loaded=number("OLLAMA_MAX_LOADED_MODELS", 0),
        max_queue=number("OLLAMA_MAX_QUEUE", 512),
        keep_alive_s=seconds(os.environ.get("OLLAMA_KEEP_ALIVE", "5m")),
    )
    OllamaHandler.routes = routes(Answering(store, scheduler))
    try:
        server = Server((host, int(port)), OllamaHandler)
    except OSError as error:
        print(f"Error: listen tcp {host}:{port}: bind: {(error.strerror or '').lower()}", file=sys.stderr)
        sys.exit(1)

    def end(*_: object) -> None:
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    print(f'level=INFO msg="Listening on {host}:{port} (version {VERSION})"', file=sys.stderr, flush=True)
    server.serve_forever()
    scheduler.close()


def version() -> None:
    """Print the version of the running server, and the program's own when that is another one or there is none."""
    host, _, port = os.environ.get("OLLAMA_HOST", "127.0.0.1:11434").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=2)
    try:
        connection.request("GET", "/api/version")
        running = json.loads(connection.getresponse().read())["version"]
        print(f"ollama version is {running}")
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        running = ""
        print("Warning: could not connect to a running Ollama instance")
    finally:
        connection.close()
    if running != VERSION:
        print(f"Warning: client version is {VERSION}")


def main(arguments: list[str]) -> None:
    if arguments in (["--version"], ["-v"]):
        version()
    elif arguments == ["serve"]:
        serve()
    else:
        print(f'Error: unknown command "{" ".join(arguments)}" for "ollama"', file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
