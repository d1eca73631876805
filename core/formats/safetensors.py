"""Reads the header of a safetensors file without trusting it.

In: a binary stream and the file's size. Out: `SafetensorsHeader`, or `Failure("format.safetensors_invalid")` that names
the fault, the tensor and the bytes. Called by the node agent's header reader. Reads no tensor data; its time and memory
are bounded by `MAX_HEADER_BYTES`.

Source: README.md of huggingface/safetensors ("Format") and safetensors/src/tensor.rs (the checks of `Metadata::new` and
the bits of each type).
"""

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

from core.errors import Failure
from core.formats import magic
from core.formats.json_text import json_object

MAX_HEADER_BYTES = 100_000_000  # the format's own bound
MAX_TENSORS = 262_144  # the largest mixtures of experts have below 100 thousand in all their files together
MAX_NAME_CHARACTERS = 1024
MAX_DIMENSIONS = 16
MAX_METADATA_ENTRIES = 65_536
_MAX_ELEMENTS = 2**63 - 1
_METADATA = "__metadata__"
_LENGTH = struct.Struct("<Q")

BITS: Mapping[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "U64": 64,
    "I64": 64,
}
"""How many bits one element of each type takes."""


@dataclass(frozen=True, kw_only=True)
class SafetensorsHeader:
    """What a safetensors file says of itself: sizes in bytes, `elements` by type, the names of all its tensors."""

    size_bytes: int
    names: frozenset[str]
    elements: Mapping[str, int]
    tensor_bytes: int


def read_header(stream: BinaryIO, file_size: int, what: str = "the file") -> SafetensorsHeader:
    """Return the header of the safetensors file `what` in `stream`, which stands at the file's beginning.

    Raises:
        Failure: `format.safetensors_invalid` when it is damaged, truncated, or passes a bound; `format.refused` when it
            is something else altogether.
    """
    first = stream.read(magic.HEAD_BYTES)
    if magic.kind_of(first) != magic.SAFETENSORS:
        if len(first) >= _LENGTH.size and not magic.is_pickled(first) and _claimed(first) <= MAX_HEADER_BYTES:
            _invalid(what, "its header does not begin with {")
        raise magic.refused(first, what)
    length = _claimed(first)
    if length > MAX_HEADER_BYTES:
        _invalid(what, f"it claims a header of {length} bytes, more than {MAX_HEADER_BYTES}")
    if length > file_size - _LENGTH.size:
        _invalid(what, f"its header should end at byte {length + _LENGTH.size}, the file has {file_size} bytes")
    raw = (first[_LENGTH.size :] + stream.read(max(0, length - magic.HEAD_BYTES + _LENGTH.size)))[:length]
    if len(raw) != length:
        _invalid(what, f"its header ends early, at byte {_LENGTH.size + len(raw)}")
    if raw.count(b"{") > MAX_TENSORS + MAX_METADATA_ENTRIES:
        _invalid(what, f"it describes more than {MAX_TENSORS} tensors")

    def fault(reason: str) -> Failure:
        return _failure(what, f"its header is unusable: {reason}")

    entries = json_object(raw, limit_bytes=MAX_HEADER_BYTES, fault=fault)
    _check_metadata(entries.pop(_METADATA, {}), what)
    if len(entries) > MAX_TENSORS:
        _invalid(what, f"it describes {len(entries)} tensors, more than {MAX_TENSORS}")
    return _summed(entries, file_size, file_size - _LENGTH.size - length, what)


def _claimed(first: bytes) -> int:
    return int(_LENGTH.unpack(first[: _LENGTH.size])[0])


def _failure(what: str, fault: str) -> Failure:
    return Failure(
        "format.safetensors_invalid",
        f"{what} is not a usable safetensors file: {fault}",
        hint="pull it again, or convert the model anew",
    )


def _invalid(what: str, fault: str) -> NoReturn:
    raise _failure(what, fault)


def _check_metadata(metadata: Any, what: str) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _invalid(what, "its metadata are not texts by name")
    if len(metadata) > MAX_METADATA_ENTRIES:
        _invalid(what, f"it has {len(metadata)} metadata entries, more than {MAX_METADATA_ENTRIES}")


def _summed(entries: Mapping[str, Any], file_size: int, room: int, what: str) -> SafetensorsHeader:
    """Check every tensor; together they must fill the `room` bytes behind the header without a gap or an overlap."""
    elements: Counter[str] = Counter()
    spans: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        if len(name) > MAX_NAME_CHARACTERS:
            _invalid(what, f"the tensor {name[:80]!r}... has a name of {len(name)} characters")
        kind, count, start, end = _tensor(name, entry, what)
        if end > room:
            _invalid(
                what,
                f"tensor {name!r} ends at byte {file_size - room + end}, the file has {file_size} bytes; "
                "it is truncated or damaged",
            )
        elements[kind] += count
        spans.append((start, end, name))
    end, before = 0, ""
    for start, stop, name in sorted(spans):
        if start < end:
            _invalid(what, f"tensors {before!r} and {name!r} overlap at byte {file_size - room + start}")
        if start > end:
            _invalid(what, f"{start - end} bytes before tensor {name!r} belong to no tensor")
        end, before = stop, name
    if end != room:
        _invalid(what, f"its last {room - end} bytes belong to no tensor")
    return SafetensorsHeader(size_bytes=file_size, names=frozenset(entries), elements=dict(elements), tensor_bytes=end)


def _tensor(name: str, entry: Any, what: str) -> tuple[str, int, int, int]:
    """Return type, number of elements, and first and last byte + 1 behind the header."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _invalid(what, f"tensor {name!r} is not described by dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in BITS:
        _invalid(what, f"tensor {name!r} has the unknown type {str(kind)[:40]!r}")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        _invalid(what, f"tensor {name!r} has the impossible shape {str(shape)[:120]}")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _invalid(what, f"tensor {name!r} has the impossible offsets {str(offsets)[:120]}")
    elements = 1
    for length in shape:
        elements *= length
    bits = elements * BITS[kind]
    if elements > _MAX_ELEMENTS or bits % 8:
        _invalid(what, f"tensor {name!r} has the impossible shape {str(shape)[:120]}")
    if bits // 8 != offsets[1] - offsets[0]:
        _invalid(
            what,
            f"tensor {name!r} of {elements} x {kind} needs {bits // 8} bytes, "
            f"its offsets give it {offsets[1] - offsets[0]}",
        )
    return kind, elements, offsets[0], offsets[1]


def _are_counts(values: Any) -> bool:
    # Not isinstance: true and false are ints to Python, and a float is no count.
    return isinstance(values, list) and all(type(one) is int and 0 <= one <= _MAX_ELEMENTS for one in values)
