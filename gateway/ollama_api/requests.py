"""Ollama's requests in OpenAI's words. Comes in: raw JSON of /api/chat, /api/generate, /api/embed or /api/embeddings.
Goes out: what was asked, and the endpoint and body for the relay. Called by the surface. Pure. It must not decode what
it only passes on (tools, schemas, sampling values), nor drop in silence what would change an answer.

Source: ollama/ollama docs/openapi.yaml and docs/api.md of 0.33.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from adapters.contract import Api, Dialect, Endpoint
from core.errors import Failure
from gateway.ollama_api.messages import Message, in_openai
from gateway.openai import requests

_SENT: Mapping[str, tuple[str, ...]] = {
    "temperature": ("temperature",),
    "top_p": ("top_p",),
    "top_k": ("top_k",),
    "min_p": ("min_p",),
    "seed": ("seed",),
    "stop": ("stop",),
    "frequency_penalty": ("frequency_penalty",),
    "presence_penalty": ("presence_penalty",),
    # Engines call it by either name and ignore the other.
    "repeat_penalty": ("repeat_penalty", "repetition_penalty"),
    "num_predict": ("max_tokens",),
}
"""The options that reach an engine, under the names that engines know. The others are about how a model is loaded,
which is the operator's, or samplers that Ollama itself has given up: `Wanted.ignored` names them."""
_NULL = msgspec.Raw(b"null")
_LEVELS = {"low": "low", "medium": "medium", "high": "high"}
_NO_TIME = frozenset({"0", "0s", "0m", "0h", "0ms"})


class Parsed(msgspec.Struct):
    """A request of any of the four kinds, as far as the door reads it."""

    model: str = ""
    stream: bool | None = None
    messages: list[Message] | None = None
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    raw: bool | None = None
    context: list[int] | None = None
    images: list[str] | None = None
    input: str | list[str] | None = None
    dimensions: int | None = None
    options: dict[str, msgspec.Raw] | None = None
    format: msgspec.Raw = _NULL
    tools: msgspec.Raw = _NULL
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    keep_alive: float | str | None = None

    @property
    def is_stream(self) -> bool:
        """Whether the answer comes in pieces: always, unless the client says no."""
        return self.stream is not False

    @property
    def asks_unload(self) -> bool:
        """Whether the model is not to be kept after this request."""
        return self.keep_alive == 0 or self.keep_alive in _NO_TIME

    @property
    def ignored(self) -> list[str]:
        """The options that change nothing here, sorted."""
        return sorted(name for name, value in (self.options or {}).items() if name not in _SENT and value != _NULL)


@dataclass(frozen=True, kw_only=True)
class Translated:
    """A request in OpenAI's words."""

    endpoint: Endpoint
    body: bytes


class _Shown(msgspec.Struct):
    model: str = ""
    name: str = ""  # what older clients call it


_decode = msgspec.json.Decoder(Parsed).decode
_decode_shown = msgspec.json.Decoder(_Shown).decode
_encode = msgspec.json.Encoder().encode


def parsed(body: bytes) -> Parsed:
    """Return what `body` asks.

    Raises:
        Failure: `request.invalid_json` or `request.invalid_field`.
    """
    found = requests.decoded(_decode, body)
    if not found.model:
        raise invalid("model", "'model' is missing")
    return found


def shown(body: bytes) -> str:
    """Return the model that a request of /api/show names.

    Raises:
        Failure: `request.invalid_json` or `request.invalid_field`.
    """
    found = requests.decoded(_decode_shown, body)
    if not found.model and not found.name:
        raise invalid("model", "'model' is missing")
    return found.model or found.name


def encoded(value: Mapping[str, object]) -> bytes:
    """Return `value` as JSON."""
    return _encode(value)


def chat(asked: Parsed, public: str, dialect: Dialect | None) -> Translated:
    """Return the chat that `asked`, a request with messages, wants of the model `public`.

    Raises:
        Failure: `request.invalid_field`.
    """
    return _chat(asked, public, dialect, in_openai(asked.messages or []))


def generation(asked: Parsed, public: str, dialect: Dialect | None, *, can_chat: bool) -> Translated:
    """Return the generation that `asked` wants of the model `public`. The decision, first match wins:

    1. `raw`, or a `suffix`: a completion of the prompt as it is
    2. the model can chat: a chat of `system` and the prompt, which the model's own template wraps, as Ollama does
    3. a completion of the prompt, where `system` and images have no place

    Raises:
        Failure: `request.invalid_field`.
    """
    if asked.template:
        raise invalid("template", "the model's own template applies", "send 'raw': true with a prompt that is whole")
    if asked.context:
        raise invalid("context", "'context' is not supported", "send the conversation to /api/chat")
    if can_chat and not asked.raw and not asked.suffix:  # 2
        given = [Message(role="user", content=asked.prompt, images=asked.images)]
        if asked.system:
            given.insert(0, Message(role="system", content=asked.system))
        return _chat(asked, public, dialect, in_openai(given))
    for name in ("system", "images"):
        if getattr(asked, name):
            raise invalid(name, f"'{name}' has no place in a prompt that no template wraps")
    if _format(asked.format) is not None:
        raise invalid("format", "'format' works with a chat model and without 'raw' or 'suffix'")
    body: dict[str, Any] = {"model": public, "prompt": asked.prompt, **_answering(asked)}
    if asked.suffix:
        body["suffix"] = asked.suffix
    if asked.logprobs:
        body["logprobs"] = asked.top_logprobs or 0
    return Translated(endpoint=Endpoint.COMPLETIONS, body=_encode(body))


def embedding(asked: Parsed, public: str, *, is_old: bool) -> Translated:
    """Return the embeddings that `asked` wants of the model `public`: of `input`, or of `prompt` in the old form."""
    body: dict[str, Any] = {"model": public, "input": asked.prompt if is_old else asked.input}
    if asked.dimensions:
        body["dimensions"] = asked.dimensions
    return Translated(endpoint=Endpoint.EMBEDDINGS, body=_encode(body))


def invalid(param: str, message: str, hint: str = "") -> Failure:
    """Return the failure for a field of a request."""
    return Failure("request.invalid_field", message, hint=hint, param=param)


def _chat(asked: Parsed, public: str, dialect: Dialect | None, given: list[dict[str, Any]]) -> Translated:
    body: dict[str, Any] = {"model": public, "messages": given, **_answering(asked), **_thinking(asked.think, dialect)}
    form = _format(asked.format)
    if form is not None:
        body["response_format"] = form
    if bytes(asked.tools) not in (b"null", b"[]"):
        body["tools"] = asked.tools
    if asked.logprobs:
        body |= {"logprobs": True, "top_logprobs": asked.top_logprobs or 0}
    return Translated(endpoint=Endpoint.CHAT, body=_encode(body))


def _answering(asked: Parsed) -> dict[str, Any]:
    """Return the sampling and the form of the answer; a stream always tells its counts, as Ollama's does."""
    options = asked.options or {}
    body: dict[str, Any] = {}
    for name, names in _SENT.items():
        value = options.get(name, _NULL)
        if value != _NULL:
            body |= dict.fromkeys(names, value)
    limit = _checked(options.get("num_predict", _NULL))
    if limit is not None and limit <= 0:
        del body["max_tokens"]  # Ollama's -1 and -2: as long as it gets
    if asked.is_stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def _checked(limit: msgspec.Raw) -> int | None:
    try:
        return msgspec.json.decode(limit, type=int | None)
    except msgspec.ValidationError:
        raise invalid("num_predict", "'num_predict' must be a whole number") from None


def _format(given: msgspec.Raw) -> dict[str, Any] | None:
    if bytes(given) in (b"null", b'""'):
        return None
    if bytes(given) == b'"json"':
        return {"type": "json_object"}
    if not bytes(given).startswith(b"{"):
        raise invalid("format", "'format' must be \"json\" or a JSON schema")
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": given}}


def _thinking(think: bool | str | None, dialect: Dialect | None) -> dict[str, Any]:
    """Return how the engine is told to think or not; nothing for one that has no switch that we know of."""
    if think is None or think == "":
        return {}
    has_switch = dialect is not None and dialect.takes_template_values
    switch = {"chat_template_kwargs": {"enable_thinking": think is not False}} if has_switch else {}
    if isinstance(think, bool):
        is_ollama = dialect is not None and dialect.api is Api.OLLAMA
        return {"reasoning_effort": "none"} if is_ollama and not think else switch
    if think == "max":
        return {"reasoning_effort": "xhigh" if dialect is not None and dialect.api is Api.OLLAMA else "high", **switch}
    if think not in _LEVELS:
        raise invalid("think", '\'think\' must be true, false, "low", "medium", "high" or "max"')
    return {"reasoning_effort": think, **switch}
