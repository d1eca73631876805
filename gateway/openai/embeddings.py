"""Embeddings as they were asked for: base64 made of an engine's numbers, and vectors of the length that was wanted.

Comes in: the words of an exchange and what was asked. Goes out: the same words, whose answer fits the question.
Implements `gateway.words.Words`. Pure. An answer that fits already keeps its bytes; a vector is never cut or padded:
whether a model's vectors may be cut is its engine's to know.
"""

import base64
import struct
from typing import Protocol

import msgspec

from core.errors import Failure
from gateway.openai import requests, stream
from gateway.upstream import EngineDied

FLOAT_BYTES = 4
"""A number in base64 is a little-endian float32."""
_decode_answer = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_data = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_decode_vector = msgspec.json.Decoder(str | list[float]).decode
_encode = msgspec.json.Encoder().encode


class _Said(Protocol):
    body: bytes

    def whole(self, name: stream.ModelName, body: bytes) -> bytes: ...


class Fitted:
    """The words `said` of a request for embeddings of the model `public`; an embedding is no stream."""

    stream_type = b""

    def __init__(self, said: _Said, asked: requests.Asked, public: str) -> None:
        self.body = said.body
        self._said = said
        self._asked = asked
        self._public = public

    def events(self, name: stream.ModelName) -> stream.Events:
        """Return a view of a stream, which is never asked for."""
        return stream.EventStream(name)

    def whole(self, name: stream.ModelName, body: bytes) -> bytes:
        """Return the answer; only one that needs a change or a look is decoded.

        Raises:
            EngineDied: it is no answer.
            Failure: `door.parameter_unsupported`: the engine has ignored `dimensions`.
        """
        answer = self._said.whole(name, body)
        if not self._asked.is_base64 and not self._asked.dimensions:
            return answer
        try:
            members = dict(_decode_answer(answer))
            data = _decode_data(members["data"])
            for one in data:
                one["embedding"] = self._fitted(one["embedding"])
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError, ValueError, OverflowError, struct.error) as error:
            raise EngineDied("an answer without embeddings") from error
        members["data"] = msgspec.Raw(_encode(data))
        return _encode(members)

    def _fitted(self, given: msgspec.Raw) -> msgspec.Raw:
        vector = _decode_vector(given)
        is_text = isinstance(vector, str)
        length = len(base64.b64decode(vector, validate=True)) // FLOAT_BYTES if is_text else len(vector)
        wanted = self._asked.dimensions
        if wanted and length != wanted:
            raise Failure(
                "door.parameter_unsupported",
                f"The engine of model '{self._public}' ignores 'dimensions': its vectors have {length} numbers",
                hint=f"leave it out, or set it to {length}",
                param="dimensions",
            )
        return msgspec.Raw(_encode(packed(vector))) if self._asked.is_base64 and not is_text else given


def packed(vector: str | list[float]) -> str:
    """Return `vector` as base64 of little-endian float32, as it is when it is that already.

    Raises:
        OverflowError: a number has no place in a float32.
    """
    if isinstance(vector, str):
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
