"""Which kind of model file some bytes begin: decided by magic, never by name.

Comes in: the first bytes of a file. Goes out: `gguf` or `safetensors`, or a `Failure` that names what it is instead.
Pure; called by the node agent before anything else looks at a file.
"""

from core.errors import Failure

HEAD_BYTES = 16
"""So many first bytes are enough to tell."""

GGUF, SAFETENSORS = "gguf", "safetensors"
_ZIPS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_PICKLE_PROTOCOLS = range(2, 6)


def kind_of(head: bytes) -> str:
    """Return `gguf` or `safetensors` when `head` begins such a file, else "".

    A safetensors file begins with the length of its header, whose first character is `{`; so a length that happens to
    look like a pickle's or an archive's signature is no reason to refuse it.
    """
    if head[:4] == b"GGUF":
        return GGUF
    return SAFETENSORS if head[8:9] == b"{" else ""


def is_pickled(head: bytes) -> bool:
    """Return whether `head` begins a pickle, or an archive, which is how PyTorch packs its pickles."""
    if kind_of(head):
        return False
    return head[:4] in _ZIPS or (len(head) > 1 and head[0] == 0x80 and head[1] in _PICKLE_PROTOCOLS)


def model_kind(head: bytes, what: str) -> str:
    """Return the kind of the model file `what` that begins with `head`.

    Raises:
        Failure: `format.refused` when it is neither GGUF nor safetensors.
    """
    if kind := kind_of(head):
        return kind
    raise refused(head, what)


def refused(head: bytes, what: str) -> Failure:
    """Return the failure of taking `what`, which begins with `head`, for a model."""
    if is_pickled(head):
        return Failure(
            "format.refused",
            f"{what} starts with a pickle or zip signature; only safetensors and GGUF are accepted",
            hint="pickled weights could run code when loaded: look for a safetensors or GGUF version of this model",
        )
    return Failure(
        "format.refused",
        f"{what} is neither a GGUF nor a safetensors file",
        hint="only these two formats are taken: pickled weights could run code when loaded",
    )
