"""What the front door adds over the engine itself: one client, keep-alive connections, requests in turn."""

import http.client
import json
import time
from collections.abc import Callable

from bench.report import Section, percentile
from core.apikeys import engine_key
from tests.system.cluster import Running
from tests.waiting import until

WARM_UP = 100
PAIRS = 1500


def measured(running: Running) -> list[Section]:
    """Return the latency table of the fake engine (whose own time is small and steady)."""
    running.slice("deploy", "fake", "--name", "echo", "--engine", "fake", "--set", "tokens=1")
    until(lambda: [r["state"] for r in running.replicas("echo")] == ["ready"], 60.0, "the fake engine")
    (replica,) = running.replicas("echo")
    host, _, port = str(replica["address"]).rpartition(":")
    seed = bytes.fromhex(running.block.secret_file("engine_seed").read_text().strip())
    key = running.block.secret_file("api_key").read_text().strip()
    engine = http.client.HTTPConnection(host, int(port))
    door = http.client.HTTPConnection("127.0.0.1", running.block.door_port)
    rows = []
    for kind, is_stream in (("whole answer", False), ("first streamed byte", True)):
        ask_engine = _asker(engine, engine_key(seed, replica["id"]), is_stream=is_stream)
        ask_door = _asker(door, key, is_stream=is_stream)
        for _ in range(WARM_UP):
            ask_engine()
            ask_door()
        alone, through = [], []
        for _ in range(PAIRS):
            alone.append(ask_engine() * 1000)
            through.append(ask_door() * 1000)
        added = [b - a for a, b in zip(alone, through, strict=True)]
        for share, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99")):
            cells = (percentile(alone, share), percentile(through, share), percentile(added, share))
            rows.append((f"{kind}, {name}", *(f"{cell:.2f} ms" for cell in cells), "1.5 ms" if share == 0.5 else ""))
    running.slice("rm", "echo", "--force", check=False)
    return [
        Section(
            title="Latency added by the front door",
            method="One client, one kept-alive connection each to the engine (`fake`, one token) and to the door, "
            f"asked in turn {PAIRS} times after {WARM_UP} warm-up pairs; 2.4 KB chat body. "
            "Added: the difference pair by pair.",
            header=("figure", "engine alone", "through the door", "added", "bar"),
            rows=tuple(rows),
        )
    ]


def _asker(line: http.client.HTTPConnection, key: str, *, is_stream: bool) -> Callable[[], float]:
    body = json.dumps(
        {
            "model": "echo",
            "messages": [{"role": "user", "content": "x" * 2300}],
            "max_tokens": 1,
            "stream": is_stream,
        }
    )
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def ask() -> float:
        began = time.perf_counter()
        line.request("POST", "/v1/chat/completions", body=body, headers=headers)
        answer = line.getresponse()
        answer.read(1)
        taken = time.perf_counter() - began
        rest = answer.read()
        assert answer.status == 200, rest
        return taken

    return ask
