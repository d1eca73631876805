"""How many bytes vLLM needs for a model on the CPU, from the model's header and the settings.

In: `ModelFacts` and checked settings. Out: a `Footprint`, unknown when the header leaves out a size. Called through
`Vllm.footprint`. What is no formula was measured as the PSS of vLLM's processes; `design.md` has the numbers.
"""

from dataclasses import dataclass

from adapters.contract import ModelFacts
from core.footprint import UNKNOWN_FOOTPRINT, Footprint, Provenance
from core.units import MIB

_F32 = 4
_PROCESS_BYTES = 1560 * MIB
"""Three Python processes that each import torch, transformers and vLLM (server 480, EngineCore 450, worker 490 MiB with
a model of 0.7 MiB), and what eight requests leave in their heaps."""

_TOKEN_BYTES = 6 * 1024
"""Tables of the tokenizer and of grammars for one token, all processes: 300 MiB for the 49152 tokens of SmolLM2."""

_WIDE_FACTOR = 4
"""Feed-forward width over embedding width where the header does not say; 2.7 to 4 in models of the llama family."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """The settings that decide about memory; `is_wide` says that numbers have 4 bytes instead of 2."""

    kv_cache_mib: int
    slots: int
    batch: int
    is_wide: bool


def footprint(facts: ModelFacts, load: Load) -> Footprint:
    """Return the bytes of one replica on the CPU: weights as they lie in the file, twice that when they are widened."""
    weights = facts.tensor_bytes or facts.size_bytes
    if not weights or facts.vocabulary is None or facts.embedding_length is None:
        return UNKNOWN_FOOTPRINT
    width = 4 if load.is_wide else 2
    # The output layer is packed for the CPU beside the embeddings, even where the file has one matrix for both.
    packed = facts.vocabulary * facts.embedding_length * width
    return Footprint(
        weights_bytes=weights * width // 2,
        kv_cache_bytes=load.kv_cache_mib * MIB,
        compute_bytes=_compute_bytes(facts, load),
        overhead_bytes=_PROCESS_BYTES + _TOKEN_BYTES * facts.vocabulary + packed,
        provenance=Provenance.COMPUTED,
    )


def _compute_bytes(facts: ModelFacts, load: Load) -> int:
    """Return the scratch of one forward pass at its worst: rows of a batch, and logits of every slot, in 4 bytes.

    A batch holds, for each token, five rows as wide as the embedding and three as wide as the feed-forward layer.
    Logits are held three times while an answer is sampled (raw, processed, sorted).
    """
    embedding = facts.embedding_length or 0
    wide = 3 * (facts.feed_forward_length or _WIDE_FACTOR * embedding)
    rows = load.batch * (wide + 5 * embedding) * _F32
    return rows + 3 * load.slots * (facts.vocabulary or 0) * _F32
