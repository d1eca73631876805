"""A managed Ollama as the adapter describes it: the stand-in, and the real program where it is found."""

import json
import os
import re
import socket
import subprocess
import threading
from pathlib import Path

import ollama
import psutil
import pytest

from adapters.contract import ModelFile
from adapters.ollama.adoption import MODELS_PATH, VERSION_PATH, adopted
from adapters.registry import adapter
from tests.standins.conftest import CONTEXT, Engine, launch_request, running, timed
from tests.standins.llama import free_port
from tests.standins.specs import check
from tests.waiting import until

HI = [{"role": "user", "content": "hi"}]
LONG = [{"role": "user", "content": "long " * CONTEXT}]
GREEDY = {"temperature": 0, "num_predict": 8}


def chat(engine: Engine, **more: object):
    return engine.ask("POST", "/api/chat", {"model": "tiny", "messages": HI, "options": GREEDY, **more})


# Provisioning


def test_the_model_s_file_is_linked_into_the_store_and_not_copied(engine: Engine, chat_model: ModelFile) -> None:
    blob = engine.work / "models" / "blobs" / f"sha256-{chat_model.sha256}"
    assert blob.stat().st_ino == Path(chat_model.stored_at).stat().st_ino
    assert engine.ask("HEAD", f"/api/blobs/sha256:{chat_model.sha256}").status == 200
    assert engine.ask("HEAD", f"/api/blobs/sha256:{'0' * 64}").status == 404


async def test_provisioning_can_be_done_again(engine: Engine) -> None:
    before = engine.ask("GET", "/api/tags").json["models"]
    assert await engine.provision() == ""
    after = engine.ask("GET", "/api/tags").json["models"]
    assert [one["digest"] for one in after] == [one["digest"] for one in before]


def test_the_model_is_loaded_for_ever_with_the_wanted_context(engine: Engine) -> None:
    (loaded,) = engine.ask("GET", "/api/ps").json["models"]
    assert loaded["context_length"] == CONTEXT
    assert loaded["expires_at"] > "2100"


def test_without_noprune_the_server_removes_a_blob_that_no_manifest_names(
    ollama_program: str, chat_model: ModelFile, tmp_path: Path
) -> None:
    request = launch_request(tmp_path / "work", ollama_program, free_port(), (chat_model,))
    launch = adapter("ollama").launch(request)
    blob = tmp_path / "models" / "blobs" / f"sha256-{chat_model.sha256}"
    blob.parent.mkdir(parents=True)
    blob.hardlink_to(chat_model.stored_at)
    env = {**os.environ, **launch.env, "OLLAMA_MODELS": str(tmp_path / "models"), "OLLAMA_NOPRUNE": ""}
    process = subprocess.Popen(launch.argv, env=env, stderr=subprocess.DEVNULL)
    try:
        until(lambda: not blob.exists(), 20, "the blob's removal")
    finally:
        process.terminate()
        process.wait(20)


def test_its_child_is_named_otherwise_and_ends_with_it(
    ollama_program: str, chat_model: ModelFile, tmp_path: Path
) -> None:
    request = launch_request(tmp_path / "work", ollama_program, free_port(), (chat_model,))
    with running("ollama", request, os.environ["PATH"]) as engine:
        for step in adapter("ollama").provision(request):
            engine.ask(step.method, step.path, step.body)
        (child,) = psutil.Process(engine.process.pid).children()
        assert child.name() == "llama-server"
        engine.process.terminate()
        assert engine.process.wait(20) == 0
        until(lambda: not child.is_running(), 10, "the child's end")


def test_a_taken_port_is_told_in_words_that_the_node_agent_knows(ollama_program: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        env = {**os.environ, "OLLAMA_HOST": f"127.0.0.1:{taken.getsockname()[1]}", "HOME": str(tmp_path)}
        done = subprocess.run([ollama_program, "serve"], env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode != 0
    assert "address already in use" in done.stderr


def test_its_version_is_found_whether_another_server_runs_or_not(ollama_program: str, engine: Engine) -> None:
    binary = adapter("ollama").install_plan("0.33.0").binary
    found = set()
    for address in (f"127.0.0.1:{free_port()}", f"127.0.0.1:{engine.port}"):
        env = {**os.environ, "OLLAMA_HOST": address}
        done = subprocess.run(
            [ollama_program, *binary.version_argv], env=env, capture_output=True, text=True, timeout=30
        )
        found.add(re.search(binary.version_pattern, done.stdout + done.stderr)[1])
    assert len(found) == 1


# The native API


def test_a_chat_answer_fits_its_schema(engine: Engine) -> None:
    answer = chat(engine, stream=False)
    assert answer.status == 200
    check("ollama", "ChatResponse", answer.json)
    assert answer.json["message"]["content"]
    assert (answer.json["done_reason"], answer.json["eval_count"]) == ("length", 8)


def test_a_chat_stream_is_lines_of_json_and_the_last_is_done(engine: Engine) -> None:
    answer = chat(engine)
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    for line in answer.lines:
        check("ollama", "ChatStreamEvent", line)
    assert [line["done"] for line in answer.lines] == [False] * (len(answer.lines) - 1) + [True]
    whole = chat(engine, stream=False).json["message"]["content"]
    assert "".join(line["message"]["content"] for line in answer.lines) == whole


def test_generation_fits_its_schema(engine: Engine) -> None:
    asked = {"model": "tiny", "prompt": "one two", "options": GREEDY}
    whole = engine.ask("POST", "/api/generate", {**asked, "stream": False})
    check("ollama", "GenerateResponse", whole.json)
    streamed = engine.ask("POST", "/api/generate", asked)
    for line in streamed.lines:
        check("ollama", "GenerateStreamEvent", line)
    assert "".join(line["response"] for line in streamed.lines) == whole.json["response"]


def test_a_prompt_is_cut_in_silence_unless_told_not_to(engine: Engine) -> None:
    silent = chat(engine, messages=[*LONG, *HI], stream=False)
    assert silent.status == 200
    assert silent.json["prompt_eval_count"] < CONTEXT
    told = chat(engine, messages=[*LONG, *HI], stream=False, truncate=False)
    assert told.status == 400
    check("ollama", "ErrorResponse", told.json)
    phrases = adapter("ollama").dialect.overflow_phrases
    assert any(phrase in told.json["error"] for phrase in phrases)


def test_an_error_before_the_first_line_of_a_stream_has_a_status(engine: Engine) -> None:
    answer = chat(engine, messages=LONG, truncate=False)
    assert answer.status == 400
    assert "error" in answer.json


def test_a_chat_model_gives_no_embeddings(engine: Engine) -> None:
    assert engine.ask("POST", "/api/embed", {"model": "tiny", "input": "hi"}).status >= 400


def test_an_embedding_model_gives_unit_vectors_and_refuses_what_it_would_cut(
    ollama_program: str, embedding_model: ModelFile, tmp_path: Path
) -> None:
    settings = {"context": CONTEXT, "task": "embeddings"}
    request = launch_request(tmp_path / "work", ollama_program, free_port(), (embedding_model,), settings=settings)
    with running("ollama", request, os.environ["PATH"]) as engine:
        for step in adapter("ollama").provision(request):
            answer = engine.ask(step.method, step.path, step.body)
            assert answer.status in step.statuses, answer.body
        found = engine.ask("POST", "/api/embed", {"model": "tiny", "input": ["one", "two"]}).json
        check("ollama", "EmbedResponse", found)
        assert sum(value**2 for value in found["embeddings"][0]) == pytest.approx(1.0, abs=1e-3)
        long = {"model": "tiny", "input": "long " * CONTEXT}
        assert engine.ask("POST", "/api/embed", long).status == 200
        refused = engine.ask("POST", "/api/embed", {**long, "truncate": False})
        assert refused.status == 400
        assert any(phrase in refused.json["error"] for phrase in adapter("ollama").dialect.overflow_phrases)


def test_lists_and_details_fit_their_schemas(engine: Engine) -> None:
    check("ollama", "ListResponse", engine.ask("GET", "/api/tags").json)
    check("ollama", "PsResponse", engine.ask("GET", "/api/ps").json)
    check("ollama", "VersionResponse", engine.ask("GET", "/api/version").json)
    check("ollama", "ShowResponse", engine.ask("POST", "/api/show", {"model": "tiny"}).json)


def test_a_copy_can_be_deleted_and_leaves_the_model(engine: Engine) -> None:
    assert engine.ask("POST", "/api/copy", {"source": "tiny", "destination": "other"}).status == 200
    assert {one["name"] for one in engine.ask("GET", "/api/tags").json["models"]} == {"tiny:latest", "other:latest"}
    assert engine.ask("DELETE", "/api/delete", {"model": "other"}).status == 200
    assert chat(engine, stream=False).status == 200


@pytest.mark.parametrize("verb", ["pull", "push"])
def test_registries_cannot_be_reached(engine: Engine, verb: str) -> None:
    answer = engine.ask("POST", f"/api/{verb}", {"model": "nobody-has-this/model"})
    last = answer.lines[-1]
    check("ollama", "ErrorResponse", last)
    assert last["error"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/chat", {"model": "nothing", "messages": HI}, 404),
        ("/api/generate", {"model": "nothing", "prompt": "x"}, 404),
        ("/api/show", {}, 400),
        ("/api/create", {"model": "a"}, 400),
        ("/api/chat", None, 400),
    ],
)
def test_errors_are_a_status_and_a_text(engine: Engine, path: str, body: object, status: int) -> None:
    answer = engine.ask("POST", path, body)
    assert answer.status == status
    check("ollama", "ErrorResponse", answer.json)
    assert isinstance(answer.json["error"], str)


def test_more_requests_than_slots_are_all_answered(engine: Engine) -> None:
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(chat(engine, stream=False).status)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [200] * 6


def test_a_client_that_leaves_frees_the_only_slot_at_once(engine: Engine) -> None:
    body = json.dumps({"model": "tiny", "messages": HI, "options": {"num_predict": 4000}}).encode()
    with socket.create_connection(("127.0.0.1", engine.port)) as line:
        line.sendall(b"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        assert line.recv(1)
    assert timed(lambda: chat(engine, stream=False)) < 2.0


def test_a_model_is_unloaded_when_told_and_loaded_again_by_a_request(
    ollama_program: str, chat_model: ModelFile, tmp_path: Path
) -> None:
    request = launch_request(tmp_path / "work", ollama_program, free_port(), (chat_model,))
    with running("ollama", request, os.environ["PATH"]) as engine:
        for step in adapter("ollama").provision(request):
            engine.ask(step.method, step.path, step.body)
        children = psutil.Process(engine.process.pid).children
        answer = engine.ask("POST", "/api/generate", {"model": "tiny", "keep_alive": 0})
        assert answer.json["done_reason"] == "unload"
        until(lambda: not children(), 10, "the unloading")
        assert engine.ask("GET", "/api/ps").json["models"] == []
        assert chat(engine, stream=False, keep_alive="1s").status == 200
        until(lambda: not children(), 10, "the unloading after its time")


def test_a_full_queue_is_busy(programs: Path, chat_model: ModelFile, tmp_path: Path) -> None:
    """The stand-in only: the real queue holds requests that wait for a load, which cannot be timed from outside."""
    request = launch_request(tmp_path / "work", str(programs / "ollama"), free_port(), (chat_model,))
    with running("ollama", request, os.environ["PATH"], OLLAMA_MAX_QUEUE="1") as engine:
        for step in adapter("ollama").provision(request):
            engine.ask(step.method, step.path, step.body)
        answers: list = []
        asked = {"options": {"num_predict": 200}, "stream": False}
        threads = [threading.Thread(target=lambda: answers.append(chat(engine, **asked))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert {answer.status for answer in answers} == {200, 503}
    assert next(one for one in answers if one.status == 503).json["error"].startswith("server busy")


# The imitation of OpenAI's API, whose faults are why the door speaks the native one


def test_the_imitation_ignores_the_newer_name_of_the_limit(engine: Engine) -> None:
    asked = {"model": "tiny", "messages": HI, "temperature": 0, "max_completion_tokens": 3}
    answer = engine.ask("POST", "/v1/chat/completions", asked).json
    assert answer["usage"]["completion_tokens"] > 3


def test_the_imitation_cuts_a_prompt_without_a_word(engine: Engine) -> None:
    asked = {"model": "tiny", "messages": [*LONG, *HI], "max_tokens": 3}
    answer = engine.ask("POST", "/v1/chat/completions", asked)
    assert answer.status == 200
    assert answer.json["usage"]["prompt_tokens"] < CONTEXT


def test_the_imitation_s_errors_have_openai_s_shape(engine: Engine) -> None:
    answer = engine.ask("POST", "/v1/chat/completions", {"model": "nothing", "messages": HI})
    assert answer.status == 404
    check("openai", "ErrorResponse", answer.json)
    assert answer.json["error"]["type"] == "not_found_error"


def test_the_imitation_lists_names_with_their_tag(engine: Engine) -> None:
    assert [one["id"] for one in engine.ask("GET", "/v1/models").json["data"]] == ["tiny:latest"]


# The official client


def test_the_official_client_chats_generates_and_streams(engine: Engine) -> None:
    with engine.client() as client:
        whole = client.chat("tiny", HI, options=GREEDY).message.content
        assert "".join(part.message.content for part in client.chat("tiny", HI, options=GREEDY, stream=True)) == whole
        assert client.generate("tiny", "one two", options=GREEDY).eval_count == 8
        assert [one.model for one in client.list().models] == ["tiny:latest"]
        assert client.show("tiny").details.format == "gguf"


def test_the_official_client_uploads_and_creates(engine: Engine, embedding_model: ModelFile) -> None:
    with engine.client() as client:
        digest = client.create_blob(embedding_model.stored_at)
        assert client.create("uploaded", files={"model.gguf": digest}).status == "success"
        assert client.delete("uploaded").status == "success"


def test_the_official_client_raises_what_the_server_says(engine: Engine) -> None:
    with engine.client() as client, pytest.raises(ollama.ResponseError) as caught:
        client.chat("nothing", HI)
    assert caught.value.status_code == 404


# Adoption


def test_a_running_ollama_is_read_as_values(engine: Engine, chat_model: ModelFile) -> None:
    found = adopted(engine.ask("GET", VERSION_PATH).body, engine.ask("GET", MODELS_PATH).body)
    assert found.version.count(".") == 2
    (model,) = found.models
    assert (model.name, model.format, model.architecture) == ("tiny:latest", "gguf", "llama")
    assert model.size_bytes >= chat_model.size_bytes
    assert len(model.sha256) == 64
