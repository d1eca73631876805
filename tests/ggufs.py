"""Makes tiny GGUF models with random weights that llama.cpp really loads and generates with.

In: a path, a seed and sizes. Out: a valid `llama` model with a byte-level BPE tokenizer: 256 byte tokens and two
special ones, no merges, so any UTF-8 text is one token a byte. Called by tests of the adapters and of the whole
product. What it says is nonsense, but greedy decoding of it is deterministic, which is all that tests need.
"""

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

BEGIN_TOKEN, END_TOKEN = "<|begin|>", "<|end|>"
BYTE_TOKENS = 256
VOCABULARY = BYTE_TOKENS + 2
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def byte_alphabet() -> list[str]:
    """Return GPT-2's printable stand-in for each of the 256 bytes (openai/gpt-2, src/encoder.py, bytes_to_unicode)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    stand_in = {byte: chr(byte) for byte in printable}
    for number, byte in enumerate(sorted(set(range(256)) - set(printable))):
        stand_in[byte] = chr(256 + number)
    return [stand_in[byte] for byte in range(256)]


def write_random_llama(
    path: Path,
    *,
    seed: int,
    layers: int = 2,
    embedding: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    vocabulary: int = VOCABULARY,
    context: int = 256,
    feed_forward: int | None = None,
    template: str | None = None,
    is_embedder: bool = False,
) -> Path:
    """Write the model and return `path`; `vocabulary` above 258 adds tokens that no text is made of.

    `is_embedder` names a pooling (mean), by which programs know models that are made for embeddings.

    The end token's output row points nowhere, so that generation practically never stops by itself.

    Raises:
        ValueError: sizes that do not fit together.
    """
    if embedding % heads or heads % kv_heads or vocabulary < VOCABULARY or (embedding // heads) % 2:
        raise ValueError("embedding must be a multiple of heads, heads of kv_heads, and vocabulary at least 258")
    wide = feed_forward or 2 * embedding
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"random-{seed}")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(layers)
    writer.add_context_length(context)
    writer.add_embedding_length(embedding)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(embedding // heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(vocabulary)
    if is_embedder:
        writer.add_pooling_type(gguf.PoolingType.MEAN)
    spare = [f"<|spare_{number}|>" for number in range(vocabulary - VOCABULARY)]
    _add_tokenizer(writer, spare, gguf.TokenType.UNUSED, template or CHAT_TEMPLATE)
    _add_tensors(writer, np.random.default_rng(seed), layers, embedding, heads, kv_heads, vocabulary, wide)
    return _written(writer, path)


def write_scripted_llama(path: Path, *, says: Sequence[str], chat_template: str, context: int = 512) -> Path:
    """Write a model that answers whatever it is asked with the pieces of `says`, one token each, and ends.

    A real `llama` whose layer adds nothing, so that the next token depends on the last one alone: every ordinary token
    leads to the first piece, each piece to the next, the last one to the end. For what only a model that calls tools
    can show: its words are fixed, everything else is the engine's work.

    Raises:
        ValueError: more pieces than the 64 dimensions hold.
    """
    embedding, heads, vocabulary = 64, 4, VOCABULARY + len(says)
    if len(says) > embedding - 1:
        raise ValueError("too many pieces")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("scripted")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(1)
    writer.add_context_length(context)
    writer.add_embedding_length(embedding)
    writer.add_feed_forward_length(embedding)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(embedding // heads)
    writer.add_vocab_size(vocabulary)
    alphabet = byte_alphabet()
    pieces = ["".join(alphabet[byte] for byte in piece.encode()) for piece in says]
    _add_tokenizer(writer, pieces, gguf.TokenType.NORMAL, chat_template)
    # Token -> its direction: 0 for ordinary ones, one of its own for each piece. Output row -> what leads to it.
    directions, rows = np.zeros((2, vocabulary, embedding), dtype=np.float32)
    directions[:VOCABULARY, 0] = 1.0
    for number in range(len(says)):
        directions[VOCABULARY + number, number + 1] = 1.0
        rows[VOCABULARY + number, number] = 4.0
    rows[BYTE_TOKENS + 1, len(says)] = 4.0
    writer.add_tensor("token_embd.weight", directions)
    silent = np.zeros((embedding, embedding), dtype=np.float32)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", silent)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(embedding, dtype=np.float32))
    writer.add_tensor("output.weight", rows)
    return _written(writer, path)


def _written(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(
    writer: gguf.GGUFWriter, more: Sequence[str], kind_of_more: gguf.TokenType, chat_template: str
) -> None:
    tokens = [*byte_alphabet(), BEGIN_TOKEN, END_TOKEN, *more]
    kinds = [gguf.TokenType.NORMAL] * BYTE_TOKENS + [gguf.TokenType.CONTROL] * 2 + [kind_of_more] * len(more)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    # An empty array has no element type in GGUF; one merge that text practically never hits keeps the key valid.
    writer.add_token_merges([f"{byte_alphabet()[0]} {byte_alphabet()[1]}"])
    writer.add_bos_token_id(BYTE_TOKENS)
    writer.add_eos_token_id(BYTE_TOKENS + 1)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(chat_template)


def _add_tensors(
    writer: gguf.GGUFWriter,
    source: np.random.Generator,
    layers: int,
    embedding: int,
    heads: int,
    kv_heads: int,
    vocabulary: int,
    wide: int,
) -> None:
    def matrix(rows: int, columns: int) -> np.ndarray:
        return (source.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    ones = np.ones(embedding, dtype=np.float32)
    kv_width = embedding // heads * kv_heads
    writer.add_tensor("token_embd.weight", matrix(vocabulary, embedding) * np.float32(np.sqrt(embedding)))
    for layer in range(layers):
        prefix = f"blk.{layer}."
        writer.add_tensor(prefix + "attn_norm.weight", ones)
        writer.add_tensor(prefix + "attn_q.weight", matrix(embedding, embedding))
        writer.add_tensor(prefix + "attn_k.weight", matrix(kv_width, embedding))
        writer.add_tensor(prefix + "attn_v.weight", matrix(kv_width, embedding))
        writer.add_tensor(prefix + "attn_output.weight", matrix(embedding, embedding))
        writer.add_tensor(prefix + "ffn_norm.weight", ones)
        writer.add_tensor(prefix + "ffn_gate.weight", matrix(wide, embedding))
        writer.add_tensor(prefix + "ffn_up.weight", matrix(wide, embedding))
        writer.add_tensor(prefix + "ffn_down.weight", matrix(embedding, wide))
    writer.add_tensor("output_norm.weight", ones)
    output = matrix(vocabulary, embedding) * np.float32(4.0)
    output[BYTE_TOKENS:] = 0.0
    # Only printable ASCII gets likely, so that what is generated is text and never half a UTF-8 character.
    output[:32] = 0.0
    output[127:] = 0.0
    writer.add_tensor("output.weight", output)
