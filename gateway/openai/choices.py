"""Several answers to one question put together, for engines that give one choice whatever `n` says.

Comes in: a request with `n`, and the answers to its parts, whole or as events cut anywhere. Goes out: the parts, and
one answer whose choices have the indices that OpenAI gives them. Sans-I/O; called by `fanout`. Members that do not
change keep their bytes.

Source of the order: https://github.com/openai/openai-openapi (`CreateCompletionRequest`: the choices of one prompt
lie together).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from gateway.openai.stream import DONE, MAX_LINE_BYTES

_NULL = msgspec.Raw(b"null")
_PREFIX, _DONE = b"data:", b"[DONE]"
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_choices = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_decode_index = msgspec.json.Decoder(int).decode
_decode_usage = msgspec.json.Decoder(dict[str, Any] | None).decode
_encode = msgspec.json.Encoder().encode
_SAME_IN_ALL = ("id", "created")
WRONG = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError)
"""What is raised for bytes that are no answer."""


def parts(body: bytes, count: int) -> list[bytes]:
    """Return the `count` requests for one choice each that `body`, a request with `n`, asks for.

    A seed is counted on, else all choices were the same.
    """
    members = dict(_decode_members(body))
    members.pop("n", None)
    try:
        seed = msgspec.json.decode(members.get("seed", _NULL), type=int | None)
    except msgspec.ValidationError:
        seed = None  # the engine says what is wrong with it
    found = []
    for place in range(count):
        if seed is not None:
            members["seed"] = msgspec.Raw(_encode(seed + place))
        found.append(_encode(members))
    return found


def joined(answers: Sequence[bytes]) -> bytes:
    """Return the answer that has the choices of all `answers`, and what all of them used together.

    Raises:
        one of `WRONG`: one of them is no answer.
    """
    decoded = [_decode_members(one) for one in answers]
    whole = dict(decoded[0])
    choices = [one for place, answer in enumerate(decoded) for one in _placed(answer["choices"], place, len(decoded))]
    whole["choices"] = msgspec.Raw(_encode([one for _, one in sorted(choices, key=lambda pair: pair[0])]))
    used = _sum([_decode_usage(one.get("usage", _NULL)) for one in decoded])
    if used is not None:
        whole["usage"] = msgspec.Raw(_encode(used))
    return _encode(whole)


class Braid:
    """The events of `count` streams as those of one."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._same: dict[str, msgspec.Raw] = {}
        self._usages: dict[int, Mapping[str, Any]] = {}
        self._last: dict[str, msgspec.Raw] = {}

    def strand(self, place: int) -> "Strand":
        """Return what takes the stream of choice `place`."""
        return Strand(lambda data: self._event(place, data))

    def end(self) -> bytes:
        """Return the last events: what was used, if that was told, and the end."""
        used = _sum([self._usages.get(place) for place in range(self._count)])
        if used is None:
            return DONE
        last = {**self._last, "choices": msgspec.Raw(b"[]"), "usage": msgspec.Raw(_encode(used))}
        return b"data: " + _encode(last) + b"\n\n" + DONE

    def _event(self, place: int, data: bytes) -> bytes:
        members = dict(_decode_members(data))
        for name in _SAME_IN_ALL:
            if name in members:
                members[name] = self._same.setdefault(name, members[name])
        used = _decode_usage(members.get("usage", _NULL))
        choices = _placed(members.get("choices", msgspec.Raw(b"[]")), place, self._count)
        if used is not None:
            self._usages[place] = used
            self._last = members
            if not choices:
                return b""
            del members["usage"]
        members["choices"] = msgspec.Raw(_encode([one for _, one in choices]))
        return b"data: " + _encode(members) + b"\n\n"


class Strand:
    """One of the streams; `failure` is the event of an error that ended it."""

    def __init__(self, event: Callable[[bytes], bytes]) -> None:
        self.failure: bytes | None = None
        self._event = event
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Return the events of every whole line in what came; nothing after an error.

        Raises:
            one of `WRONG`: an event is none.
        """
        *lines, self._held = (self._held + data if self._held else data).split(b"\n")
        if len(self._held) > MAX_LINE_BYTES:
            raise KeyError("a line without an end")
        return b"".join([self._line(line) for line in lines])

    def _line(self, line: bytes) -> bytes:
        if not line.startswith(_PREFIX) or self.failure is not None:
            return b""
        data = line[len(_PREFIX) :].strip()
        if not data or data == _DONE:
            return b""
        if b'"error"' in data and bytes(_decode_members(data).get("error", _NULL)) != b"null":
            self.failure = data
            return b""
        return self._event(data)


def _placed(choices: msgspec.Raw, place: int, count: int) -> list[tuple[int, dict[str, msgspec.Raw]]]:
    """Return the choices of part `place` of `count` with their new indices: those of one prompt lie together."""
    found = []
    for one in _decode_choices(choices):
        index = _decode_index(one.get("index", msgspec.Raw(b"0"))) * count + place
        one["index"] = msgspec.Raw(_encode(index))
        found.append((index, one))
    return found


def _sum(usages: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Return what was used in all: numbers are added, in objects inside too; None when one did not tell."""
    told = [one for one in usages if one is not None]
    if not told or len(told) < len(usages):
        return None
    total: dict[str, Any] = {}
    for one in told:
        for name, value in one.items():
            total[name] = _added(total.get(name), value)
    return total


def _added(total: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return {**(total or {}), **{name: _added((total or {}).get(name), inner) for name, inner in value.items()}}
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value + (total or 0) if is_number else total if value is None else value
