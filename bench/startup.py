"""`slice up` to the first streamed token, with an empty database and as a second start; an engine's load time."""

import shutil
import time

from bench.report import Section, spread
from tests.system import direct
from tests.system.cluster import Running

RUNS = 5


def measured(running: Running) -> list[Section]:
    """Return the start-up tables; the cluster is up again afterwards."""
    empty, second, loads = [], [], []
    for _ in range(RUNS):
        running.slice("down")
        _forget_database(running)
        empty.append(_seconds_to_first_token(running))
        loads.append(float(running.replicas("smollm2")[0]["load_s"]))
        running.slice("down")
        second.append(_seconds_to_first_token(running))
        loads.append(float(running.replicas("smollm2")[0]["load_s"]))
    alone = [_load_alone_s(running) for _ in range(RUNS)]
    return [
        Section(
            title="`slice up` to the first streamed token",
            method=f"{RUNS} runs in turn. From the start of the `slice up` process to the first content chunk "
            "of a streamed chat completion through the front door. Empty database: packages, engine and model "
            "installed, no database directory, no key. Second start: the same data directory after `slice down`.",
            header=("start", "median", "minimum", "maximum", "bar"),
            rows=(("empty database", *spread(empty, "s"), "15 s"), ("second start", *spread(second, "s"), "10 s")),
        ),
        Section(
            title="Engine load time, spawn to healthy (SmolLM2-135M Q4_1, llama.cpp)",
            method="Inside Slice: `load_s` of the replica in the runs above. Alone: the same command, files and "
            "environment started by hand, polled every 5 ms.",
            header=("engine", "median", "minimum", "maximum"),
            rows=(("inside Slice", *spread(loads, "s")), ("alone", *spread(alone, "s"))),
        ),
    ]


def _forget_database(running: Running) -> None:
    shutil.rmtree(running.block.postgres_dir)
    # A node refuses a controller whose reign is older than one it has seen, and a new database begins at the first.
    (running.block.node_dir / "applied.json").unlink(missing_ok=True)
    (running.data_dir / "starter.done").unlink(missing_ok=True)
    running.block.secret_file("api_key").unlink(missing_ok=True)


def _seconds_to_first_token(running: Running) -> float:
    began = time.perf_counter()
    running.up()
    stream = running.client().chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": "Hello!"}], max_tokens=8, stream=True
    )
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            return time.perf_counter() - began
    raise AssertionError("the stream had no content")


def _load_alone_s(running: Running) -> float:
    """Return the seconds from spawn to healthy of the starter's own command line, started by hand."""
    digest = running.json("show", "smollm2")["versions"][-1]["files"][0]["sha256"]
    model = running.block.node_dir / "store" / "sha256" / digest[:2] / digest
    settings = running.admin("deployments/smollm2")["settings"]
    with direct.llamacpp(running, model, "smollm2", settings, running.data_dir.parent / "alone") as engine:
        return engine.load_s
