"""OpenAI's requests in Ollama's words. Comes in: a checked body. Goes out: the body for /api/chat, /api/generate or
/api/embed, always with `truncate: false`, so that what does not fit is an error and never cut. Called by `exchange`.
Pure. It must not send `num_ctx` or `keep_alive`: the one reloads the model, the other moves its end.

Source: ollama/ollama openai/openai.go (what its own imitation maps) and docs/openapi.yaml of 0.33.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from adapters.contract import Endpoint
from core.errors import Failure
from gateway.openai import requests

_IMAGE_PREFIXES = tuple(f"data:image/{kind};base64," for kind in ("png", "jpeg", "jpg", "webp"))
_EFFORTS: Mapping[str, bool | str] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
}
_ROLES: Mapping[str, str] = {"developer": "system", "function": "tool"}


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Request(msgspec.Struct):
    """The fields of all three endpoints that Ollama has a word for."""

    messages: list[dict[str, Any]] = []
    prompt: Any = None
    input: Any = None
    dimensions: int | None = None
    encoding_format: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repeat_penalty: float | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    reasoning_effort: str | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with its usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


_decode = msgspec.json.Decoder(_Request).decode
_encode = msgspec.json.Encoder().encode


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer depends on, and the body for Ollama."""

    body: bytes
    is_stream: bool
    wants_usage: bool
    is_base64: bool


def asked(endpoint: Endpoint, body: bytes, model: str) -> Asked:
    """Return `body`, a request of OpenAI's form that `gateway.openai.requests.asked` accepted, in Ollama's words.

    Raises:
        Failure: `request.invalid_field` with the field's name.
    """
    try:
        wanted = _decode(body)
    except msgspec.ValidationError as error:
        raise requests.wrong_field(str(error)) from None
    if endpoint is Endpoint.CHAT:
        native = _chat(wanted)
    elif endpoint is Endpoint.COMPLETIONS:
        native = _generate(wanted)
    else:
        native = _embed(wanted)
    is_stream = bool(wanted.stream) and endpoint is not Endpoint.EMBEDDINGS
    native |= {"model": model, "truncate": False}
    if endpoint is not Endpoint.EMBEDDINGS:
        native |= {"stream": is_stream, "options": _options(wanted)}
    return Asked(
        body=_encode(native),
        is_stream=is_stream,
        wants_usage=wanted.wants_usage,
        is_base64=wanted.encoding_format == "base64",
    )


def _chat(wanted: _Request) -> dict[str, Any]:
    native: dict[str, Any] = {"messages": _messages(wanted.messages)}
    if wanted.tools and wanted.tool_choice != "none":
        native["tools"] = [_tool(one) for one in wanted.tools]
    if wanted.response_format is not None and (form := _format(wanted.response_format)) is not None:
        native["format"] = form
    if wanted.logprobs:
        native |= {"logprobs": True, "top_logprobs": wanted.top_logprobs or 0}
    if wanted.reasoning_effort is not None:
        if wanted.reasoning_effort not in _EFFORTS:
            raise _invalid("reasoning_effort", f"'reasoning_effort' must be one of {', '.join(_EFFORTS)}")
        native["think"] = _EFFORTS[wanted.reasoning_effort]
    return native


def _tool(given: dict[str, Any]) -> dict[str, Any]:
    function = given.get("function")
    if given.get("type") != "function" or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _invalid("tools", "a tool must be of type 'function' and have a function with a name")
    return given


def _generate(wanted: _Request) -> dict[str, Any]:
    prompt = wanted.prompt
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        raise _invalid("prompt", "'prompt' must be one text: this model's engine takes neither lists nor tokens")
    # Without `raw` Ollama would wrap the prompt into the chat template instead of continuing it.
    # A model that thinks would do so here too, and a completion has no place for it.
    native: dict[str, Any] = {"prompt": prompt, "raw": True, "think": False}
    if wanted.logprobs is not None and wanted.logprobs is not False:
        native |= {"logprobs": True, "top_logprobs": int(wanted.logprobs)}
    return native


def _embed(wanted: _Request) -> dict[str, Any]:
    inputs = [wanted.input] if isinstance(wanted.input, str) else wanted.input
    if not isinstance(inputs, list) or not inputs or not all(isinstance(one, str) and one for one in inputs):
        raise _invalid("input", "'input' must be a text or a list of texts: this model's engine takes no tokens")
    native: dict[str, Any] = {"input": inputs}
    if wanted.dimensions is not None:
        native["dimensions"] = wanted.dimensions
    return native


def _options(wanted: _Request) -> dict[str, Any]:
    # OpenAI's defaults, which differ from Ollama's (0.8 and 0.9).
    options: dict[str, Any] = {
        "temperature": 1.0 if wanted.temperature is None else wanted.temperature,
        "top_p": 1.0 if wanted.top_p is None else wanted.top_p,
    }
    limit = wanted.max_tokens if wanted.max_completion_tokens is None else wanted.max_completion_tokens
    given = {
        "num_predict": limit,
        "seed": wanted.seed,
        "frequency_penalty": wanted.frequency_penalty,
        "presence_penalty": wanted.presence_penalty,
        "repeat_penalty": wanted.repeat_penalty,
        "top_k": wanted.top_k,
        "min_p": wanted.min_p,
        "stop": [wanted.stop] if isinstance(wanted.stop, str) else wanted.stop,
    }
    return {**options, **{name: value for name, value in given.items() if value is not None}}


def _format(wanted: Mapping[str, Any]) -> object:
    kind = wanted.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return "json"
    described = wanted.get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    if kind != "json_schema" or not isinstance(schema, dict):
        raise _invalid("response_format", "'response_format' must be text, json_object, or json_schema with a schema")
    return schema


def _messages(given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    names: dict[str, str] = {}  # of the functions that were called, by the call's id
    return [_message(one, names) for one in given]


def _message(given: Mapping[str, Any], names: dict[str, str]) -> dict[str, Any]:
    role = given.get("role")
    if not isinstance(role, str):
        raise _invalid("messages", "each of 'messages' must have a role")
    message: dict[str, Any] = {"role": _ROLES.get(role, role), "content": ""}
    content = given.get("content")
    if isinstance(content, str):
        message["content"] = content
    elif isinstance(content, list):
        message |= _parts(content)
    elif content is not None or not given.get("tool_calls"):
        raise _invalid("messages", "the content of a message must be a text or a list of parts")
    if given.get("tool_calls"):
        if not isinstance(given["tool_calls"], list):
            raise _invalid("messages", "the tool_calls of a message must be a list")
        message["tool_calls"] = [_tool_call(one, names) for one in given["tool_calls"]]
    thought = given.get("reasoning_content") or given.get("reasoning")
    if isinstance(thought, str):
        message["thinking"] = thought
    call_id = given.get("tool_call_id")
    if isinstance(call_id, str):
        message |= {"tool_call_id": call_id, "tool_name": names.get(call_id, "")}
    return message


def _parts(content: Sequence[Any]) -> dict[str, Any]:
    """Return text parts as one text and images as base64; Ollama's imitation would make a message of each."""
    texts: list[str] = []
    images: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "refusal") and isinstance(part.get(kind), str):
            texts.append(part[kind])
        elif kind == "image_url":
            images.append(_image(part.get("image_url")))
        else:
            raise _invalid("messages", f"a part of type {str(kind)[:40]!r} is not known to this model's engine")
    return {"content": "".join(texts), **({"images": images} if images else {})}


def _image(given: object) -> str:
    url = given.get("url") if isinstance(given, dict) else given
    if not isinstance(url, str) or not url.startswith(_IMAGE_PREFIXES):
        raise _invalid(
            "messages", "an image must be sent as data:image/png;base64,... (or jpeg, webp): none is fetched"
        )
    return url.partition(",")[2]


def _tool_call(given: object, names: dict[str, str]) -> dict[str, Any]:
    function = given.get("function") if isinstance(given, dict) else None
    if not isinstance(given, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _invalid("messages", "a tool call in 'messages' must name a function")
    try:
        arguments = msgspec.json.decode(function.get("arguments") or "{}")
    except (msgspec.DecodeError, TypeError):
        arguments = None
    if not isinstance(arguments, dict):
        raise _invalid("messages", "the arguments of a tool call in 'messages' must be the text of a JSON object")
    call_id = str(given.get("id") or "")
    names[call_id] = function["name"]
    return {"id": call_id, "function": {"name": function["name"], "arguments": arguments}}


def _invalid(param: str, message: str) -> Failure:
    return Failure("request.invalid_field", message, param=param)
