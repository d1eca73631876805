"""Runs between Ray Serve and HAProxy: tightens the configuration that Serve writes, then becomes HAProxy.

Comes in: as a program, the real binary, the address to listen on and a directory for error files, then `--` and
HAProxy's own arguments (Serve calls us through `RAY_SERVE_HAPROXY_BINARY_PATH`). Goes out: the rewritten `-f` file and
`execv`, so that the pid which Serve watches is HAProxy's. Standard library only: it is run by path with `python -IS`.

Why: Serve 2.60 binds HAProxy's statistics and metrics on all interfaces, opens the admin socket to everybody, answers
its own errors as text (a 404, at which clients give up, while the app is not yet there), gives a client for ever to
send its headers, and splices (see `_line`). It has no settings for these.
"""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

RECEIVE_HEADERS_S = 10
"""How long a client may take to send a request's head, seconds."""
_UNAVAILABLE = (
    "The front door is starting or was restarted; try again in a moment",
    "server_error",
    "door_unavailable",
)
_ERRORS: Mapping[int, tuple[str, tuple[str, str, str], str]] = {
    400: ("Bad Request", ("The request is not valid HTTP/1.1", "invalid_request_error", "bad_request"), ""),
    408: (
        "Request Timeout",
        ("The request did not arrive in time", "invalid_request_error", "request_timeout"),
        "",
    ),
    500: ("Internal Server Error", ("The front door failed", "server_error", "internal_error"), ""),
    502: ("Bad Gateway", _UNAVAILABLE, "retry-after: 1\r\n"),
    503: ("Service Unavailable", _UNAVAILABLE, "retry-after: 1\r\n"),
    504: ("Gateway Timeout", _UNAVAILABLE, "retry-after: 1\r\n"),
}
_FRONTEND = re.compile(r"^(\s*)bind 127\.0\.0\.1:(\d+)\s*$")
_TEXT_ERROR = re.compile(
    r"^(\s*http-request return status )[45]\d\d content-type text/plain (?:lf-)?string "
    r'"(?:[^"\\]|\\.)*"(| (?:if|unless) .*)$'
)
_STARTING = "503 default-errorfiles"
"""What stands in for Serve's words: our error file, retry-after included."""
_TEXT_ANSWER = f"http-response return status {_STARTING} if {{ res.hdr(content-type) -i -m beg text/plain }}"
"""Our app answers with application/json or text/event-stream only: plain text is Serve's replica or its spare proxy."""
# Headers by which a client could steer Serve itself: a text/plain 408, another model, an id of its own making.
_STEERING = ("x-request-timeout-seconds", "serve_multiplexed_model_id", "serve-multiplexed-model-id", "x-request-id")


def hardened(text: str, host: str, error_dir: str) -> str:
    """Return Serve's HAProxy configuration, listening on `host` alone, speaking OpenAI's errors; idempotent.

    The sections that only publish statistics go; the front end gets deadlines and header rules. Serve's
    `x-request-disconnect-disabled` spares two tasks a request: our app watches for the client's leaving itself.
    """
    lines: list[str] = []
    is_dropped = False
    for line in text.splitlines():
        if line and not line[0].isspace() and not line.startswith("#"):
            is_dropped = line.startswith(("frontend prometheus", "listen stats"))
            lines += [] if is_dropped else [line]
            lines += _section_head(line, error_dir)
        elif not is_dropped:
            lines += _line(line, host)
    return "\n".join(lines) + "\n"


def _section_head(line: str, error_dir: str) -> list[str]:
    if line.strip() == "defaults":
        files = [f"    errorfile {status} {error_dir}/{status}.http" for status in sorted(_ERRORS)]
        return [f"    timeout http-request {RECEIVE_HEADERS_S}s", *files]
    if line.strip() == "frontend http_frontend":
        rules = [f"    http-request del-header {name}" for name in _STEERING]
        return [*rules, "    http-request set-header x-request-disconnect-disabled ?1", f"    {_TEXT_ANSWER}"]
    return []


def _line(line: str, host: str) -> list[str]:
    words = line.split()
    ours = ("errorfile", "timeout http-request", "http-request del-header", "http-request set-header x-request-disc")
    if line.strip().startswith((*ours, _TEXT_ANSWER)) or words[:1] == ["log"]:
        return []  # a second pass, Serve's text errors, or one syslog datagram a request that nobody reads
    if words[:1] == ["option"] and words[1:2] and words[1].startswith("splice-"):
        # A pipe of a stream that its client left comes back with the wrong state: the next request whose body follows
        # its head in a second packet then waits for HAProxy's next timer, up to 5 s (measured with 2.8.25).
        return []
    if words[:2] == ["stats", "socket"]:
        return [line.replace("mode 666", "mode 600")]
    said = _TEXT_ERROR.match(line)
    if said is not None:
        return [f"{said[1]}{_STARTING}{said[2]}"]
    found = _FRONTEND.match(line)
    if found is not None:
        address = f"[{host}]" if ":" in host else host
        return [f"{found[1]}bind {address}:{found[2]}"]
    return [line]


def error_files() -> Mapping[str, str]:
    """Return the files that HAProxy sends as they are: name -> a whole HTTP response."""
    files = {}
    for status, (reason, (message, kind, code), more) in _ERRORS.items():
        body = f'{{"error":{{"message":"{message}","type":"{kind}","param":null,"code":"{code}"}}}}'
        head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        files[f"{status}.http"] = f"{head}{more}cache-control: no-cache\r\nconnection: close\r\n\r\n{body}"
    return files


def wrapper_text(python: str, binary: str, host: str, error_dir: str) -> str:
    """Return the shell script that Serve runs in HAProxy's place."""
    words = [python, "-IS", str(Path(__file__).resolve()), binary, host, error_dir, "--"]
    quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
    return f'#!/bin/sh\nexec {quoted} "$@"\n'


def main(arguments: list[str]) -> None:
    """Rewrite the file after `-f` and become HAProxy; returns never."""
    binary, host, error_dir, _, *rest = arguments
    if "-f" in rest:
        file = Path(rest[rest.index("-f") + 1])
        file.write_text(hardened(file.read_text(), host, error_dir))
    os.execv(binary, [binary, *rest])  # noqa: S606 - an argument list, no shell


if __name__ == "__main__":
    main(sys.argv[1:])
