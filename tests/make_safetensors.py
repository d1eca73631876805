"""Writes safetensors models for tests; run by path in the environment of the engine `transformers`.

`python make_safetensors.py unpack GGUF DIRECTORY` writes the twin of a GGUF file with its weights in bfloat16.
`python make_safetensors.py random DIRECTORY` writes a llama of 0.5 MiB with random weights, 256 byte tokens and two
special ones, so that any text is one token a byte. It says nonsense, but always printable ASCII, and practically never
ends by itself.
"""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BEGIN, END = "<|begin|>", "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
_OF_THE_FILE = ("quantization_config", "_name_or_path", "_model_name_or_path", "dtype", "transformers_version")


def unpack(source: Path, target: Path) -> None:
    """Write `source` (GGUF) as safetensors into `target`; its tokenizer and chat template too."""
    packed = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # A configuration that still spoke of GGUF would make every reader look for packed weights.
    known = {name: value for name, value in packed.config.to_dict().items() if name not in _OF_THE_FILE}
    model = type(packed)(type(packed.config)(**known)).to(torch.bfloat16)
    model.load_state_dict(packed.state_dict())
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(target)


def random_llama(target: Path, context: int = 2048) -> None:
    """Write the random model into `target`."""
    torch.manual_seed(7)
    configuration = LlamaConfig(
        vocab_size=258,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,  # the smallest that vLLM's attention on the CPU takes without a fallback
        max_position_embeddings=context,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=257,
        tie_word_embeddings=False,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(configuration)
    with torch.no_grad():
        output = model.lm_head.weight
        output.mul_(5.0)  # far apart, so that greedy and sampled answers alike stay within what follows
        output[:32] = 0.0
        output[127:] = 0.0
    model.to(torch.bfloat16).save_pretrained(target)
    _byte_tokenizer().save_pretrained(target)


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = {_stand_in(byte): byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab={**alphabet, BEGIN: 256, END: 257}, merges=[]))
    tokenizer.add_special_tokens([BEGIN, END])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, 256)]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=END)
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def _stand_in(byte: int) -> str:
    """Return GPT-2's printable character for a byte (openai/gpt-2, src/encoder.py, bytes_to_unicode)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in printable:
        return chr(byte)
    return chr(256 + sorted(set(range(256)) - set(printable)).index(byte))


if __name__ == "__main__":
    if sys.argv[1] == "unpack":
        unpack(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        random_llama(Path(sys.argv[2]))
