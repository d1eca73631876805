"""Asks a front door without pause and watches the admin API: `python -I asker.py SETTINGS`, in a machine's network.

Standard library only. SETTINGS is JSON: `door` and `admin` (base URLs), `key`, `token`, `model`, `clients`, `words`,
`pause_s` (of a client whose request failed).
One JSON line an event on standard output, with the machine's monotonic clock in seconds: `answer` (begun, ended, error
or ""), and `nodes` / `replicas` whenever what they say has changed. Ends when standard input does.
"""

import http.client
import json
import sys
import threading
import time
from urllib.parse import urlsplit

_LOOK_S = 0.05


def main(settings: dict) -> None:
    """Start all threads and wait for the end of standard input."""
    ending, lock = threading.Event(), threading.Lock()

    def tell(**event: object) -> None:
        with lock:
            print(json.dumps(event), flush=True)

    works = [threading.Thread(target=_ask, args=(settings, ending, tell)) for _ in range(settings["clients"])]
    works.append(threading.Thread(target=_watch, args=(settings, ending, tell)))
    for work in works:
        work.start()
    sys.stdin.read()
    ending.set()
    for work in works:
        work.join()


def _ask(settings: dict, ending: threading.Event, tell) -> None:
    body = {
        "model": settings["model"],
        "messages": [{"role": "user", "content": "go on"}],
        "stream": True,
        "max_tokens": settings["words"],
    }
    while not ending.is_set():
        begun = time.monotonic()
        try:
            error = _answered(settings["door"], settings["key"], body)
        except (OSError, http.client.HTTPException, ValueError) as fault:
            error = type(fault).__name__
        tell(event="answer", begun=begun, ended=time.monotonic(), error=error)
        if error:
            ending.wait(settings["pause_s"])


def _answered(door: str, key: str, body: dict) -> str:
    link = http.client.HTTPConnection(urlsplit(door).netloc, timeout=60)
    try:
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        link.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        reply = link.getresponse()
        text = reply.read().decode()
    finally:
        link.close()
    if reply.status != 200:
        return f"{reply.status} {json.loads(text)['error']['code']}"
    return "" if text.rstrip().endswith("data: [DONE]") else f"cut: {text[-200:]}"


def _watch(settings: dict, ending: threading.Event, tell) -> None:
    last: dict = {}
    while not ending.wait(_LOOK_S):
        for what in ("nodes", "replicas"):
            try:
                items = _items(settings, what)
            except (OSError, http.client.HTTPException, ValueError, KeyError):
                continue
            known = {item["id"]: _told(what, item) for item in items}
            if last.get(what) != known:
                last[what] = known
                tell(event=what, at=time.monotonic(), items=known)


def _told(what: str, item: dict) -> list:
    if what == "nodes":
        return [item["name"], item["state"]]
    return [item["deployment"], item["node"], item["state"]]


def _items(settings: dict, what: str) -> list:
    link = http.client.HTTPConnection(urlsplit(settings["admin"]).netloc, timeout=5)
    try:
        link.request("GET", f"/api/v1/{what}", headers={"authorization": f"Bearer {settings['token']}"})
        reply = link.getresponse()
        text = reply.read()
        return json.loads(text)["items"] if reply.status == 200 else json.loads("x")
    finally:
        link.close()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
