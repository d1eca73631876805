"""The door changes no token: a model of random weights answers through it exactly as llama.cpp called directly."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from adapters import registry
from adapters.checking import checked_settings
from tests import ggufs
from tests.system import direct
from tests.system.cluster import Running
from tests.system.fetching import fetched
from tests.waiting import until

pytestmark = pytest.mark.system
SETTINGS = {"context": 256, "slots": 1, "threads": 1}


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "random.gguf"
    ggufs.write_random_llama(path, seed=11)
    return path


def _completion(base: str, key: str, model: str) -> Any:
    message = {"role": "user", "content": "abc"}
    body = {"model": model, "messages": [message], "max_tokens": 24, "temperature": 0, "seed": 1}
    body |= {"logprobs": True, "top_logprobs": 3}
    request = urllib.request.Request(
        f"{base}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    status, text = fetched(request)
    assert status == 200, text
    return json.loads(text)["choices"][0]


def test_greedy_tokens_and_logprobs_through_the_door_equal_those_of_llama_cpp(
    running: Running, model_file: Path, tmp_path: Path
) -> None:
    running.slice("pull", "random", "--source", f"file:{model_file}")
    flags = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    running.slice("deploy", "random", *flags)
    until(lambda: [r["state"] for r in running.replicas("random")] == ["ready"], 30.0, "the random model")
    key = running.block.secret_file("api_key").read_text().strip()
    ours = _completion(f"http://127.0.0.1:{running.port}", key, "random")
    settings = checked_settings(registry.adapter("llamacpp"), SETTINGS)
    with direct.llamacpp(running, model_file, "random", settings, tmp_path / "direct") as engine:
        theirs = _completion(engine.base_url, direct.KEY, "random")
    assert ours["message"] == theirs["message"]
    assert ours["logprobs"] == theirs["logprobs"]
    assert len(ours["logprobs"]["content"]) == 24
    running.slice("rm", "random", "--force")
    assert "random" not in running.slice("list", "-o", "name").stdout
