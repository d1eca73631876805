"""Keeps streams open at a front door and says how each ended: `python -I streamer.py SETTINGS`, in a machine's network.

Standard library only. SETTINGS is JSON: `door` (base URL), `key`, and `plans`, each with `model`, `clients`, `words`,
`is_exact` (the answer's text is known: it repeats the prompt) and `rest_s` (between two streams of a client). One JSON
line an event on standard output, with the machine's monotonic clock in seconds: `open` (its head and its first piece
are here) and `end`. A stream ended `whole` (every token came, and its end), `told` (an error event, no [DONE]),
`refused` (an error before its first byte), `cut` (it broke off in silence) or `wrong` (it claims to be whole and is
not). After the end of standard input no stream is begun, and those that are open go on to their end.
"""

import http.client
import itertools
import json
import sys
import threading
import time
from urllib.parse import urlsplit

PROMPT = "one two three four five six seven"
SILENCE_S = 300.0
"""A stream that says nothing for so long is given up: far above every promise of the door."""


def main(settings: dict) -> None:
    """Start all clients and wait for the end of standard input."""
    ending, lock, numbers = threading.Event(), threading.Lock(), itertools.count()

    def tell(**event: object) -> None:
        with lock:
            print(json.dumps(event), flush=True)

    clients = [
        threading.Thread(target=_client, args=(settings, plan, share / plan["clients"], ending, numbers, tell))
        for plan in settings["plans"]
        for share in range(plan["clients"])
    ]
    for client in clients:
        client.start()
    sys.stdin.read()
    ending.set()
    for client in clients:
        client.join()


def _client(settings: dict, plan: dict, share: float, ending: threading.Event, numbers, tell) -> None:
    ending.wait(2.0 * share)  # not all in one breath
    while not ending.is_set():
        stream = _Stream(plan, next(numbers), tell)
        try:
            outcome, detail = stream.run(settings)
        except (OSError, http.client.HTTPException, ValueError) as fault:
            outcome, detail = "cut", f"{type(fault).__name__} after {len(stream.pieces)} pieces"
        tell(event="end", number=stream.number, at=time.monotonic(), outcome=outcome, detail=detail, **stream.known())
        ending.wait(plan["rest_s"] if outcome == "whole" else max(0.2, plan["rest_s"]))


class _Stream:
    def __init__(self, plan: dict, number: int, tell) -> None:
        self.plan, self.number, self.tell = plan, number, tell
        self.begun = time.monotonic()
        self.replica = ""
        self.pieces: list[str] = []

    def known(self) -> dict:
        return {"begun": self.begun, "replica": self.replica, "model": self.plan["model"]}

    def run(self, settings: dict) -> tuple[str, str]:
        """Return the outcome and what there is to say of it."""
        body = {
            "model": self.plan["model"],
            "messages": [{"role": "user", "content": PROMPT}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": self.plan["words"],
            "temperature": 0,
        }
        link = http.client.HTTPConnection(urlsplit(settings["door"]).netloc, timeout=SILENCE_S)
        try:
            headers = {"authorization": f"Bearer {settings['key']}", "content-type": "application/json"}
            link.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            reply = link.getresponse()
            if reply.status != 200:
                return "refused", f"{reply.status} {json.loads(reply.read())['error']['code']}"
            self.replica = reply.getheader("x-slice-replica", "")
            return self._read(reply)
        finally:
            link.close()

    def _read(self, reply: http.client.HTTPResponse) -> tuple[str, str]:
        error, finish, used, is_done = "", "", 0, False
        for line in reply:
            text = line.decode().strip()
            if not text.startswith("data: "):
                continue
            if text == "data: [DONE]":
                is_done = True
                continue
            event = json.loads(text[6:])
            if "error" in event:
                error = event["error"]["code"] or "error"
                continue
            used = (event.get("usage") or {}).get("completion_tokens", used)
            for choice in event["choices"]:
                finish = choice["finish_reason"] or finish
                self._take((choice.get("delta") or {}).get("content") or "")
        return self._judged(error, finish, used, is_done=is_done)

    def _take(self, piece: str) -> None:
        if piece:
            self.pieces.append(piece)
            if len(self.pieces) == 1:
                self.tell(event="open", number=self.number, at=time.monotonic(), **self.known())

    def _judged(self, error: str, finish: str, used: int, *, is_done: bool) -> tuple[str, str]:
        if error:
            return ("wrong", f"[DONE] after {error}") if is_done else ("told", error)
        words, said = PROMPT.split(), "".join(self.pieces)
        expected = " ".join(words[number % len(words)] for number in range(self.plan["words"]))
        is_all = used == self.plan["words"] and (not self.plan["is_exact"] or said == expected)
        if not is_done:
            return "cut", f"no [DONE] after {used} tokens"
        return ("whole", "") if is_all and finish == "length" else ("wrong", f"{used} tokens, {finish}: {said[-40:]!r}")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
