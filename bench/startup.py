"""`slice up` to the first streamed token, with an empty database and as a second start; an engine's load time."""

import os
import shutil
import subprocess
import time

from bench.report import Section, spread
from tests.system.cluster import SLICE, Running, free_port_pair

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
            method=f"{RUNS} runs in turn. From the start of the `slice up` process to the first content chunk of a streamed "
            "chat completion through the front door. Empty database: packages, engine and model installed, no "
            "database directory, no key. Second start: the same data directory after `slice down`.",
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
    """Start the replica's own command line with another port and time it to its first healthy answer."""
    import json
    import urllib.request

    from adapters import registry
    from adapters.contract import LaunchRequest
    from core.ids import ReplicaId

    deployment = running.json("show", "smollm2")
    settings = next(d for d in _deployments(running) if d["name"] == "smollm2")["settings"]
    digest = deployment["versions"][-1]["files"][0]["sha256"]
    adapter = registry.adapter("llamacpp")
    home = running.block.node_dir / "engines" / "llamacpp" / adapter.default_version
    work = running.data_dir.parent / "alone"
    work.mkdir(exist_ok=True)
    port = free_port_pair()
    launch = adapter.launch(
        LaunchRequest(
            replica_id=ReplicaId("rep_alone"),
            engine_version=adapter.default_version,
            python=str(home / "bin" / "python"),
            model_path=str(running.block.node_dir / "store" / "sha256" / digest[:2] / digest),
            served_name="smollm2",
            settings=settings,
            devices=(),
            host="127.0.0.1",
            port=port,
            api_key="alone",
            work_dir=str(work),
        )
    )
    for name, text in launch.files.items():
        (work / name).write_text(text)
    began = time.perf_counter()
    process = subprocess.Popen(launch.argv, env={**os.environ, **launch.env}, stderr=subprocess.DEVNULL, cwd=work)
    try:
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{adapter.health.path}", timeout=1) as answer:
                    if answer.status == 200:
                        return time.perf_counter() - began
            except OSError:
                time.sleep(0.005)
    finally:
        process.terminate()
        process.wait(20)
        assert json is not None
        assert SLICE


def _deployments(running: Running) -> list[dict]:  # type: ignore[type-arg]
    import json
    import urllib.request

    token = running.block.secret_file("operator_token").read_text().strip()
    request = urllib.request.Request(
        running.block.controller_url + "/api/v1/deployments", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)["items"]
