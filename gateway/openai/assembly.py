"""A whole answer put together from an event stream, for engines that notice only in a stream that their client left.

Comes in: all bytes of a finished stream of chunks. Goes out: the JSON of the `chat.completion` or `text_completion`
that the client asked for, or the engine's error event. Pure; called by the relay. It must not make up what the engine
did not say: a stream that ended without a finish reason is no answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode
_NAMES: Mapping[str, str] = {"chat.completion.chunk": "chat.completion"}
_PREFIX, _DONE = b"data:", b"[DONE]"


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """`body` is the answer, empty when there is none; `error` is the JSON of the engine's error event, if one came."""

    body: bytes = b""
    error: bytes | None = None


def assembled(stream: bytes) -> Assembled:
    """Return the answer that `stream` tells piece by piece; empty when it broke off or is no stream of chunks."""
    answer: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for line in stream.splitlines():
        data = line[len(_PREFIX) :].strip() if line.startswith(_PREFIX) else b""
        if not data or data == _DONE:
            continue
        try:
            chunk = _decode(data)
        except msgspec.DecodeError:
            return Assembled()
        if "error" in chunk and "choices" not in chunk:
            return Assembled(error=data)
        for part in chunk.pop("choices", []):
            _add(choices.setdefault(part.get("index", 0), {"index": part.get("index", 0)}), part)
        answer.update({name: value for name, value in chunk.items() if value is not None})
    if not choices or not all(choice.get("finish_reason") for choice in choices.values()):
        return Assembled()
    answer["object"] = _NAMES.get(answer.get("object", ""), answer.get("object"))
    answer["choices"] = [_whole(choices[index]) for index in sorted(choices)]
    return Assembled(body=_encode(answer))


def _add(choice: dict[str, Any], part: dict[str, Any]) -> None:
    for name, value in part.items():
        if name == "delta":
            _add_delta(choice.setdefault("message", {"role": "assistant", "content": None}), value or {})
        elif name == "text":
            choice["text"] = choice.get("text", "") + value
        elif name == "logprobs" and isinstance(value, dict):
            _extend(choice.setdefault("logprobs", {}), value)
        elif value is not None or name not in choice:
            choice[name] = value


def _add_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if name == "tool_calls":
            for call in value or []:
                _add_call(message.setdefault("tool_calls", {}), call)
        elif isinstance(value, str) and name != "role":
            message[name] = (message.get(name) or "") + value
        elif value is not None:
            message[name] = value


def _add_call(calls: dict[int, dict[str, Any]], piece: dict[str, Any]) -> None:
    """Join one piece of a call: its name and arguments come in pieces, whatever else comes once."""
    call = calls.setdefault(piece.get("index", 0), {})
    for name, value in piece.items():
        if name == "function":
            function = call.setdefault("function", {"name": "", "arguments": ""})
            for field in ("name", "arguments"):
                function[field] += value.get(field) or ""
        elif name != "index" and value is not None:
            call[name] = value


def _extend(lists: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        lists[name] = [*(lists.get(name) or []), *value] if isinstance(value, list) else value


def _whole(choice: dict[str, Any]) -> dict[str, Any]:
    calls = choice.get("message", {}).get("tool_calls")
    if calls is not None:
        choice["message"]["tool_calls"] = [calls[index] for index in sorted(calls)]
    return choice
