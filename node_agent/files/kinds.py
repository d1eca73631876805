"""Which files a model may be made of, by their first bytes and not by their names alone.

Comes in: a name and bytes. Goes out: nothing, or a refusal. Called by `node_agent.files.arrivals` for every file that
comes, and with a download's first bytes, so that a pickle of 40 GB is refused after 64 bytes. Weights are GGUF or
safetensors; what stands beside them is text, or a tokenizer's table.
"""

import codecs
import re
from pathlib import Path

from core.errors import Failure
from core.units import MIB, text_from_bytes

_HEAD_BYTES = 64
_HEADER_MAX_BYTES = 100 * 1000**2  # safetensors' own bound for its header
_TEXT_MAX_BYTES = 128 * MIB  # tokenizer.json of large vocabularies has about 35 MB
_SIGNATURES = (
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"PK\x07\x08",
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ",
    b"7z\xbc\xaf",
    b"\x28\xb5\x2f\xfd",
)
_PICKLE = re.compile(rb"\x80[\x00-\x05][\x00-\xff]|\(dp?\d|c[a-z_0-9.]+\n[A-Za-z_0-9.]+\n", re.DOTALL)
_TEXT = re.compile(r"(?i)(\.(json|jinja|txt|md|tiktoken)|/?licen[cs]e)\Z")
_TABLE = re.compile(r"(?i)(\A|/)(tokenizer|spiece|sentencepiece(\.bpe)?)\.model\Z")
_LAYER = re.compile(r"\Aollama/[a-z0-9.-]+\Z")


def is_weights(path: str) -> bool:
    """Return whether a name says that its file holds weights."""
    return path.lower().endswith((".gguf", ".safetensors"))


def is_taken(path: str) -> bool:
    """Return whether a file of this name may be part of a version at all."""
    return is_weights(path) or any(pattern.search(path) for pattern in (_TEXT, _TABLE, _LAYER))


def require_head(path: str, head: bytes, size: int | None) -> None:
    """Check a file's first bytes, 64 or the whole file; `size` is None while unknown.

    1. Called GGUF or safetensors: it must be that.
    2. A name that says nothing: it must be one of the two.
    3. Text and tables: no pickle and no archive, and not too large.

    Raises:
        Failure: `format.refused`.
    """
    name = path.rsplit("/", 1)[-1]
    if not is_weights(path) and is_taken(path):
        if _is_program(head):
            raise _refused(name, head)
        if size is not None and size > _TEXT_MAX_BYTES:
            raise Failure("format.refused", f"{name} has {text_from_bytes(size)}, too much for a text beside a model")
        return
    fits = {
        ".gguf": head.startswith(b"GGUF"),
        ".safetensors": _is_safetensors(head, size),
    }
    suffix = Path(name.lower()).suffix
    if not fits.get(suffix, any(fits.values())):
        raise _refused(name, head)


def require_file(path: str, place: Path) -> None:
    """Check a whole file, text to its end. Blocks.

    Raises:
        Failure: `format.refused`.
    """
    size = place.stat().st_size
    with place.open("rb") as stream:
        require_head(path, stream.read(_HEAD_BYTES), size)
        if not _TEXT.search(path) or is_weights(path):
            return
        stream.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            while chunk := stream.read(MIB):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            raise Failure("format.refused", f"{path.rsplit('/', 1)[-1]} is no text, though its name says so") from None


def _is_safetensors(head: bytes, size: int | None) -> bool:
    length = int.from_bytes(head[:8], "little")
    is_inside = length <= _HEADER_MAX_BYTES and (size is None or length + 8 <= size)
    return len(head) > 8 and length >= 2 and head[8:9] == b"{" and is_inside


def _is_program(head: bytes) -> bool:
    return _PICKLE.match(head) is not None or head.startswith(_SIGNATURES)


def _refused(name: str, head: bytes) -> Failure:
    what = "starts with a pickle/zip signature" if _is_program(head) else "is no GGUF and no safetensors file"
    return Failure(
        "format.refused",
        f"{name} {what}",
        hint="only safetensors and GGUF are accepted: pickled weights could run code when loaded",
    )
