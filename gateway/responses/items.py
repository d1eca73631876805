"""The input of a response as the messages of a chat: items in, messages out.

Called by `requests`. Pure. It must not drop in silence what would change an answer: an item or a part that no chat has
a place for is refused by name. Reasoning of earlier turns is left out, as OpenAI leaves it out where it is of no use.

Source: https://github.com/openai/openai-openapi (`InputItem`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from core.errors import Failure

_ROLES: Mapping[str, str] = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
"""Most models' templates know no developer."""
_TEXTS = frozenset({"input_text", "output_text", "text"})
_STORED = "the front door stores nothing: send the item itself"


def messages(instructions: str | None, given: str | Sequence[Any]) -> list[dict[str, Any]]:
    """Return the chat that `given`, a text or items, and `instructions` are.

    System messages at its beginning become one: many models' templates take no second.

    Raises:
        Failure: `request.invalid_field` or `door.parameter_unsupported`, for `input`.
    """
    found = [] if not instructions else [{"role": "system", "content": instructions}]
    if isinstance(given, str):
        return [*found, {"role": "user", "content": given}]
    for index, item in enumerate(given):
        if not isinstance(item, dict):
            raise invalid(f"input[{index}] must be an object")
        _add(found, item, f"input[{index}]")
    return _joined(found)


def invalid(message: str, param: str = "input") -> Failure:
    """Return the failure for a field of a request."""
    return Failure("request.invalid_field", message, param=param)


def unsupported(message: str, hint: str, param: str = "input") -> Failure:
    """Return the failure for what a door that only chats cannot do."""
    return Failure("door.parameter_unsupported", message, hint=hint, param=param)


def _add(found: list[dict[str, Any]], item: Mapping[str, Any], place: str) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        found.append(_message(item, place))
    elif kind == "function_call":
        _add_call(found, item, place)
    elif kind == "function_call_output":
        content = _flat(_parts(item.get("output"), f"{place}.output"))
        if not isinstance(content, str):
            raise unsupported(f"{place}: the output of a function can only be text", "send it as text")
        found.append({"role": "tool", "tool_call_id": _text(item, "call_id", place), "content": content})
    elif kind == "item_reference":
        raise unsupported(f"{place} refers to a stored item", _STORED)
    elif kind != "reasoning":
        raise unsupported(f"{place} is of type '{str(kind)[:40]}', which this API does not take", "leave it out")


def _message(item: Mapping[str, Any], place: str) -> dict[str, Any]:
    role = _ROLES.get(str(item.get("role")))
    if role is None:
        raise invalid(f"{place}.role must be user, assistant, system or developer")
    parts = _parts(item.get("content"), f"{place}.content")
    content = _flat(parts)
    if role != "user" and not isinstance(content, str):
        raise invalid(f"{place}.content of role {role} must be text")
    return {"role": role, "content": content}


def _add_call(found: list[dict[str, Any]], item: Mapping[str, Any], place: str) -> None:
    """Put a call into the assistant's message before it, or into one of its own: a turn is one message in a chat."""
    function = {"name": _text(item, "name", place), "arguments": _text(item, "arguments", place)}
    call = {"id": _text(item, "call_id", place), "type": "function", "function": function}
    if not found or found[-1]["role"] != "assistant":
        found.append({"role": "assistant", "content": None})
    found[-1].setdefault("tool_calls", []).append(call)


def _parts(given: Any, place: str) -> list[dict[str, Any]]:
    if isinstance(given, str):
        return [{"type": "text", "text": given}]
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise invalid(f"{place} must be a text or a list of parts")
    return [_part(one, f"{place}[{index}]") for index, one in enumerate(given)]


def _part(part: Mapping[str, Any], place: str) -> dict[str, Any]:
    kind = part.get("type")
    if kind in _TEXTS:
        return {"type": "text", "text": _text(part, "text", place)}
    if kind == "refusal":
        return {"type": "text", "text": _text(part, "refusal", place)}
    if kind == "input_image" and part.get("image_url"):
        detail = {"detail": part["detail"]} if part.get("detail") else {}
        return {"type": "image_url", "image_url": {"url": _text(part, "image_url", place), **detail}}
    if kind == "input_audio" and isinstance(part.get("input_audio"), dict):
        return {"type": "input_audio", "input_audio": part["input_audio"]}
    if kind in ("input_image", "input_file"):
        raise unsupported(f"{place}: files are not stored or read here", "send text, or an image as a data URL")
    raise invalid(f"{place}.type must be input_text, output_text, refusal or input_image")


def _flat(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Return one text where there is nothing else: every template takes that."""
    if all(one["type"] == "text" for one in parts):
        return "".join(one["text"] for one in parts)
    return parts


def _joined(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    leading = next((index for index, one in enumerate(found) if one["role"] != "system"), len(found))
    if leading < 2:
        return found
    return [{"role": "system", "content": "\n\n".join(one["content"] for one in found[:leading])}, *found[leading:]]


def _text(item: Mapping[str, Any], name: str, place: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise invalid(f"{place}.{name} must be a text")
    return value
