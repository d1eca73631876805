"""How many bytes the server of `transformers` needs for a model, from the model's header and the settings.

In: `ModelFacts` and checked settings. Out: a `Footprint`, unknown when the header leaves out a size. Called through
`Transformers.footprint`. The sizes that are no formula were measured as the process's PSS; `design.md` has the numbers.
"""

from dataclasses import dataclass

from adapters.contract import ModelFacts
from core.footprint import UNKNOWN_FOOTPRINT, Footprint, Provenance
from core.units import MIB

_F32 = 4
_PREFILL = 64
"""Prompt tokens computed at once (`program/generation.py`)."""

_PROCESS_BYTES = 730 * MIB
"""Python with torch and transformers: PSS with a model of 0.7 MiB is 334 MiB with torch's CPU build, and the public
index's build for GPUs (`+cuda`) takes 354 MiB more, also on a CPU; plus a margin. A footprint knows no version, so it
is that of the larger build: too much memory kept free is better than a replica killed."""

_TOKEN_BYTES = 512
"""The tokenizer's tables for one token: 13 MiB for the 49152 tokens of SmolLM2, rounded up."""

_WIDE_FACTOR = 4
"""Feed-forward width over embedding width where the header does not say; 2.7 to 4 in models of the llama family."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """The settings that decide about memory; a number has `width` bytes, 2 or 4."""

    context: int
    slots: int
    width: int


def footprint(facts: ModelFacts, load: Load) -> Footprint:
    """Return the bytes of one replica on the CPU: weights as they lie in the file, twice that when they are widened."""
    weights = facts.tensor_bytes or facts.size_bytes
    sizes = (facts.layers, facts.kv_heads, facts.key_length, facts.value_length, facts.embedding_length)
    if not weights or facts.vocabulary is None or any(size is None for size in sizes):
        return UNKNOWN_FOOTPRINT
    row = (facts.key_length or 0) + (facts.value_length or 0)
    token = (facts.layers or 0) * (facts.kv_heads or 0) * row * load.width
    # A cache grows by making a longer one beside the old, and the heap keeps the places of those before: measured 1.3
    # to 1.9 times what the last one needs.
    kv_cache = 2 * token * load.context
    return Footprint(
        weights_bytes=weights * load.width // 2,
        kv_cache_bytes=kv_cache * load.slots,
        compute_bytes=_compute_bytes(facts, load) * load.slots,
        overhead_bytes=_PROCESS_BYTES + _TOKEN_BYTES * facts.vocabulary,
        provenance=Provenance.COMPUTED,
    )


def _compute_bytes(facts: ModelFacts, load: Load) -> int:
    """Return the scratch of one request at its worst: rows of a piece of prompt, attention scores, logits."""
    embedding = facts.embedding_length or 0
    wide = 3 * (facts.feed_forward_length or _WIDE_FACTOR * embedding)
    rows = _PREFILL * (wide + 5 * embedding) * _F32
    scores = 2 * (facts.heads or 1) * _PREFILL * load.context * load.width
    return rows + scores + 6 * (facts.vocabulary or 0) * _F32
