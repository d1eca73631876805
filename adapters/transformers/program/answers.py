"""The bodies of answers: one `Answer` for each request, whole or in chunks. Used by `serve.py` beside it."""

import secrets
import time


class Answer:
    """What was generated so far, and how it is told in OpenAI's words."""

    def __init__(self, model, is_chat, asked):
        self._is_chat = is_chat
        self._asked = asked
        self._pieces, self._logprobs = [], []
        self._finish = None
        self.tokens = 0
        kind = "chat.completion" if is_chat else "text_completion"
        self._base = {
            "id": ("chatcmpl-" if is_chat else "cmpl-") + secrets.token_hex(8),
            "object": kind + (".chunk" if asked.is_stream and is_chat else ""),
            "created": int(time.time()),
            "model": model,
        }

    def opening(self):
        """Return the first chunk of a stream."""
        return self._chunk({"role": "assistant", "content": ""} if self._is_chat else "")

    def add(self, token, text, tokenizer):
        """Count a token and the text it made certain; return the chunk that tells of it, None when there is nothing."""
        self.tokens += 1
        told = []
        if self._asked.sampling.top_logprobs is not None:
            told = [_logprob(token, tokenizer)]
            self._logprobs += told
        self._pieces.append(text)
        return self._chunk({"content": text} if self._is_chat else text, told=told) if text or told else None

    def close(self, text, finish):
        """Return the last chunks: text that was held back, and the reason for the end."""
        self._pieces.append(text)
        self._finish = finish
        held = [self._chunk({"content": text} if self._is_chat else text)] if text else []
        return [*held, self._chunk({} if self._is_chat else "", finish=finish)]

    def usage_event(self):
        """Return the chunk after the last that has the counts."""
        return {**self._base, "choices": [], "usage": self._usage()}

    def whole(self):
        """Return the answer in one piece."""
        text = "".join(self._pieces)
        said = {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": self._told(self._logprobs), "finish_reason": self._finish}
        return {**self._base, "choices": [choice], "usage": self._usage()}

    def _chunk(self, said, *, told=(), finish=None):
        content = {"delta": said} if self._is_chat else {"text": said}
        choice = {"index": 0, **content, "logprobs": self._told(told), "finish_reason": finish}
        return {**self._base, "choices": [choice]}

    def _usage(self):
        prompt = len(self._asked.ids)
        return {"prompt_tokens": prompt, "completion_tokens": self.tokens, "total_tokens": prompt + self.tokens}

    def _told(self, logprobs):
        if not logprobs:
            return None
        if self._is_chat:
            return {"content": list(logprobs), "refusal": None}
        return {
            "tokens": [one["token"] for one in logprobs],
            "token_logprobs": [one["logprob"] for one in logprobs],
            "top_logprobs": [{best["token"]: best["logprob"] for best in one["top_logprobs"]} for one in logprobs],
        }


def _logprob(token, tokenizer):
    def named(number, logprob):
        text = tokenizer.decode([number])
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    return {**named(token.number, token.logprob), "top_logprobs": [named(*one) for one in token.likeliest]}
