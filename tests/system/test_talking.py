"""A newcomer's path on real parts: `slice up`, then the official OpenAI client."""

import json
import socket
import time
import urllib.request

import openai
import pytest

from tests.system.cluster import Running
from tests.system.fetching import fetched

pytestmark = pytest.mark.system
QUESTION = [{"role": "user", "content": "Say hello in one word."}]


def test_up_prints_what_an_application_needs(running: Running) -> None:
    facts = running.up()
    assert set(facts) == {"openai_base_url", "api_key", "controller_url", "data_dir"}
    assert facts["openai_base_url"] == f"http://127.0.0.1:{running.port}/v1"


def test_a_second_up_changes_nothing_and_says_so(running: Running) -> None:
    before = running.supervisor_pid()
    done = running.slice("up")
    assert "already up" in done.stdout
    assert "from openai import OpenAI" in done.stdout
    assert running.supervisor_pid() == before


def test_a_second_up_with_another_port_is_refused_by_name(running: Running) -> None:
    done = running.slice("up", "--port", "1234", check=False)
    assert done.returncode == 5
    assert "cluster.settings_differ" in done.stderr


def test_the_official_client_chats(running: Running) -> None:
    answer = running.client().chat.completions.create(model="smollm2", messages=QUESTION, max_tokens=16)
    assert answer.model == "smollm2"
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 16


def test_the_official_client_streams_to_the_end(running: Running) -> None:
    stream = running.client().chat.completions.create(
        model="smollm2", messages=QUESTION, max_tokens=16, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in {"stop", "length"}
    assert chunks[-1].usage is not None


def test_a_client_that_leaves_its_stream_delays_nobody_who_comes_after(running: Running) -> None:
    """Its request's head and body travel in two packets: with splicing, every second one waited for up to 5 s."""
    waits = []
    client = running.client()
    for _ in range(10):
        begun = time.monotonic()
        stream = client.chat.completions.create(model="smollm2", messages=QUESTION, max_tokens=400, stream=True)
        chunks = iter(stream)
        next(chunks)
        waits.append(time.monotonic() - begun)
        for _ in range(3):
            next(chunks, None)
        stream.close()
    assert max(waits) < 1.5, waits


def test_the_official_client_completes_text(running: Running) -> None:
    answer = running.client().completions.create(model="smollm2", prompt="One, two, three,", max_tokens=8)
    assert answer.choices[0].text


def test_the_official_client_lists_models(running: Running) -> None:
    client = running.client()
    assert "smollm2" in [model.id for model in client.models.list()]
    assert client.models.retrieve("smollm2").id == "smollm2"


def test_an_unknown_model_gets_a_suggestion(running: Running) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        running.client().chat.completions.create(model="smolm2", messages=QUESTION)
    assert refused.value.code == "model_not_found"
    assert "Did you mean 'smollm2'?" in refused.value.message


def test_a_wrong_key_is_refused(running: Running) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        running.client(api_key="sk-wrong").chat.completions.create(model="smollm2", messages=QUESTION)
    assert refused.value.code == "invalid_api_key"


def test_a_revoked_key_stops_working_within_two_seconds(running: Running) -> None:
    made = running.json("key", "create", "short-lived")
    client = running.client(api_key=made["key"])
    from tests.waiting import until

    def works() -> bool:
        try:
            client.models.list()
        except openai.AuthenticationError:
            return False
        return True

    until(works, 2.0, "the new key to work")
    running.slice("key", "revoke", "short-lived")
    until(lambda: not works(), 2.0, "the revoked key to stop")


def raw(running: Running, body: bytes, path: str = "/chat/completions") -> tuple[int, dict[str, object]]:
    key = running.block.secret_file("api_key").read_text().strip()
    request = urllib.request.Request(
        running.block.openai_base_url + path,
        data=body,
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    status, text = fetched(request)
    return status, json.loads(text)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b'{"model": "smollm2", "messages": [', 400, "invalid_json"),
        (b'{"messages": []}', 400, "model"),
        (b'{"model": "smollm2", "messages": []}', 400, "messages"),
        (b'{"model": "smollm2", "messages": [{"role":"user","content":"x"}], "n": 100000}', 400, "n"),
        (b'{"model": "smollm2", "messages": [{"role":"user","content":"' + b"x " * 60_000 + b'"}]}', 400, "context"),
        (b" " * (11 * 1024**2), 413, "large"),
    ],
    ids=["cut json", "no model", "no messages", "n too large", "overflow", "body too large"],
)
def test_bad_input_gets_a_clear_error_in_openai_shape(running: Running, body: bytes, status: int, words: str) -> None:
    code, answer = raw(running, body)
    error = answer["error"]
    assert isinstance(error, dict)
    assert code == status, answer
    assert set(error) == {"message", "type", "param", "code"}
    assert words in str(error).lower()


def test_the_official_client_gets_embeddings_in_both_encodings(running: Running) -> None:
    client = running.client()
    floats = client.embeddings.create(model="smollm2", input="sea", encoding_format="float").data[0].embedding
    packed = client.embeddings.create(model="smollm2", input="sea").data[0].embedding
    assert len(floats) == 576
    assert packed == pytest.approx(floats, abs=1e-5)


def test_an_embedding_input_that_does_not_fit_is_an_overflow_like_any_other(running: Running) -> None:
    code, answer = raw(running, json.dumps({"model": "smollm2", "input": "x " * 900}).encode(), "/embeddings")
    assert code == 400
    assert answer["error"]["code"] == "context_length_exceeded"  # type: ignore[index]


def test_run_streams_an_answer_on_the_command_line(running: Running) -> None:
    assert running.slice("run", "smollm2", "Say hello.", "--max-tokens", "12").stdout.strip()


def test_every_list_has_all_its_forms(running: Running) -> None:
    for command in (["list"], ["ps"], ["node", "list"], ["key", "list"], ["events"]):
        for form in ("table", "wide", "json", "yaml", "name"):
            assert running.slice(*command, "-o", form).stdout.strip(), (command, form)


def test_the_operator_token_does_not_open_the_front_door_nor_a_key_the_admin_api(running: Running) -> None:
    token = running.block.secret_file("operator_token").read_text().strip()
    with pytest.raises(openai.AuthenticationError):
        running.client(api_key=token).models.list()
    key = running.block.secret_file("api_key").read_text().strip()
    request = urllib.request.Request(
        running.block.controller_url + "/api/v1/status", headers={"Authorization": f"Bearer {key}"}
    )
    assert fetched(request)[0] == 401


def test_engines_listen_on_loopback_alone(running: Running) -> None:
    for replica in running.replicas("smollm2"):
        host, _, port = str(replica["address"]).rpartition(":")
        assert host == "127.0.0.1"
        with socket.create_connection((host, int(port)), 5):
            pass


def test_doctor_finds_nothing_wrong(running: Running) -> None:
    findings = json.loads(running.slice("doctor", "-o", "json").stdout)
    listed = findings["items"] if isinstance(findings, dict) else findings
    assert [item for item in listed if item["is_ok"] is False] == []
