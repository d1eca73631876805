"""One request body, read once: the few fields the door needs, checked; everything else stays the client's bytes.

Comes in: raw JSON and the endpoint. Goes out: `Asked`, or a `Failure` in the 400 class that names the field, or the
line and column. Also splices the engine's name for a model into the body. Pure. It must not re-encode a client's
values: numbers, strings and unknown fields reach the engine byte for byte.
"""

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from adapters.contract import Dialect, Endpoint, JsonValue
from core.errors import Failure

MAX_DEPTH = 64
"""Deepest nesting of a body; engines' own parsers recurse."""
_BOUNDS: tuple[tuple[str, float, float | None], ...] = (
    ("n", 1, 8),  # every completion is a slot of the engine
    ("temperature", 0, 2),
    ("top_p", 0, 1),
    ("max_tokens", 1, None),
    ("max_completion_tokens", 1, None),
    ("dimensions", 1, None),
)
MAX_INPUTS = 2048
"""Most inputs of one request for embeddings, as OpenAI has it."""
CONTENT: Mapping[Endpoint, str] = {
    Endpoint.CHAT: "messages",
    Endpoint.COMPLETIONS: "prompt",
    Endpoint.EMBEDDINGS: "input",
}
"""The field of a request that holds what the model reads."""
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_BYTE = re.compile(r"\(byte (\d+)\)")
_FIELD = re.compile(r" - at `\$\.([\w-]+)")
_INNER = re.compile(r"contains unknown field `([\w-]{1,80})`")
_NO_NUMBER = re.compile(rb'"([\w-]{1,80})"\s*:\s*\Z')
_NOT_FINITE = re.compile(rb"-?(?:NaN|Infinity|nan|inf)")
_STEERING = frozenset({"api_base", "base_url", "api_key", "custom_llm_provider", "extra_headers", "user_config"})
"""Fields by which other gateways let a client choose where its request goes; any other unknown one is the engine's."""


Parsed = TypeVar("Parsed")
_ABSENT = msgspec.Raw()
_NULL = msgspec.Raw(b"null")
_FORM, _SCHEMA = "response_format", "json_schema"


class _UserConfig(msgspec.Struct, forbid_unknown_fields=True):
    """What may stand in `user_config`: nothing."""


class _Body(msgspec.Struct):
    model: str | None = None
    messages: list[dict[str, msgspec.Raw]] | None = None
    prompt: msgspec.Raw = _ABSENT
    input: msgspec.Raw = _ABSENT
    stream: bool | None = None
    stream_options: dict[str, msgspec.Raw] | msgspec.UnsetType | None = msgspec.UNSET
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    encoding_format: str | None = None
    dimensions: int | None = None
    # `_STEERING`, of a type that only null has: the parser itself refuses them, at no cost to those who send none.
    api_base: None = None
    base_url: None = None
    api_key: None = None
    custom_llm_provider: None = None
    extra_headers: None = None
    user_config: _UserConfig | None = None


class _Function(msgspec.Struct):
    name: str


class _Tool(msgspec.Struct):
    function: _Function


_decode = msgspec.json.Decoder(_Body).decode
_decode_input = msgspec.json.Decoder(str | list[str | int | list[int]]).decode
_decode_tool = msgspec.json.Decoder(_Tool).decode
_decode_tools = msgspec.json.Decoder(list[msgspec.Raw] | None).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks for: the model's public name, whether the answer is a stream, and of how many choices.

    Of embeddings, whether in base64 and of how many `dimensions` (0: as the model has). `wants_usage` says that the
    stream is to tell its tokens, `has_stream_options` that it says anything about that.
    """

    model: str
    is_stream: bool
    choices: int = 1
    is_base64: bool = False
    dimensions: int = 0
    wants_usage: bool = False
    has_stream_options: bool = False


def asked(endpoint: Endpoint, body: bytes) -> Asked:
    """Return what `body` asks of `endpoint`.

    Raises:
        Failure: `request.invalid_json`, `request.invalid_field` or `request.out_of_range`.
    """
    parsed = decoded(_decode, body)
    if not parsed.model:
        raise _invalid("model", "'model' is missing", "name one of GET /v1/models")
    _check_content(endpoint, parsed)
    for name, low, high in _BOUNDS:
        value = getattr(parsed, name)
        if value is not None and not (low <= value and (high is None or value <= high)):
            wanted = f"between {low} and {high}" if high is not None else f"at least {low}"
            raise Failure("request.out_of_range", f"'{name}' must be {wanted}, not {value}", param=name)
    options = parsed.stream_options
    told = options.get("include_usage", _NULL) if isinstance(options, dict) else _NULL
    is_embedding = endpoint is Endpoint.EMBEDDINGS
    return Asked(
        model=parsed.model,
        is_stream=bool(parsed.stream),
        choices=1 if is_embedding else parsed.n or 1,
        is_base64=is_embedding and parsed.encoding_format == "base64",
        dimensions=(parsed.dimensions or 0) if is_embedding else 0,
        wants_usage=bytes(told) not in (b"null", b"false"),  # one of a wrong type is the engine's to refuse
        has_stream_options=options is not msgspec.UNSET,
    )


def decoded(decode: Callable[[bytes], Parsed], body: bytes) -> Parsed:
    """Return what `decode`, of msgspec's, makes of `body`.

    Raises:
        Failure: `request.invalid_json` or `request.invalid_field`.
    """
    try:
        # Engines want UTF-8 (RFC 8259, 8.1); the parser checks only the strings it keeps.
        body.decode()
        parsed = decode(body)
    except msgspec.ValidationError as error:
        raise wrong_field(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _malformed(body, error) from None
    except RecursionError:
        raise _too_deep() from None
    if nesting(body) > MAX_DEPTH:
        raise _too_deep()
    return parsed


def with_model(body: bytes, name: str) -> bytes:
    """Return `body` (an object that `asked` accepted) with its top-level `model` replaced by `name`.

    Every other member keeps its bytes; of a key given twice the last stays, as every JSON parser we know reads it.
    """
    members = dict(_decode_members(body))
    members["model"] = msgspec.Raw(_encode(name))
    return _encode(members)


def shapes_fields(dialect: Dialect) -> bool:
    """Return whether `with_fields` would ever change a request for an engine of this dialect."""
    has_schema_elsewhere = dialect.schema_member != _SCHEMA
    return bool(dialect.renames or dialect.dropped or dialect.lists or dialect.defaults or has_schema_elsewhere)


def with_fields(body: bytes, dialect: Dialect) -> bytes:
    """Return `body` with top-level fields renamed, left out, wrapped and added; every other member keeps its bytes.

    A field stays as it is when the engine's own name for it is given too; null counts as absent for `defaults`.
    """
    members = dict(_decode_members(body))
    for ours, theirs in dialect.renames.items():
        if ours in members and members.get(theirs, _NULL) == _NULL:
            members[theirs] = members.pop(ours)
    for name, values in dialect.dropped.items():
        if name in members and msgspec.json.decode(members[name]) in values:
            del members[name]
    for name in dialect.lists:
        if bytes(members.get(name, _NULL))[:1] == b'"':
            members[name] = msgspec.Raw(b"[" + bytes(members[name]) + b"]")
    if dialect.schema_member != _SCHEMA and bytes(members.get(_FORM, _NULL))[:1] == b"{":
        form = dict(_decode_members(members[_FORM]))
        if _SCHEMA in form:
            form[dialect.schema_member] = form.pop(_SCHEMA)
            members[_FORM] = msgspec.Raw(_encode(form))
    for name, value in dialect.defaults.items():
        if members.get(name, _NULL) == _NULL:
            members[name] = msgspec.Raw(_encode(value))
    return _encode(members)


def check_refused(body: bytes, refused: Mapping[str, tuple[JsonValue, ...]], model: str, engine: str) -> None:
    """Let a request pass that sets no field of `refused`, or sets it to null or one of its harmless values.

    Raises:
        Failure: `door.parameter_unsupported` with the field's name.
    """
    members = _decode_members(body)
    for name, harmless in refused.items():
        value = msgspec.json.decode(members.get(name, _NULL))
        # Type for type: to Python 1 is True, to an engine `logprobs: 1` is another request than `logprobs: true`.
        if value is None or any(value == one and isinstance(value, bool) is isinstance(one, bool) for one in harmless):
            continue
        allowed = " or ".join(_encode(one).decode() for one in harmless)
        raise Failure(
            "door.parameter_unsupported",
            f"Model '{model}' is served by {engine}, which cannot take '{name}'"
            + (f" = {_encode(value).decode()[:40]}" if isinstance(value, str | int | float) else ""),
            hint=f"leave it out, or set it to {allowed}" if allowed else "leave it out",
            param=name,
        )


def with_named_tool(body: bytes) -> bytes:
    """Return `body` with the one tool that its `tool_choice` names, and a tool required: the same request, for an
    engine that knows no names there. As it is when it names none.

    Raises:
        Failure: `request.invalid_field`: there is no such tool.
    """
    members = dict(_decode_members(body))
    choice = members.get("tool_choice", _NULL)
    if bytes(choice)[:1] != b"{":
        return body
    try:
        name = _decode_tool(choice).function.name
        tools = _decode_tools(members.get("tools", _NULL)) or []
        named = [one for one in tools if _decode_tool(one).function.name == name]
    except msgspec.ValidationError:
        return body  # what is wrong with it is told by the check that follows, or by the engine
    if not named:
        raise _invalid("tool_choice", f"'tool_choice' names '{name[:80]}', which is none of 'tools'")
    members["tools"] = msgspec.Raw(_encode(named))
    members["tool_choice"] = msgspec.Raw(b'"required"')
    return _encode(members)


def as_stream(body: bytes) -> bytes:
    """Return `body` (an object that `asked` accepted) asking for a stream that tells its usage at its end."""
    members = dict(_decode_members(body))
    members["stream"] = msgspec.Raw(b"true")
    members["stream_options"] = msgspec.Raw(b'{"include_usage":true}')
    return _encode(members)


def with_usage(body: bytes, *, has_options: bool) -> bytes:
    """Return `body`, which asks for a stream, asking for its usage too; `has_options`: it has `stream_options`.

    Every other member keeps its bytes, and without `stream_options` the whole of it.
    """
    if not has_options:
        return body.rstrip(b" \t\r\n")[:-1] + b',"stream_options":{"include_usage":true}}'
    members = dict(_decode_members(body))
    options = members["stream_options"]
    given = {} if options == _NULL else dict(_decode_members(options))
    given.pop("continuous_usage_stats", None)  # vLLM's: without usage it does nothing, with it it fills every chunk
    members["stream_options"] = msgspec.Raw(_encode({**given, "include_usage": True}))
    return _encode(members)


def nesting(body: bytes) -> int:
    """Return an upper bound of the nesting of valid JSON, exact when it has more than `MAX_DEPTH` brackets."""
    brackets = body.count(b"{") + body.count(b"[")
    if brackets <= MAX_DEPTH:
        return brackets
    depth = deepest = 0
    for found in _TOKEN.finditer(body):
        token = body[found.start()]
        if token in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif token in b"]}":
            depth -= 1
    return deepest


def _check_content(endpoint: Endpoint, parsed: _Body) -> None:
    name = CONTENT[endpoint]
    if endpoint is Endpoint.CHAT:
        if not parsed.messages:
            raise _invalid(name, "'messages' must be a list of at least one message", "see OpenAI's API reference")
    elif bytes(getattr(parsed, name)) in (b"", b"null"):
        raise _invalid(name, f"'{name}' must be given", "see OpenAI's API reference")
    elif endpoint is Endpoint.EMBEDDINGS:
        _check_embedding(parsed)


def _check_embedding(parsed: _Body) -> None:
    if parsed.encoding_format not in (None, "float", "base64"):
        raise _invalid("encoding_format", "'encoding_format' must be float or base64")
    try:
        given = _decode_input(parsed.input)
    except msgspec.ValidationError:
        raise _no_input() from None
    if isinstance(given, str):
        is_input = bool(given)
    else:
        if len(given) > MAX_INPUTS and not isinstance(given[0], int):
            raise _invalid("input", f"'input' must hold at most {MAX_INPUTS} inputs, not {len(given)}")
        # One kind throughout; a list of numbers is one input, and no input is empty.
        is_input = len({type(one) for one in given}) == 1 and all(one or one == 0 for one in given)
    if not is_input:
        raise _no_input()


def _no_input() -> Failure:
    return _invalid(
        "input", "'input' must be a text, a list of texts, or one or more lists of tokens, none of them empty"
    )


def _invalid(param: str, message: str, hint: str = "") -> Failure:
    return Failure("request.invalid_field", message, hint=hint, param=param)


def _too_deep() -> Failure:
    return Failure("request.invalid_json", f"The body is nested deeper than {MAX_DEPTH} levels")


def wrong_field(text: str) -> Failure:
    """Return the failure for a field of a wrong type, from the parser's own words."""
    found = _FIELD.search(text)
    if found is None:
        return Failure("request.invalid_json", "The body must be a JSON object")
    if found[1] in _STEERING:
        inner = _INNER.search(text)
        return unknown_field(f"{found[1]}.{inner[1]}" if inner else found[1])
    if text.startswith("Number out of range"):
        return _not_finite(found[1])
    reason = text.split(" - at ")[0].replace("`", "").replace(" | null", "").lower()
    return _invalid(found[1], f"'{found[1]}' has a wrong value: {reason}")


def unknown_field(name: str) -> Failure:
    """Return the failure for a field that is not accepted."""
    return Failure("request.unknown_field", f"Field '{name}' is not accepted", hint="leave it out", param=name)


def _not_finite(name: str) -> Failure:
    bounds = next(((low, high) for one, low, high in _BOUNDS if one == name), None)
    within = f" between {bounds[0]} and {bounds[1]}" if bounds is not None and bounds[1] is not None else ""
    return Failure("request.out_of_range", f"'{name}' must be a finite number{within}", param=name)


def _malformed(body: bytes, error: Exception) -> Failure:
    if isinstance(error, UnicodeDecodeError):
        return Failure("request.invalid_json", f"The body is not UTF-8 text ({_place(body, error.start)})")
    found = _BYTE.search(str(error))
    offset = int(found[1]) if found else len(body)
    # NaN is no JSON, but many clients' encoders write it; its minus sign is taken for the beginning of a number.
    start = offset - (body[offset - 1 : offset] == b"-")
    name = _NO_NUMBER.search(body, max(0, start - 200), start)
    if name is not None and _NOT_FINITE.match(body, start):
        return _not_finite(name[1].decode())
    place = _place(body, offset)
    what = "is not valid JSON" if found else "ends in the middle of its JSON"
    return Failure("request.invalid_json", f"The body {what} ({place})", hint="send one JSON object as UTF-8")


def _place(body: bytes, offset: int) -> str:
    newline = b"\n"
    before = body[:offset]
    return f"line {before.count(newline) + 1}, column {offset - before.rfind(newline)}"
