"""The tokens of one answer: read from what the engine says, or estimated where it did not say.

Comes in: an answer's bytes, or one event's. Goes out: `Counts`, and notes in a tally. Pure; called by the relay and the
views of streams. It must not trust an engine: numbers that are none, or out of all bounds, count as not said.
"""

import re
from typing import Annotated

import msgspec

from gateway.visit import Tally

SMALL_BYTES = 8 * 1024
"""Up to this size a whole answer is decoded to find its usage; of a larger one its end is looked at first."""
LARGE_BYTES = 1024**2
"""Beyond this size only the end is looked at."""
TAIL_BYTES = 4096
BYTES_PER_TOKEN = 4
"""For estimates; a token of English text is about four bytes (OpenAI's own rule of thumb)."""
_AT_THE_END = re.compile(rb'"usage"[ \t\r\n]*:[ \t\r\n]*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
_MEDIA = re.compile(rb';base64,[^"\\]*')

_MOST = 2**40
_Tokens = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]


class _Details(msgspec.Struct):
    cached_tokens: _Tokens | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None
    prompt_tokens_details: _Details | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


class _Event(msgspec.Struct):
    usage: _Usage | None = None
    choices: list[msgspec.Raw] | None = None


_decode_usage = msgspec.json.Decoder(_Usage).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_FAULTS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Counts(msgspec.Struct, frozen=True):
    """Tokens of one answer; `cached` are those of `input` that the engine had at hand."""

    input: int
    output: int
    cached: int = 0


def bounded(given: int, made: int) -> Counts:
    """Return the tokens that an engine told of as bare numbers, which may be nonsense."""
    return Counts(min(max(given, 0), _MOST), min(max(made, 0), _MOST))


def of_answer(body: bytes) -> Counts | None:
    """Return the tokens that the whole answer `body` tells in OpenAI's words, None when it tells none."""
    try:
        if len(body) <= SMALL_BYTES:
            return _counts(_decode_answer(body).usage)
        found = _AT_THE_END.search(body, len(body) - TAIL_BYTES)
        if found is not None:
            return _counts(_decode_usage(found[1]))
        return _counts(_decode_answer(body).usage) if len(body) <= LARGE_BYTES else None
    except _FAULTS:
        return None


def of_event(data: bytes) -> tuple[Counts | None, bool]:
    """Return the tokens that an event with this data tells, and whether it tells nothing else."""
    try:
        event = _decode_event(data)
    except _FAULTS:
        return None, False
    counts = _counts(event.usage)
    return counts, counts is not None and event.choices == []


def note(tally: Tally, said: Counts | None, asked: bytes, output: int) -> None:
    """Note in `tally` what the engine `said` of an answer to the request `asked`.

    Without its word the input is estimated by the size of the request, media left out, and `output` is the estimate of
    what was answered.
    """
    if said is None:
        text = _MEDIA.sub(b"", asked) if b";base64," in asked else asked
        said = Counts(len(text) // BYTES_PER_TOKEN, output)
        tally.is_estimated = True
    tally.input_tokens, tally.output_tokens, tally.cached_tokens = said.input, said.output, said.cached


def _counts(usage: _Usage | None) -> Counts | None:
    if usage is None or usage.prompt_tokens is None:
        return None
    details = usage.prompt_tokens_details
    return Counts(
        usage.prompt_tokens, usage.completion_tokens or 0, (details.cached_tokens or 0) if details is not None else 0
    )
