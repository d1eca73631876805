"""From a node's JSON to `ModelFacts`.

In: the text of `FileReport.facts_json`, written by `core.formats.gguf.GgufHeader.facts_json`. Out: `ModelFacts`. Called
by the controller. The text comes over the network, so types and ranges are checked; fields that a newer node may add
are ignored.
"""

import json
from dataclasses import fields

from adapters.contract import ModelFacts
from core.errors import Failure
from core.texts import sendable

_TEXTS = frozenset({"format", "architecture", "quantization"})
_NUMBERS = frozenset(one.name for one in fields(ModelFacts)) - _TEXTS
_MAX_TEXT = 1024
_MAX_NUMBER = 2**63 - 1


def facts_from_json(text: str) -> ModelFacts:
    """Return the facts in `text`, a JSON object; absent numbers are None.

    Raises:
        Failure: `request.invalid_json`, or `request.invalid_field` for a wrong type or a number below 0 or above 2^63.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Failure("request.invalid_json", "the facts of a model are not JSON") from error
    if not isinstance(found, dict):
        raise Failure("request.invalid_json", "the facts of a model are not a JSON object")
    texts = {name: _text(name, found.get(name, "")) for name in _TEXTS}
    numbers = {name: _number(name, found.get(name)) for name in _NUMBERS}
    size = numbers.pop("size_bytes")
    return ModelFacts(
        format=texts["format"],
        size_bytes=size or 0,
        architecture=texts["architecture"],
        quantization=texts["quantization"],
        **numbers,
    )


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise Failure("request.invalid_field", f"the fact {name} is no short text", param=name)
    # JSON can escape what no database takes.
    return sendable(value)


def _number(name: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_NUMBER:
        raise Failure("request.invalid_field", f"the fact {name} is no number from 0 to 2^63 - 1", param=name)
    return value
