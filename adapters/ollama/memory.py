"""How many bytes Ollama needs for a model: its own server, and one llama.cpp with the model.

In: `ModelFacts` and checked settings. Out: a `Footprint`, unknown when the header leaves out a size. Called through
`Ollama.footprint`. Ollama runs llama.cpp's server with batches of 512 tokens (llm/llama_server.go of 0.33), so the
terms are llama.cpp's; they are an upper bound that nobody has measured on the real program.
"""

from adapters.contract import ModelFacts
from core.footprint import UNKNOWN_FOOTPRINT, Footprint, Provenance
from core.units import MIB

_BATCH = 512
_F32 = 4
_CONTEXT_STEP = 256
_VALUE_BITS = {"f16": 16.0, "q8_0": 8.5, "q4_0": 4.5}
"""Bits of one value in the KV cache; ggml's q8_0 and q4_0 keep a 16-bit scale for each 32 values."""

_PROCESSES_BYTES = 160 * MIB
"""The server in Go with its discovery of GPUs, and llama.cpp's program with its HTTP threads; generous."""

_TOKEN_BYTES = 512
"""The tokenizer's tables for one token, as measured on llama.cpp."""

_WIDE_FACTOR = 4
"""Feed-forward width over embedding width where the header does not say."""


def footprint(facts: ModelFacts, *, context: int, slots: int, cache_type: str, is_embedding: bool) -> Footprint:
    """Return the bytes of one replica on its device; `context` is tokens per slot."""
    weights = facts.tensor_bytes or facts.size_bytes
    sizes = (facts.layers, facts.kv_heads, facts.key_length, facts.value_length, facts.embedding_length)
    if not weights or facts.vocabulary is None or any(size is None for size in sizes):
        return UNKNOWN_FOOTPRINT
    tokens = -(-context // _CONTEXT_STEP) * _CONTEXT_STEP * slots
    row = (facts.layers or 0) * (facts.kv_heads or 0) * ((facts.key_length or 0) + (facts.value_length or 0))
    embedding = facts.embedding_length or 0
    wide = 3 * (facts.feed_forward_length or _WIDE_FACTOR * embedding)
    # An embedding is computed in one batch, however long its input.
    batch = tokens if is_embedding else min(_BATCH, tokens)
    mask = batch * tokens // slots * 2
    # llama.cpp sets aside logits for every token of a batch, though it gives them for one a slot.
    logits = (batch + max(slots, 1)) * facts.vocabulary * _F32
    return Footprint(
        weights_bytes=weights,
        kv_cache_bytes=int(row * tokens * _VALUE_BITS[cache_type] / 8),
        compute_bytes=batch * (wide + 5 * embedding) * _F32 + mask + logits,
        overhead_bytes=_PROCESSES_BYTES + _TOKEN_BYTES * facts.vocabulary,
        provenance=Provenance.COMPUTED,
    )
