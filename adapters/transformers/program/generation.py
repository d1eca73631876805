"""One model in memory, and the loop that makes tokens with it.

In: token ids, a `Sampling`, and a function that says whether the asker is still there. Out: tokens one at a time, and
vectors. Used by `serve.py` beside it, in any number of threads. The loop is our own instead of `model.generate`, which
samples from one random source for all requests and looks up only between tokens, however long the prompt is.
"""

import ctypes
import gc
import math
import threading
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

_PREFILL = 64  # prompt tokens computed between two looks at whether anybody still waits
_HALF_A_CHARACTER = "\ufffd"


class Gone(Exception):
    """Whoever asked has hung up."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; `seed` None is a random one, `top_logprobs` None means no log probabilities."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    ignore_eos: bool = False
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Token:
    """One token of an answer: id, log probability, and the likeliest with theirs; no numbers unless asked for."""

    number: int
    logprob: float = 0.0
    likeliest: tuple = ()


class Model:
    """A causal language model with its tokenizer."""

    def __init__(self, path, *, dtype, context):
        options = {"local_files_only": True, "trust_remote_code": False}
        configuration = AutoConfig.from_pretrained(path, **options)
        own = getattr(configuration, "max_position_embeddings", None) or context
        if context > own:
            raise ValueError(f"the model's own context is {own} tokens, {context} were asked for")
        self.context = context
        self.tokenizer = AutoTokenizer.from_pretrained(path, **options)
        self._model = AutoModelForCausalLM.from_pretrained(
            path, config=configuration, dtype=getattr(torch, dtype), use_safetensors=True, **options
        ).eval()
        _read_in(self._model)
        self.device = next(self._model.parameters()).device
        self._ends = _ends(self._model, self.tokenizer)

    def ids(self, text):
        """Return the tokens of a bare text, the tokenizer's own beginning included."""
        return self.tokenizer(text)["input_ids"]

    def chat_ids(self, messages):
        """Return the tokens of a conversation in the model's template, up to where the answer begins."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @property
    def vocabulary(self):
        """Return how many tokens there are."""
        return self._model.config.get_text_config().vocab_size

    @torch.inference_mode()
    def tokens(self, ids, sampling, is_gone):
        """Yield the answer's tokens until `max_tokens`, the context's end, or an end token, which is not yielded.

        Raises:
            Gone: `is_gone` said so before a token or a piece of the prompt.
        """
        cache = DynamicCache(config=self._model.config)
        logits = self._read(ids, cache, is_gone)
        chooser = _Chooser(sampling, self.device)
        for count in range(min(sampling.max_tokens, self.context - len(ids))):
            token = chooser.next(logits)
            if token.number in self._ends and not sampling.ignore_eos:
                return
            yield token
            if is_gone():
                raise Gone
            if count + 1 < min(sampling.max_tokens, self.context - len(ids)):
                logits = self._forward([token.number], cache)

    def _read(self, ids, cache, is_gone):
        for start in range(0, len(ids), _PREFILL):
            if is_gone():
                raise Gone
            logits = self._forward(ids[start : start + _PREFILL], cache)
        return logits

    def _forward(self, ids, cache):
        batch = torch.tensor([ids], device=self.device)
        return self._model(batch, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1].float()

    @torch.inference_mode()
    def embedding(self, ids, is_gone):
        """Return the mean of the last layer over all tokens, of length 1, as a list of floats."""
        cache = DynamicCache(config=self._model.config)
        total = torch.zeros(self._model.config.get_text_config().hidden_size, device=self.device)
        for start in range(0, len(ids), _PREFILL):
            if is_gone():
                raise Gone
            batch = torch.tensor([ids[start : start + _PREFILL]], device=self.device)
            states = self._model.base_model(batch, past_key_values=cache, use_cache=True).last_hidden_state
            total += states[0].float().sum(dim=0)
        return torch.nn.functional.normalize(total, dim=0).tolist()


class _Chooser:
    """Picks tokens from logits with a random source of its own, so that one request's seed is nobody else's."""

    def __init__(self, sampling, device):
        self._sampling = sampling
        self._source = torch.Generator(device=device)
        if sampling.seed is None:
            self._source.seed()
        else:
            self._source.manual_seed(sampling.seed)
        self._counts = {}

    def next(self, logits):
        number = self._pick(self._penalised(logits))
        self._counts[number] = self._counts.get(number, 0) + 1
        if self._sampling.top_logprobs is None:
            return Token(number)
        logprobs = torch.log_softmax(logits, dim=-1)
        best = torch.topk(logprobs, self._sampling.top_logprobs) if self._sampling.top_logprobs else None
        likeliest = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)) if best else ()
        return Token(number, logprobs[number].item(), likeliest)

    def _penalised(self, logits):
        wanted = self._sampling
        if not self._counts or not (wanted.presence_penalty or wanted.frequency_penalty):
            return logits
        logits = logits.clone()
        for number, count in self._counts.items():
            logits[number] -= wanted.presence_penalty + wanted.frequency_penalty * count
        return logits

    def _pick(self, logits):
        if self._sampling.temperature == 0:
            return int(torch.argmax(logits))
        chances = torch.softmax(logits / self._sampling.temperature, dim=-1)
        if self._sampling.top_p < 1:
            ordered, places = torch.sort(chances, descending=True)
            # The first token whose chance crosses the bound still counts (Holtzman et al. 2019, nucleus sampling).
            ordered[torch.cumsum(ordered, dim=-1) - ordered >= self._sampling.top_p] = 0
            return int(places[torch.multinomial(ordered, 1, generator=self._source)])
        return int(torch.multinomial(chances, 1, generator=self._source))


def _ends(model, tokenizer):
    """Return every token that ends an answer."""
    named = model.generation_config.eos_token_id
    several = named if isinstance(named, list) else [named]
    return frozenset(one for one in (*several, tokenizer.eos_token_id) if one is not None)


def _read_in(model):
    """Copy weights that are mapped from the file: mapped pages count as free, and placement would promise them."""
    read = {}
    for weight in (*model.parameters(), *model.buffers()):
        address = weight.data_ptr()
        if address not in read:
            read[address] = weight.data.clone()
        weight.data = read[address]
    read.clear()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what loading needed besides would stay with us: 400 MiB of SmolLM2 in float32


class Text:
    """Turns tokens into text piece by piece, and finds stop words across pieces.

    A piece is given out only when no later token can change it: characters of several tokens are whole, and no stop
    word has begun in it.
    """

    def __init__(self, tokenizer, stops):
        self._tokenizer = tokenizer
        self._stops = stops
        self._ids = []
        self._read = self._told = 0  # tokens before `_read` are certain; `_told` is where their text began
        self._held = ""
        self.is_stopped = False

    def add(self, number):
        """Return the text that this token makes certain."""
        self._ids.append(number)
        before = self._decoded(self._ids[self._told : self._read])
        now = self._decoded(self._ids[self._told :])
        if len(now) <= len(before) or now.endswith(_HALF_A_CHARACTER):
            return ""
        self._told, self._read = self._read, len(self._ids)
        return self._checked(now[len(before) :])

    def rest(self):
        """Return what is left when no token follows."""
        before = self._decoded(self._ids[self._told : self._read])
        now = self._decoded(self._ids[self._told :])
        text = self._checked(now[len(before) :])
        text += self._held if not self.is_stopped else ""
        self._held = ""
        return text

    def _decoded(self, ids):
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _checked(self, piece):
        text = self._held + piece
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text, stop):
    """Return how many characters at the end of `text` may be the beginning of `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


class Slots:
    """How many requests compute at the same time; the others wait, in the order in which they came."""

    def __init__(self, count):
        self._free = count
        self._waiting = []
        self._changed = threading.Condition()

    @property
    def waiting(self):
        """Return how many wait."""
        return len(self._waiting)

    def take(self, is_gone):
        """Wait for a slot.

        Raises:
            Gone: the asker hung up meanwhile.
        """
        mine = object()
        with self._changed:
            self._waiting.append(mine)
            try:
                while not (self._free and self._waiting[0] is mine):
                    self._changed.wait(0.1)  # a socket that closes wakes nobody up
                    if is_gone():
                        raise Gone
                self._free -= 1
            finally:
                self._waiting.remove(mine)
                self._changed.notify_all()

    def give_back(self):
        """Free a slot."""
        with self._changed:
            self._free += 1
            self._changed.notify_all()


def is_number(value, low, high):
    """Return whether `value` is a finite number from `low` to `high`."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high
    )
