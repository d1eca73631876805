"""Reads the header of a GGUF file (version 2 or 3, little-endian) without trusting it.

In: a seekable binary stream and the file's size. Out: `GgufHeader`, or `Failure("format.gguf_invalid")` that names the
fault. Called by the node agent when a model has arrived. Reads no tensor data, keeps no array but a short one of head
counts, and its time and memory are bounded whatever the bytes are.

Source: docs/gguf.md of ggml (the format) and Ollama's fs/gguf/gguf.go (bounds against hostile files).
"""

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import BinaryIO, NoReturn

from core.errors import Failure
from core.formats.ggml_types import FILE_TYPES, TENSOR_TYPES

MAX_KEY_VALUES = 65_536
MAX_TENSORS = 65_536
MAX_DIMENSIONS = 4
MAX_STRING_BYTES = 16 * 1024**2
MAX_NAME_BYTES = 1024  # keys and tensor names; the longest real ones have below 100
MAX_ARRAY_ELEMENTS = 64 * 1024**2
MAX_ARRAY_STRINGS = 4 * 1024**2  # in the whole header: each costs a step; the largest vocabularies have 0.3 million
MAX_ALIGNMENT = 4096
MAX_PARTS = 65_535  # what the field of the format can hold
_DEFAULT_ALIGNMENT = 32
_MAX_ELEMENTS = 2**63 - 1
_SKIP_BY_READING_BYTES = 65_536
_KEPT_ARRAY_ELEMENTS = 4096  # head counts per layer; no model has that many layers

_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING, _ARRAY = 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

_ARCHITECTURE, _FILE_TYPE, _ALIGNMENT = "general.architecture", "general.file_type", "general.alignment"
_TEMPLATE, _TOKENS, _SPLITS = "tokenizer.chat_template", "tokenizer.ggml.tokens", "split.count"
_SPLIT_NUMBER = "split.no"
_MAX_TEMPLATES = 64
_GENERAL = frozenset({_ARCHITECTURE, _FILE_TYPE, _ALIGNMENT, _SPLITS, _SPLIT_NUMBER})
_PER_ARCHITECTURE = (
    ".block_count",
    ".context_length",
    ".embedding_length",
    ".feed_forward_length",
    ".vocab_size",
    ".attention.head_count",
    ".attention.head_count_kv",
    ".attention.key_length",
    ".attention.value_length",
)


_NO_FACTS = frozenset({"version", "chat_template_sha256", "chat_templates", "part", "parts"})


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """What a GGUF file says of itself; None where it does not say, sizes in bytes.

    `heads`, `kv_heads` and `feed_forward_length` are the largest of any layer where layers differ. `key_length` and
    `value_length` are per head. `parameters` counts the elements of all tensors, `tensor_bytes` their bytes.
    `chat_templates` are texts by name, the one without a name under `default`. `part` of `parts` is 0 of 1 unless the
    model is split into files; the first one has the metadata of all.
    """

    version: int
    size_bytes: int
    architecture: str
    quantization: str
    layers: int | None
    heads: int | None
    kv_heads: int | None
    key_length: int | None
    value_length: int | None
    embedding_length: int | None
    feed_forward_length: int | None
    vocabulary: int | None
    context_length: int | None
    parameters: int
    tensor_bytes: int
    chat_template_sha256: str
    chat_templates: Mapping[str, str]
    part: int = 0
    parts: int = 1

    def facts_json(self) -> str:
        """Return the fields of `adapters.contract.ModelFacts` as a JSON object."""
        facts = {name: value for name, value in asdict(self).items() if name not in _NO_FACTS}
        return json.dumps({"format": "gguf", **facts})


def read_header(stream: BinaryIO, file_size: int) -> GgufHeader:
    """Return the header of the GGUF file in `stream`, which stands at the file's beginning and can seek.

    Raises:
        Failure: `format.gguf_invalid` when it is no GGUF file, damaged, truncated, or passes a bound.
    """
    reader = _Reader(stream, file_size)
    if reader.take(4) != b"GGUF":
        _invalid("it does not begin with GGUF")
    version = reader.u32()
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        _invalid("it is big-endian" if swapped in (2, 3) else f"version {version} is not known, only 2 and 3 are")
    tensors = reader.count("tensors", MAX_TENSORS)
    values = _read_values(reader, reader.count("metadata entries", MAX_KEY_VALUES))
    sums = _read_tensors(reader, tensors, _alignment(values.scalars.get(_ALIGNMENT)))
    return _header(version, file_size, values, sums)


def joined(headers: Sequence[GgufHeader]) -> GgufHeader:
    """Return the header of the whole model whose files have `headers`, in any order; other files may be among them.

    Raises:
        Failure: `format.gguf_invalid` when parts are missing.
    """
    first = headers[0]
    if first.parts == 1:
        return first
    parts = {one.part: one for one in headers if one.parts == first.parts}
    if set(parts) != set(range(first.parts)):
        missing = ", ".join(str(number + 1) for number in range(first.parts) if number not in parts)
        _invalid(f"it is split into {first.parts} parts, and these are not there: {missing[:80]}")
    return replace(
        parts[0],
        size_bytes=sum(one.size_bytes for one in parts.values()),
        parameters=sum(one.parameters for one in parts.values()),
        tensor_bytes=sum(one.tensor_bytes for one in parts.values()),
    )


def _invalid(fault: str) -> NoReturn:
    raise Failure(
        "format.gguf_invalid",
        f"the file is not a usable GGUF model: {fault}",
        hint="pull it again, or convert the model anew",
    )


class _Reader:
    """A stream that never gives bytes beyond the file and counts the strings it steps over."""

    def __init__(self, stream: BinaryIO, file_size: int) -> None:
        self._stream = stream
        self.size = file_size
        self._array_strings = 0
        self.position = 0

    def _claim(self, count: int) -> None:
        if count > self.size - self.position:
            _invalid(f"its header ends early, at byte {self.size}")
        self.position += count

    def take(self, count: int) -> bytes:
        self._claim(count)
        data = self._stream.read(count)
        if len(data) != count:
            _invalid(f"its header ends early, near byte {self.position - count + len(data)}")
        return data

    def skip(self, count: int) -> None:
        if count <= _SKIP_BY_READING_BYTES:
            self.take(count)
            return
        self._claim(count)
        self._stream.seek(count, 1)

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self.take(8))[0])

    def count(self, what: str, limit: int) -> int:
        number = self.u64()
        if number > limit:
            _invalid(f"it claims {number} {what}, more than {limit}")
        return number

    def name(self, what: str) -> str:
        raw = self.take(self.count(f"bytes in {what}", MAX_NAME_BYTES))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            _invalid(f"{what} is not UTF-8")

    def text(self, key: str) -> bytes:
        return self.take(self.count(f"bytes in the value of {key!r}", MAX_STRING_BYTES))

    def skip_text(self, key: str) -> None:
        self.skip(self.count(f"bytes in the value of {key!r}", MAX_STRING_BYTES))

    def skip_texts(self, key: str, count: int) -> None:
        self._array_strings += count
        if self._array_strings > MAX_ARRAY_STRINGS:
            _invalid(f"its arrays hold more than {MAX_ARRAY_STRINGS} strings")
        for _ in range(count):
            self.skip_text(key)


class _Values:
    """The metadata that matters: scalars by key (the largest of a short array), vocabulary, template digest."""

    def __init__(self) -> None:
        self.scalars: dict[str, int] = {}
        self.architecture = ""
        self.vocabulary: int | None = None
        self.template_sha256 = ""
        self.templates: dict[str, str] = {}


def _read_values(reader: _Reader, count: int) -> _Values:
    values = _Values()
    seen: set[str] = set()
    for _ in range(count):
        key = reader.name("a metadata key")
        if key in seen:
            _invalid(f"the key {key!r} stands there twice")
        seen.add(key)
        kind = reader.u32()
        if kind == _STRING:
            _read_text(reader, key, values)
        elif kind == _ARRAY:
            _read_array(reader, key, values)
        elif kind in _SCALARS:
            scalar = _SCALARS[kind]
            value = scalar.unpack(reader.take(scalar.size))[0]
            if _is_kept(key) and isinstance(value, int):
                values.scalars[key] = value
        else:
            _invalid(f"the value of {key!r} has the unknown type {kind}")
    return values


def _is_kept(key: str) -> bool:
    return key in _GENERAL or key.endswith(_PER_ARCHITECTURE)


def _read_text(reader: _Reader, key: str, values: _Values) -> None:
    if key == _ARCHITECTURE:
        values.architecture = reader.name("the architecture's name")
    elif key == _TEMPLATE or key.startswith(f"{_TEMPLATE}."):
        raw = reader.text(key)
        if key == _TEMPLATE:
            values.template_sha256 = hashlib.sha256(raw).hexdigest()
        values.templates[key.removeprefix(_TEMPLATE).removeprefix(".") or "default"] = raw.decode(errors="replace")
        if len(values.templates) > _MAX_TEMPLATES:
            _invalid(f"it has more than {_MAX_TEMPLATES} chat templates")
    else:
        reader.skip_text(key)


def _read_array(reader: _Reader, key: str, values: _Values) -> None:
    kind = reader.u32()
    count = reader.count(f"elements in {key!r}", MAX_ARRAY_ELEMENTS)
    if key == _TOKENS:
        values.vocabulary = count
    if kind == _STRING:
        reader.skip_texts(key, count)
        return
    if kind not in _SCALARS:
        _invalid(f"the array {key!r} has elements of the unusable type {kind}")
    scalar = _SCALARS[kind]
    if not (_is_kept(key) and 0 < count <= _KEPT_ARRAY_ELEMENTS):
        reader.skip(count * scalar.size)
        return
    elements = [element for (element,) in scalar.iter_unpack(reader.take(count * scalar.size))]
    if all(isinstance(element, int) for element in elements):
        values.scalars[key] = max(elements)


def _alignment(value: int | None) -> int:
    if value is None:
        return _DEFAULT_ALIGNMENT
    if not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
        _invalid(f"the alignment {value} is no power of two up to {MAX_ALIGNMENT}")
    return value


@dataclass(frozen=True, kw_only=True)
class _TensorSums:
    parameters: int
    total_bytes: int
    most_common_type: str
    embedding_rows: int | None  # rows of token_embd.weight: the vocabulary where no token list is


def _read_tensors(reader: _Reader, count: int, alignment: int) -> _TensorSums:
    """Read `count` tensor descriptions; every tensor must be aligned, inside the file and apart from the others."""
    spans: list[tuple[int, int, str]] = []
    elements_of: Counter[str] = Counter()
    rows: int | None = None
    for _ in range(count):
        name = reader.name("a tensor's name")
        dimensions, elements = _shape(reader, name)
        kind = reader.u32()
        offset = reader.u64()
        if kind not in TENSOR_TYPES:
            _invalid(f"tensor {name!r} has the unknown type {kind}")
        type_name, block, block_bytes = TENSOR_TYPES[kind]
        if dimensions[0] % block:
            _invalid(f"rows of tensor {name!r} are no multiple of the {block} elements in a block of {type_name}")
        if offset % alignment:
            _invalid(f"tensor {name!r} does not start at a multiple of {alignment} bytes")
        spans.append((offset, elements // block * block_bytes, name))
        elements_of[type_name] += elements
        if name == "token_embd.weight" and len(dimensions) == 2:
            rows = dimensions[1]
    _check_spans(spans, -(-reader.position // alignment) * alignment, reader)
    return _TensorSums(
        parameters=sum(elements_of.values()),
        total_bytes=sum(size for _, size, _ in spans),
        most_common_type=max(sorted(elements_of), key=elements_of.__getitem__, default=""),
        embedding_rows=rows,
    )


def _shape(reader: _Reader, name: str) -> tuple[list[int], int]:
    number = reader.u32()
    if not 1 <= number <= MAX_DIMENSIONS:
        _invalid(f"tensor {name!r} has {number} dimensions, not 1 to {MAX_DIMENSIONS}")
    dimensions = [reader.u64() for _ in range(number)]
    elements = 1
    for length in dimensions:
        elements *= length
    if not 0 < elements <= _MAX_ELEMENTS:
        _invalid(f"tensor {name!r} has the impossible shape {dimensions}")
    return dimensions, elements


def _check_spans(spans: list[tuple[int, int, str]], data_start: int, reader: _Reader) -> None:
    room = reader.size - data_start
    end, before = 0, ""
    for offset, size, name in sorted(spans):
        if offset < end:
            _invalid(f"tensors {before!r} and {name!r} overlap")
        end, before = offset + size, name
        if end > room:
            _invalid(f"tensor {name!r} ends {end - room} bytes behind the end of the file; it is truncated or damaged")


def _positive(value: int | None) -> int | None:
    return value if value is not None and 0 < value <= _MAX_ELEMENTS else None


def _header(version: int, file_size: int, values: _Values, sums: _TensorSums) -> GgufHeader:
    def fact(suffix: str) -> int | None:
        return _positive(values.scalars.get(f"{values.architecture}.{suffix}"))

    heads = fact("attention.head_count")
    embedding = fact("embedding_length")
    head_length = embedding // heads if embedding is not None and heads is not None else None
    return GgufHeader(
        version=version,
        size_bytes=file_size,
        architecture=values.architecture,
        quantization=FILE_TYPES.get(values.scalars.get(_FILE_TYPE, -1), sums.most_common_type),
        layers=fact("block_count"),
        heads=heads,
        # llama.cpp's own default: without grouped-query attention there are as many KV heads as heads.
        kv_heads=fact("attention.head_count_kv") or heads,
        key_length=fact("attention.key_length") or head_length,
        value_length=fact("attention.value_length") or head_length,
        embedding_length=embedding,
        feed_forward_length=fact("feed_forward_length"),
        vocabulary=values.vocabulary or fact("vocab_size") or sums.embedding_rows,
        context_length=fact("context_length"),
        parameters=sums.parameters,
        tensor_bytes=sums.total_bytes,
        chat_template_sha256=values.template_sha256,
        chat_templates=values.templates,
        part=max(0, values.scalars.get(_SPLIT_NUMBER, 0)),
        parts=min(_positive(values.scalars.get(_SPLITS)) or 1, MAX_PARTS),
    )
