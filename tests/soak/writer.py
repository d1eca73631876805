"""Writes to and reads from the admin API without pause: `python -I writer.py SETTINGS`, in the controller's network.

Standard library only. SETTINGS is JSON: `admin` (base URL), `token`, `stem` (of the names of the keys it makes),
`every_s`. One JSON line a request on standard output: `event` (keys, which are written; nodes and replicas, which are
read), begun, ended (the machine's monotonic clock, seconds), `status` (0: none came), `code`, `has_retry_after`, `name`
of what was written and `items` that were read. Ends with standard input.
"""

import http.client
import json
import sys
import threading
import time
from urllib.parse import urlsplit


def main(settings: dict) -> None:
    """Start both threads and wait for the end of standard input."""
    ending, lock = threading.Event(), threading.Lock()

    def tell(**event: object) -> None:
        with lock:
            print(json.dumps(event), flush=True)

    def loop(what: str) -> None:
        number = 0
        while not ending.wait(settings["every_s"]):
            number += 1
            body = {"name": f"{settings['stem']}-{number}", "expires_in_s": None} if what == "keys" else None
            begun = time.monotonic()
            try:
                told = _asked(settings, what, body)
            except (OSError, http.client.HTTPException) as fault:
                told = {"status": 0, "code": type(fault).__name__, "has_retry_after": False}
            tell(event=what, begun=begun, ended=time.monotonic(), name=(body or {}).get("name", ""), **told)

    works = [threading.Thread(target=loop, args=(what,)) for what in ("keys", "nodes", "replicas")]
    for work in works:
        work.start()
    sys.stdin.read()
    ending.set()
    for work in works:
        work.join()


def _asked(settings: dict, what: str, body: dict | None) -> dict:
    link = http.client.HTTPConnection(urlsplit(settings["admin"]).netloc, timeout=60)
    headers = {"authorization": f"Bearer {settings['token']}", "content-type": "application/json"}
    try:
        text = None if body is None else json.dumps(body)
        link.request("GET" if body is None else "POST", f"/api/v1/{what}", text, headers)
        reply = link.getresponse()
        found = reply.read().decode(errors="replace")
    finally:
        link.close()
    retry_after = reply.getheader("retry-after")
    return {"status": reply.status, "has_retry_after": bool(retry_after), **_told(found)}


def _told(text: str) -> dict:
    try:
        found = json.loads(text)
    except ValueError:
        return {"code": "no JSON"}
    if "error" in found:
        return {"code": str(found["error"]["code"])}
    wanted = ("id", "name", "node", "deployment", "state", "incarnation", "pid")
    return {"code": "", "items": [{key: item.get(key) for key in wanted} for item in found.get("items", [])]}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
