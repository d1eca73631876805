"""How many bytes llama.cpp needs for a model, from the model's header and the settings.

In: `ModelFacts` and checked settings. Out: a `Footprint`, unknown when the header leaves out a size. Called through
`LlamaCpp.footprint`. The formulas were read off llama.cpp's own log lines (`... buffer size = N MiB`) and checked
against the process's PSS; `adapters/llamacpp/design.md` has the numbers.
"""

from dataclasses import dataclass

from adapters.contract import ModelFacts
from core.footprint import UNKNOWN_FOOTPRINT, Footprint, Provenance
from core.units import MIB

_F16, _F32 = 2, 4
_CONTEXT_STEP = 256
"""llama.cpp rounds a slot's context up to this (llama-context.cpp, GGML_PAD of n_ctx_seq)."""

_PROCESS_BYTES = 40 * MIB
"""Python, xllamacpp's library and the HTTP threads: PSS with a model of 0.4 MiB is 32 MiB; plus a margin."""

_TOKEN_BYTES = 512
"""The tokenizer's tables for one token: (52 - 32) MiB for the 49152 tokens and 48900 merges of SmolLM2, rounded up."""

_WIDE_FACTOR = 4
"""Feed-forward width over embedding width where the header does not say; 2.7 to 4 in models of the llama family."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """The settings that decide about memory: tokens per slot, slots, tokens per batch, prompt cache in MiB."""

    context: int
    slots: int
    batch: int
    cache_ram_mib: int
    embeddings: bool


def footprint(facts: ModelFacts, load: Load) -> Footprint:
    """Return the bytes of one replica on the CPU."""
    weights = facts.tensor_bytes or facts.size_bytes
    sizes = (facts.layers, facts.kv_heads, facts.key_length, facts.value_length, facts.embedding_length)
    if not weights or facts.vocabulary is None or any(size is None for size in sizes):
        return UNKNOWN_FOOTPRINT
    context = -(-load.context // _CONTEXT_STEP) * _CONTEXT_STEP
    return Footprint(
        weights_bytes=weights,
        kv_cache_bytes=_kv_cache_bytes(facts, context * load.slots),
        compute_bytes=_compute_bytes(facts, context, load),
        overhead_bytes=_PROCESS_BYTES + _TOKEN_BYTES * facts.vocabulary + load.cache_ram_mib * MIB,
        provenance=Provenance.COMPUTED,
    )


def _kv_cache_bytes(facts: ModelFacts, tokens: int) -> int:
    """Return keys and values in f16 of `tokens` tokens (llama-kv-cache.cpp); exact for models without sliding windows.

    Models with sliding-window or recurrent layers need less: the number is an upper bound for them.
    """
    row = (facts.key_length or 0) + (facts.value_length or 0)
    return (facts.layers or 0) * (facts.kv_heads or 0) * row * _F16 * tokens


def _compute_bytes(facts: ModelFacts, context: int, load: Load) -> int:
    """Return the graph's scratch buffer and the output buffer, both at their worst.

    At its peak the graph holds, for each token of a batch, five rows as wide as the embedding and either three as wide
    as the feed-forward layer or, when embeddings are on (every token may be an output then), one as wide as the
    vocabulary; and the attention mask in f16. Log lines of xllamacpp 2026.10.11549 agree to 0.4 MiB: SmolLM2-135M
    18.6 MiB without and 105.7 MiB with embeddings at 2 slots of 4096. The output buffer (llama-context.cpp,
    output_reserve) has a row of logits for each slot, and grows to one for each token of a batch that is embedded.
    """
    embedding = facts.embedding_length or 0
    vocabulary = facts.vocabulary or 0
    wide = 3 * (facts.feed_forward_length or _WIDE_FACTOR * embedding)
    if load.embeddings:
        wide = max(wide, vocabulary)
    batch = min(load.batch, context * load.slots)
    rows = batch * (wide + 5 * embedding) * _F32
    mask = batch * context * _F16
    output_rows = max(load.slots, batch) if load.embeddings else load.slots
    outputs = output_rows * (vocabulary + (embedding if load.embeddings else 0)) * _F32
    return rows + mask + outputs
