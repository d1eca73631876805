"""Starts vLLM's OpenAI server in this process from a JSON file, behind a guard of our own.

Run by path in the engine's environment: `python -I serve.py FILE`. Uses the standard library, `vllm` and what it brings
only. vLLM's worker processes import this file again, so importing it must do nothing. Exits 0 after SIGTERM, 2 when the
file or an argument is unusable, 3 when vLLM does not start, 4 when the port is not ours, 5 when vLLM's engine process
died; the reason stands in the last line on stderr.
"""

import hashlib
import hmac
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

OPEN_PATHS = frozenset({"/health"})
"""What may be read without the key: the probe."""

GUARDED_PATHS = frozenset({"/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/metrics"})
"""What may be used with the key. vLLM's own key leaves dozens of paths open that pause it, load code or read memory."""

_GOODBYE_S = 2
"""Seconds that open answers get after SIGTERM; without a limit a client that reads nothing keeps the server alive."""


def is_key_right(authorization: bytes, digest: bytes) -> bool:
    """Return whether an Authorization header holds the key with this sha256 digest."""
    scheme, _, given = authorization.partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(hashlib.sha256(given.strip()).digest(), digest)


class Guard:
    """ASGI middleware: 404 for every path that is not named above, 401 without the key; the outermost there is."""

    digest = b""  # sha256 of the key, set before the server starts; vLLM makes the instance itself

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in OPEN_PATHS):
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["path"] not in GUARDED_PATHS:
            await _refuse(send, 404, "not_found", "there is no such path")
        elif not is_key_right(dict(scope["headers"]).get(b"authorization", b""), self.digest):
            await _refuse(send, 401, "invalid_api_key", "the key is missing or wrong")
        else:
            await self._app(scope, receive, send)


async def _refuse(send, status, code, message):
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _fail(code, reason):
    sys.stdout.flush()
    print(f"slice: {reason}", file=sys.stderr, flush=True)
    os._exit(code)


def _port_fault(host, port):
    """Return why the port cannot be had, "" when it can: vLLM would say it in the middle of a traceback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def _loop_that_notes(signals):
    """Return a maker of event loops that put each signal they handle into `signals`.

    vLLM handles SIGTERM itself and returns alike when it was asked to end and when its engine died.
    """
    import uvloop

    class Loop(uvloop.Loop):
        def add_signal_handler(self, number, callback, *arguments):
            def noted():
                signals.add(number)
                callback(*arguments)

            super().add_signal_handler(number, noted)

    return Loop


def _end_now(*_):
    print("slice: asked to end", flush=True)
    os._exit(0)


def main():
    # While vLLM imports and loads there is nothing to drain; its own handler takes over in `run_server`.
    signal.signal(signal.SIGTERM, _end_now)
    try:
        wanted = json.loads(Path(sys.argv[1]).read_text())
        host, port = wanted["host"], wanted["port"]
        Guard.digest = hashlib.sha256(wanted["api_key"].encode()).digest()
        arguments = [str(word) for word in wanted["arguments"]]
    except (OSError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        _fail(2, f"the configuration is unusable: {error!r}")
    if fault := _port_fault(host, port):
        _fail(4, f"cannot listen on {host}:{port}: {fault}")

    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    signals = set()
    try:
        parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
        # The key never becomes an argument: vLLM logs those that differ from its defaults.
        parsed.middleware = [f"{__name__}.Guard"]
        validate_parsed_serve_args(parsed)
    except (SystemExit, TypeError, ValueError) as error:
        _fail(2, f"vLLM does not take its arguments ({error}); the lines above say why")
    try:
        uvloop.run(run_server(parsed, timeout_graceful_shutdown=_GOODBYE_S), loop_factory=_loop_that_notes(signals))
    except KeyboardInterrupt:
        _end_now()
    except Exception as error:
        traceback.print_exc()
        _fail(3, f"vLLM did not start or broke; the lines above say why ({type(error).__name__})")
    if not signals:
        _fail(5, "vLLM's engine died; the lines above say why")
    os._exit(0)


if __name__ == "__main__":
    main()
