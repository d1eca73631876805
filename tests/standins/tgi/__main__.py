"""A stand-in for the program `text-generation-launcher`, 3.3.

It takes the launcher's flags and environment, wants a folder of safetensors as its model, and answers as the router's
documentation and source say. The model that answers is **not** the one in that folder: llama.cpp cannot read
safetensors, so it runs the GGUF twin whose path the test wrote into the executable. Router and launcher are one
process here; the shard is a child with another name. What it lacks: several shards, images, adapters.
"""

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from tests.standins.llama import Load, Runner
from tests.standins.serving import Handler, Route, Server
from tests.standins.tgi.answering import Answering, ApiError, Limits
from tests.standins.tgi.routes import VERSION, BodyError, Routes

_OPEN = frozenset({"/health", "/ping", "/info", "/metrics", "/v1/models", "/chat_tokenize"})


class TgiHandler(Handler):
    """The key guards what computes; it is compared without regard to case."""

    api_key = ""

    def _dispatch(self) -> None:
        path = self.path.split("?")[0]
        is_open = path in _OPEN or (self.command, path) == ("GET", "/")
        given = self.headers.get("authorization", "")
        if self.api_key and not is_open and given.lower() != f"bearer {self.api_key}".lower():
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.whole(401, b"", "text/plain")
            return
        try:
            super()._dispatch()
        except ApiError as error:
            self.json(error.status, error.body)
        except BodyError as error:
            self.text(422, str(error))

    do_GET = do_POST = do_HEAD = do_DELETE = _dispatch


def routes(answering: Answering) -> dict[tuple[str, str], Route]:
    found = Routes(answering)
    gets = {"/": found.health, "/health": found.health, "/ping": found.health}
    gets |= {"/info": found.info, "/metrics": found.metrics, "/v1/models": found.models}
    posts = {"/generate": found.generate, "/generate_stream": found.generate_stream, "/tokenize": found.tokenize}
    posts |= {"/v1/chat/completions": found.chat, "/v1/completions": found.completions}
    posts |= {"/chat_tokenize": found.chat_tokenize}
    return {("GET", path): route for path, route in gets.items()} | {
        ("POST", path): route for path, route in posts.items()
    }


def parsed(arguments: list[str]) -> argparse.Namespace:
    """Return the launcher's settings: flags first, then the environment variables of the same names."""
    parser = argparse.ArgumentParser(prog="text-generation-launcher")
    parser.add_argument("--version", action="version", version=f"text-generation-launcher {VERSION}")
    numbers = {
        "port": 3000,
        "num-shard": 1,
        "max-total-tokens": 4096,
        "max-input-tokens": 0,
        "max-batch-prefill-tokens": 0,
        "max-batch-total-tokens": 0,
        "max-concurrent-requests": 128,
    }
    texts = {
        "model-id": "bigscience/bloom-560m",
        "hostname": "0.0.0.0",
        "api-key": "",
        "shard-uds-path": "/tmp/text-generation-server",
        "dtype": "",
        "usage-stats": "on",
    }
    for name, default in {**numbers, **texts}.items():
        given = os.environ.get(name.upper().replace("-", "_"))
        kind = type(default)
        parser.add_argument(f"--{name}", type=kind, default=default if given is None else kind(given))
    parser.add_argument("--json-output", action="store_true")
    return parser.parse_args(arguments)


def fail(text: str) -> None:
    print(f'{{"level":"ERROR","fields":{{"message":"{text}"}}}}', file=sys.stderr, flush=True)
    sys.exit(1)


def main() -> None:
    wanted = parsed(sys.argv[1:])
    folder = Path(wanted.model_id)
    if not folder.is_dir() or not list(folder.glob("*.safetensors")) or not (folder / "config.json").is_file():
        fail(f"{wanted.model_id} is no folder of safetensors, and the hub cannot be reached")
    twin = os.environ.get("STANDIN_GGUF")
    if not twin:
        fail("this stand-in was installed without a GGUF twin of its model")
    total = wanted.max_total_tokens
    most = wanted.max_input_tokens or total - 1
    if most >= total:
        fail("`max_input_tokens` must be < `max_total_tokens`")
    slots = max(1, (wanted.max_batch_total_tokens or total) // total)
    name = "text-generation-server"[:15]
    runner = Runner(Load(name=name, model_path=str(twin), context=total, parallel=slots))

    def end(*_: object) -> None:
        threading.Thread(target=finish).start()

    def finish() -> None:
        runner.stop()
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    if not runner.wait_until_ready():
        fail("Shard 0 failed to start")
    limits = Limits(
        model_id=wanted.model_id,
        max_input_tokens=most,
        max_total_tokens=total,
        max_concurrent_requests=wanted.max_concurrent_requests,
    )
    TgiHandler.routes = routes(Answering(runner, limits))
    TgiHandler.api_key = wanted.api_key
    try:
        server = Server((wanted.hostname, wanted.port), TgiHandler)
    except OSError as error:
        runner.stop()
        fail(f"Webserver failed: {error.strerror}")
    threading.Thread(target=watch, args=(runner,), daemon=True).start()
    print('{"level":"INFO","fields":{"message":"Connected"}}', flush=True)
    server.serve_forever()


def watch(runner: Runner) -> None:
    """End with the shard: the launcher shuts everything down when one fails."""
    runner.process.wait()
    os._exit(1)


if __name__ == "__main__":
    main()
