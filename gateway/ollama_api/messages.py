"""Ollama's messages in OpenAI's words: images as parts, tool calls with ids and their arguments as text, results that
name the call they answer. Called by `requests`. Pure. It must not fetch an image.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from core.errors import Failure

_IMAGES = {"iVBORw0KGgo": "png", "/9j/": "jpeg", "UklGR": "webp", "R0lGOD": "gif"}
"""How base64 of an image begins, from the magic bytes of its format."""


class Called(msgspec.Struct):
    """What a tool call calls."""

    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class ToolCall(msgspec.Struct):
    """One call that the model has made before."""

    function: Called
    id: str = ""


class Message(msgspec.Struct):
    """One message of a conversation; a tool's result names its tool (`name` in older clients), newer ones the call."""

    role: str
    content: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    thinking: str | None = None
    tool_name: str | None = None
    name: str | None = None
    tool_call_id: str | None = None


def in_openai(given: Sequence[Message]) -> list[dict[str, Any]]:
    """Return the messages for an engine.

    Raises:
        Failure: `request.invalid_field`.
    """
    open_calls: list[tuple[str, str]] = []  # (name, id) of calls without a result yet, in order
    made = 0
    told: list[dict[str, Any]] = []
    for one in given:
        message: dict[str, Any] = {"role": one.role, "content": _content(one)}
        if one.thinking:
            message["reasoning_content"] = one.thinking
        if one.tool_calls:
            message["tool_calls"] = []
            for call in one.tool_calls:
                ident = call.id or f"call_{made}"
                made += 1
                open_calls.append((call.function.name, ident))
                function = {"name": call.function.name, "arguments": _arguments(call.function)}
                message["tool_calls"].append({"id": ident, "type": "function", "function": function})
        if one.role == "tool":
            message["tool_call_id"] = _answered(one, open_calls)
        told.append(message)
    return told


def _answered(result: Message, open_calls: list[tuple[str, str]]) -> str:
    """Return the id of the call that `result` answers: the one it names, the first open one of its tool, the first."""
    name = result.tool_name or result.name
    found = next((one for one in open_calls if one[1] == result.tool_call_id), None)
    found = found or next((one for one in open_calls if not result.tool_call_id and one[0] == name), None)
    if found is None and not result.tool_call_id and not name:
        found = next(iter(open_calls), None)
    if found is None:
        return result.tool_call_id or f"call_{name or 'unknown'}"
    open_calls.remove(found)
    return found[1]


def _arguments(called: Called) -> str:
    text = bytes(called.arguments).decode()
    if text.startswith('"'):
        text = msgspec.json.decode(called.arguments, type=str)
    if not text.lstrip().startswith("{"):
        raise _invalid("the arguments of a tool call in 'messages' must be a JSON object")
    return text


def _content(message: Message) -> str | list[dict[str, Any]]:
    text = message.content or ""
    if not message.images:
        return text
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    return [*parts, *({"type": "image_url", "image_url": {"url": _data_url(one)}} for one in message.images)]


def _data_url(image: str) -> str:
    kind = next((kind for start, kind in _IMAGES.items() if image.startswith(start)), None)
    if kind is None:
        raise _invalid("an image must be base64 of a PNG, JPEG, WebP or GIF; none is fetched", "images")
    return f"data:image/{kind};base64,{image}"


def _invalid(message: str, param: str = "messages") -> Failure:
    return Failure("request.invalid_field", message, param=param)
