"""A request for a response as a request for a chat. Comes in: raw JSON of POST /v1/responses. Goes out: `Wanted`: the
chat's body for the relay, and what the answer repeats of the request.

Called by the surface. Pure. Nothing is stored, so whatever leans on what was stored, or on tools that run elsewhere, is
refused by name, and so is a field that nobody here would read.

Source: https://github.com/openai/openai-openapi (`CreateResponse`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from core.errors import Failure
from gateway.openai import requests
from gateway.responses.items import invalid, messages, unsupported

_PASSED = (
    "temperature",
    "top_p",
    "seed",
    "stop",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "repeat_penalty",
    "logit_bias",
    "chat_template_kwargs",
    "user",
)
"""What chats know under the same name; most of them are no fields of responses, but engines heed them."""
_HARMLESS = frozenset(
    {
        "client_metadata",
        "include",
        "max_tool_calls",  # of tools that run elsewhere
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "stream_options",
    }
)
"""Fields that change nothing in an answer given here."""
_STATELESS: Mapping[str, str] = {
    "previous_response_id": "send the conversation as 'input'",
    "conversation": "send the conversation as 'input'",
    "background": "leave it out, and stream the answer",
    "store": "leave it out, or set it to false",
    "prompt": "send the prompt itself as 'instructions' and 'input'",
    "context_management": "leave it out",
    "moderation": "leave it out",
}
"""What a door that stores nothing cannot do, with the next step; null and false ask for nothing."""
_FORMATS = frozenset({"json_object", "json_schema"})
_LOGPROBS = "message.output_text.logprobs"
_NAMES: Mapping[str, str] = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "logprobs": "top_logprobs",
}
"""A chat's fields by the names that they have here."""


class _Reasoning(msgspec.Struct):
    effort: str | None = None


class _Text(msgspec.Struct):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class _Request(msgspec.Struct):
    model: str = ""
    input: str | list[Any] | None = None
    instructions: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    text: _Text | None = None
    reasoning: _Reasoning | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    include: list[str] | None = None
    truncation: str | None = None
    user: str | None = None
    stream: bool | None = None


_decode = msgspec.json.Decoder(_Request).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_KNOWN = frozenset(_Request.__struct_fields__) | _HARMLESS | frozenset(_PASSED) | _STATELESS.keys()
_NOTHING = (b"null", b"false")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`body` asks for the chat; `echo` is what an answer repeats of the request."""

    model: str
    is_stream: bool
    body: bytes
    echo: Mapping[str, Any]


def wanted(body: bytes) -> Wanted:
    """Return what `body` asks for.

    Raises:
        Failure: `request.invalid_json`, `request.invalid_field`, `request.unknown_field` or
            `door.parameter_unsupported`.
    """
    asked = requests.decoded(_decode, body)
    members = _decode_members(body)
    if not asked.model:
        raise Failure("request.invalid_field", "'model' is missing", hint="name one of GET /v1/models", param="model")
    _check_fields(members)
    if asked.truncation not in (None, "disabled"):
        raise unsupported("Nothing is cut from an input here", "set 'truncation' to \"disabled\"", "truncation")
    if not asked.input:
        raise invalid("'input' must be a text or at least one item")
    chat: dict[str, Any] = {"model": asked.model, "messages": messages(asked.instructions, asked.input)}
    chat |= {name: members[name] for name in _PASSED if name in members}
    chat |= {**_tools(asked), **_form(asked)}
    if asked.max_output_tokens is not None:
        chat["max_completion_tokens"] = asked.max_output_tokens
    if asked.reasoning is not None and asked.reasoning.effort is not None:
        chat["reasoning_effort"] = asked.reasoning.effort
    if asked.top_logprobs or _LOGPROBS in (asked.include or ()):
        chat |= {"logprobs": True, "top_logprobs": asked.top_logprobs or 0}
    if asked.stream:
        chat |= {"stream": True, "stream_options": {"include_usage": True}}
    return Wanted(model=asked.model, is_stream=bool(asked.stream), body=_encode(chat), echo=_echo(asked))


def retold(failure: Failure) -> Failure:
    """Return `failure`, which speaks of a chat's fields, by the names that they have here."""
    name = _NAMES.get(failure.param or "")
    if name is None:
        return failure
    message = failure.message.replace(f"'{failure.param}'", f"'{name}'")
    return Failure(failure.code, message, hint=failure.hint, param=name, retry_after_s=failure.retry_after_s)


def _check_fields(members: Mapping[str, msgspec.Raw]) -> None:
    for name, hint in _STATELESS.items():
        if bytes(members.get(name, msgspec.Raw(b"null"))) not in _NOTHING:
            raise unsupported(f"'{name}' is not supported: the front door stores nothing", hint, name)
    unknown = next((name for name in members if name not in _KNOWN), None)
    if unknown is not None:
        raise requests.unknown_field(unknown[:80])


def _tools(asked: _Request) -> dict[str, Any]:
    """Return the chat's tools and which may be used; without tools a chat has no place for the latter."""
    if not asked.tools:
        if asked.tool_choice not in (None, "auto", "none"):
            raise invalid("'tool_choice' needs 'tools'", "tool_choice")
        return {}
    chat: dict[str, Any] = {"tools": [_tool(one) for one in asked.tools]}
    if asked.parallel_tool_calls is not None:
        chat["parallel_tool_calls"] = asked.parallel_tool_calls
    if asked.tool_choice is not None:
        chat["tool_choice"] = _choice(asked.tool_choice)
    return chat


def _tool(given: dict[str, Any]) -> dict[str, Any]:
    kind = given.get("type")
    if kind != "function":
        raise unsupported(
            f"Tools of type '{str(kind)[:40]}' do not run here", 'offer tools of type "function" and run them', "tools"
        )
    if not isinstance(given.get("name"), str) or not given["name"]:
        raise invalid("a tool must have a name", "tools")
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: given[name] for name in names if given.get(name) is not None}}


def _choice(given: str | dict[str, Any]) -> str | dict[str, Any]:
    if given in ("auto", "none", "required"):
        return given
    if isinstance(given, dict) and given.get("type") == "function" and isinstance(given.get("name"), str):
        return {"type": "function", "function": {"name": given["name"]}}
    if isinstance(given, dict):
        raise unsupported(
            f"A 'tool_choice' of type '{str(given.get('type'))[:40]}' is not supported",
            'use "auto", "none", "required" or a function\'s name',
            "tool_choice",
        )
    raise invalid("'tool_choice' must be auto, none, required or an object", "tool_choice")


def _form(asked: _Request) -> dict[str, Any]:
    if asked.text is None:
        return {}
    chat: dict[str, Any] = {}
    if asked.text.verbosity not in (None, "medium"):
        chat["verbosity"] = asked.text.verbosity
    form = asked.text.format or {"type": "text"}
    kind = form.get("type")
    if kind in _FORMATS:
        described = {name: value for name, value in form.items() if name != "type" and value is not None}
        if kind == "json_schema" and not isinstance(described.get("schema"), dict):
            raise invalid("'text.format.schema' must be a JSON schema", "text.format")
        chat["response_format"] = {"type": kind, "json_schema": described} if kind == "json_schema" else {"type": kind}
    elif kind != "text":
        raise invalid("'text.format.type' must be text, json_object or json_schema", "text.format")
    return chat


def _echo(asked: _Request) -> dict[str, Any]:
    text: dict[str, Any] = {"format": {"type": "text"}}
    if asked.text is not None and asked.text.format is not None:
        text["format"] = asked.text.format
    if asked.text is not None and asked.text.verbosity is not None:
        text["verbosity"] = asked.text.verbosity
    return {
        "background": False,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "metadata": asked.metadata or {},
        "model": asked.model,
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": asked.reasoning.effort if asked.reasoning else None, "summary": None},
        "store": False,
        "temperature": asked.temperature,
        "text": text,
        "tool_choice": asked.tool_choice or "auto",
        "tools": [{"strict": None, "parameters": None, **one} for one in asked.tools or ()],
        "top_logprobs": asked.top_logprobs,
        "top_p": asked.top_p,
        "truncation": "disabled",
        **({"user": asked.user} if asked.user is not None else {}),
    }
