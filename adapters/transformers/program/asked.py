"""What a client asked for, checked: bodies in, plain values out. Used by `serve.py` beside it; knows no HTTP.

Whatever would change an answer and is not done here is refused by name, never ignored.
"""

import json
from dataclasses import dataclass

from generation import Sampling, is_number

_UNKNOWN_HERE = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "top_k": (0, -1),
    "min_p": (0,),
    "repetition_penalty": (1,),
}
"""Fields that are not served, with the values that ask for nothing."""

_MAX_STOPS = 16
_MAX_TOP_LOGPROBS = 20
_MAX_INPUTS = 2048


class Refused(Exception):
    """The request cannot be served as it is."""

    def __init__(self, message, *, param=None, code=None, kind="invalid_request_error", status=400):
        super().__init__(message)
        self.param, self.code, self.kind, self.status = param, code, kind, status


@dataclass(frozen=True)
class Asked:
    """A request for tokens: the prompt, how to sample, where to stop, and in which form to answer."""

    ids: list
    sampling: Sampling
    stops: tuple
    is_stream: bool
    wants_usage: bool


def checked_model(body, served_name):
    """Refuse a body that is no object or names another model."""
    if not isinstance(body, dict):
        raise Refused("the body must be a JSON object")
    if body.get("model") != served_name:
        raise Refused(
            f"there is no model {str(body.get('model'))[:80]!r}", param="model", code="model_not_found", status=404
        )


def asked_chat(body, model):
    """Return what a body for /v1/chat/completions asks for."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused("messages must be a list with at least one message", param="messages")
    if not model.tokenizer.chat_template:
        raise Refused("the model has no chat template; use /v1/completions", param="messages")
    given = [_message(one) for one in messages]
    if any("tool_calls" in one for one in given) and "tool_calls" not in str(model.tokenizer.chat_template):
        raise Refused("the model's chat template knows no tool calls", param="messages")
    try:
        ids = model.chat_ids(given)
    except Exception as error:  # a template is a program of the model's author and fails as it likes
        raise Refused(
            f"the model's chat template refuses these messages ({type(error).__name__})", param="messages"
        ) from error
    wants_logprobs = _flag(body, "logprobs")
    top = _number(body, "top_logprobs", 0, 0, _MAX_TOP_LOGPROBS, whole=True)
    return _asked(body, ids, top if wants_logprobs else None, model, param="messages")


def asked_completion(body, model):
    """Return what a body for /v1/completions asks for."""
    (ids,) = _inputs(body, "prompt", model, most=1)
    top = body.get("logprobs")
    top = None if top is None else _number(body, "logprobs", 0, 0, _MAX_TOP_LOGPROBS, whole=True)
    return _asked(body, ids, top, model, param="prompt", default_max=16)


def asked_embeddings(body, model):
    """Return the inputs' tokens and whether base64 is wanted."""
    if body.get("dimensions") is not None:
        raise Refused("dimensions cannot be changed", param="dimensions")
    wanted = body.get("encoding_format") or "float"
    if wanted not in ("float", "base64"):
        raise Refused("encoding_format must be float or base64", param="encoding_format")
    inputs = _inputs(body, "input", model, most=_MAX_INPUTS)
    for ids in inputs:
        check_fit(len(ids), model.context + 1, "input")
    return inputs, wanted == "base64"


def check_fit(tokens, context, param):
    """Refuse a prompt that leaves no room for an answer."""
    if tokens >= context:
        raise Refused(
            f"the prompt has {tokens} tokens and the context {context}; nothing is cut off",
            param=param,
            code="context_length_exceeded",
            kind="exceed_context_size_error",
        )


def _asked(body, ids, top_logprobs, model, *, param, default_max=None):
    for name, harmless in _UNKNOWN_HERE.items():
        if body.get(name) is not None and body[name] not in harmless:
            raise Refused(f"{name} is not served by this engine", param=name)
    check_fit(len(ids), model.context, param)
    most = body.get("max_completion_tokens")
    name = "max_tokens" if most is None else "max_completion_tokens"
    room = default_max or model.context
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise Refused("stream_options must be an object", param="stream_options")
    sampling = Sampling(
        max_tokens=_number(body, name, room, 1, 2**31, whole=True),
        temperature=_number(body, "temperature", 1.0, 0, 2),
        top_p=max(_number(body, "top_p", 1.0, 0, 1), 1e-6),  # 0 is what the likeliest token alone is asked for with
        seed=_number(body, "seed", None, -(2**63), 2**63 - 1, whole=True),
        presence_penalty=_number(body, "presence_penalty", 0.0, -2, 2),
        frequency_penalty=_number(body, "frequency_penalty", 0.0, -2, 2),
        ignore_eos=_flag(body, "ignore_eos"),
        top_logprobs=top_logprobs,
    )
    return Asked(ids, sampling, _stops(body), _flag(body, "stream"), bool((options or {}).get("include_usage")))


def _message(message):
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise Refused("a message must be an object with a role", param="messages")
    content = message.get("content")
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        if not all(isinstance(part, str) for part in parts):
            raise Refused("only text parts are served", param="messages")
        content = "".join(parts)
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise Refused("the tool_calls of a message must be a list", param="messages")
    if not isinstance(content, str) and not (content is None and calls):
        raise Refused("a message's content must be a text", param="messages")
    for name in ("name", "tool_call_id"):
        if message.get(name) is not None and not isinstance(message[name], str):
            raise Refused(f"the {name} of a message must be a text", param="messages")
    more = {name: message[name] for name in ("name", "tool_call_id") if message.get(name) is not None}
    if calls:
        more["tool_calls"] = [_tool_call(one) for one in calls]
    return {"role": message["role"], "content": content, **more}


def _tool_call(call):
    """Return a call with its arguments as an object: templates write them as JSON, and a text would be quoted."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Refused("a tool call must name a function", param="messages")
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except (TypeError, ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise Refused("the arguments of a tool call must be the text of a JSON object", param="messages")
    return {**call, "function": {**function, "arguments": arguments}}


def _inputs(body, name, model, most):
    given = body.get(name)
    if isinstance(given, str) or (isinstance(given, list) and given and all(type(one) is int for one in given)):
        given = [given]
    if not isinstance(given, list) or not given:
        raise Refused(f"{name} must be a text, a list of texts, or tokens", param=name)
    if len(given) > most:
        raise Refused(f"{name} may hold {most} at most", param=name)
    return [_tokens(one, name, model) for one in given]


def _tokens(one, name, model):
    if isinstance(one, str) and one:
        return model.ids(one)
    if isinstance(one, list) and one and all(type(number) is int and 0 <= number < model.vocabulary for number in one):
        return one
    raise Refused(f"{name} must hold texts or known tokens, none of them empty", param=name)


def _stops(body):
    given = body.get("stop")
    stops = [given] if isinstance(given, str) else given or []
    if not isinstance(stops, list) or len(stops) > _MAX_STOPS or not all(isinstance(one, str) and one for one in stops):
        raise Refused(f"stop must be a text or up to {_MAX_STOPS} texts, none of them empty", param="stop")
    return tuple(stops)


def _flag(body, name):
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refused(f"{name} must be true or false", param=name)
    return bool(value)


def _number(body, name, default, low, high, *, whole=False):
    value = body.get(name)
    if value is None:
        return default
    if not is_number(value, low, high) or (whole and type(value) is not int):
        raise Refused(f"{name} must be a {'whole ' if whole else ''}number from {low} to {high}", param=name)
    return value
