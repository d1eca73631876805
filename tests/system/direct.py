"""An engine started by hand from the same launch plan that the node agent uses: what the door is compared with."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adapters import registry
from adapters.contract import LaunchRequest, Settings
from core.ids import ReplicaId
from tests.system.cluster import Running, free_port_pair
from tests.system.fetching import fetched

KEY = "direct"


@dataclass(frozen=True, kw_only=True)
class Direct:
    """A healthy engine of our own; `load_s` is spawn to first healthy answer, polled every 5 ms."""

    base_url: str
    load_s: float


@contextmanager
def llamacpp(running: Running, model: Path, served_name: str, settings: Settings, work: Path) -> Iterator[Direct]:
    """Run llama.cpp on `model` with checked `settings`, in the environment that `running` installed."""
    adapter = registry.adapter("llamacpp")
    home = running.block.node_dir / "engines" / "llamacpp" / adapter.default_version
    port = free_port_pair()
    work.mkdir(exist_ok=True)
    launch = adapter.launch(
        LaunchRequest(
            replica_id=ReplicaId("rep_direct"),
            engine_version=adapter.default_version,
            python=str(home / "bin" / "python"),
            model_path=str(model),
            served_name=served_name,
            settings=settings,
            devices=(),
            host="127.0.0.1",
            port=port,
            api_key=KEY,
            work_dir=str(work),
        )
    )
    for name, text in launch.files.items():
        (work / name).write_text(text)
    base = f"http://127.0.0.1:{port}"
    began = time.perf_counter()
    with (work / "log").open("wb") as log:
        process = subprocess.Popen(launch.argv, env={**os.environ, **launch.env}, stdout=log, stderr=log, cwd=work)
    try:
        while not _is_healthy(f"{base}{adapter.health.path}"):
            assert process.poll() is None, (work / "log").read_text()
            assert time.perf_counter() - began < 60, "llama.cpp did not become healthy"
            time.sleep(0.005)
        yield Direct(base_url=base, load_s=time.perf_counter() - began)
    finally:
        process.terminate()
        process.wait(20)


def _is_healthy(url: str) -> bool:
    return fetched(url, timeout_s=2)[0] == 200
