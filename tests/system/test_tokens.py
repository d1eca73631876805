"""The door changes no token: a model of random weights answers through it exactly as llama.cpp called directly."""

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters import registry
from adapters.checking import checked_settings
from adapters.contract import LaunchRequest
from core.ids import ReplicaId
from tests import ggufs
from tests.system.cluster import Running, free_port_pair
from tests.waiting import until

pytestmark = pytest.mark.system
SETTINGS = {"context": 256, "slots": 1, "threads": 1}


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "random.gguf"
    ggufs.write_random_llama(path, seed=11)
    return path


@pytest.fixture
def direct(running: Running, model_file: Path, tmp_path: Path) -> Iterator[str]:
    """llama.cpp itself, started by the same launch plan with the same settings; its base URL."""
    adapter = registry.adapter("llamacpp")
    port = free_port_pair()
    home = running.block.node_dir / "engines" / "llamacpp" / adapter.default_version
    work = tmp_path / "direct"
    work.mkdir()
    launch = adapter.launch(
        LaunchRequest(
            replica_id=ReplicaId("rep_direct"),
            engine_version=adapter.default_version,
            python=str(home / "bin" / "python"),
            model_path=str(model_file),
            served_name="random",
            settings=checked_settings(adapter, SETTINGS),
            devices=(),
            host="127.0.0.1",
            port=port,
            api_key="direct",
            work_dir=str(work),
        )
    )
    for name, text in launch.files.items():
        (work / name).write_text(text)
    process = subprocess.Popen(launch.argv, env={**os.environ, **launch.env}, stderr=subprocess.DEVNULL, cwd=work)
    try:
        base = f"http://127.0.0.1:{port}"
        until(lambda: _is_healthy(base), 30.0, "llama.cpp")
        yield base
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def _is_healthy(base: str) -> bool:
    try:
        with urllib.request.urlopen(f"{base}/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def _completion(base: str, key: str, model: str) -> Any:
    body = {"model": model, "prompt": "abc", "max_tokens": 24, "temperature": 0, "seed": 1, "logprobs": 3}
    request = urllib.request.Request(
        f"{base}/v1/completions",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["choices"][0]


def test_greedy_tokens_and_logprobs_through_the_door_equal_those_of_llama_cpp(
    running: Running, model_file: Path, direct: str
) -> None:
    running.slice("pull", "random", "--source", f"file:{model_file}")
    settings = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    running.slice("deploy", "random", *settings)
    until(lambda: [r["state"] for r in running.replicas("random")] == ["ready"], 30.0, "the random model")
    key = running.block.secret_file("api_key").read_text().strip()
    ours = _completion(f"http://127.0.0.1:{running.port}", key, "random")
    theirs = _completion(direct, "direct", "random")
    assert ours["text"] == theirs["text"]
    assert ours["logprobs"] == theirs["logprobs"]
    assert len(ours["logprobs"]["content"] if "content" in ours["logprobs"] else ours["logprobs"]["tokens"]) == 24
    running.slice("rm", "random", "--force")
    assert "random" not in running.slice("list", "-o", "name").stdout
