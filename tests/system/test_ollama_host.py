"""Ollama's own client against a whole cluster: `OLLAMA_HOST` with the key in its path is all it is told."""

from collections.abc import Iterator

import ollama
import pytest

from tests.system.cluster import Running

pytestmark = pytest.mark.system
QUESTION = [{"role": "user", "content": "Say hello in one word."}]


@pytest.fixture
def client(running: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[ollama.Client]:
    key = running.block.secret_file("api_key").read_text().strip()
    monkeypatch.setenv("OLLAMA_HOST", f"http://127.0.0.1:{running.port}/k/{key}")
    with ollama.Client() as made:
        yield made


def test_the_official_client_streams_a_chat_of_a_real_model(client: ollama.Client) -> None:
    parts = list(client.chat("smollm2", QUESTION, stream=True, options={"num_predict": 16, "num_ctx": 4096}))
    assert "".join(part.message.content for part in parts)
    assert parts[-1].done_reason in {"stop", "length"}
    assert 0 < parts[-1].eval_count <= 16
    assert parts[-1].prompt_eval_duration > 0


def test_lists_tell_what_the_registry_knows(running: Running, client: ollama.Client) -> None:
    model = next(model for model in client.list().models if model.model == "smollm2:latest")
    assert len(set(model.digest)) > 1, "64 zeros are for models without files"
    assert model.details.family == "llama"
    assert model.size > 0
    loaded = next(model for model in client.ps().models if model.model == "smollm2:latest")
    assert loaded.context_length > 0
    shown = client.show("smollm2")
    assert {"completion", "tools"} <= set(shown.capabilities)
    assert shown.modelinfo["llama.context_length"] > 0


def test_a_key_in_a_path_stands_in_no_log(running: Running, client: ollama.Client) -> None:
    client.list()
    with pytest.raises(ollama.ResponseError):
        client.chat("nothing", QUESTION)
    with pytest.raises(ollama.ResponseError):
        client.pull("smollm2")
    secret = running.block.secret_file("api_key")
    text = secret.read_text().strip().rpartition("_")[2].encode()
    logs = [
        file for place in (running.block.log_dir, running.block.ray_dir) for file in place.rglob("*") if file.is_file()
    ]
    assert len(logs) > 5
    assert [str(file) for file in logs if text in file.read_bytes()] == []
