"""`slice run`: one question, its way to a ready model, and everything that can go wrong on it."""

import json
import os
import signal
import subprocess

import pytest

from tests.cli import things
from tests.cli.conftest import Slice
from tests.cli.played import PlayedCluster
from tests.waiting import until


@pytest.fixture
def ready(cluster: PlayedCluster) -> PlayedCluster:
    cluster.models = {"smollm2": things.model()}
    cluster.deployments = {"smollm2": things.deployment()}
    return cluster


def test_an_answer_goes_to_standard_output_alone(ready: PlayedCluster, slice_: Slice) -> None:
    ended = slice_("run", "smollm2", "Say", "hello")
    assert (ended.code, ended.out, ended.err) == (0, "Hello\n", "")
    assert ready.chats == [{"model": "smollm2", "messages": [{"role": "user", "content": "Say hello"}], "stream": True}]


def test_options_reach_the_front_door(ready: PlayedCluster, slice_: Slice) -> None:
    ended = slice_(
        *("run", "smollm2", "hi", "--system", "Be brief.", "--temperature", "0", "--max-tokens", "7", "--verbose")
    )
    assert ended.out == "Hello\n"
    assert "first token" in ended.err
    assert "answer 2 tokens" in ended.err
    assert ready.chats[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (ready.chats[0]["temperature"], ready.chats[0]["max_tokens"]) == (0, 7)
    assert ready.chats[0]["stream_options"] == {"include_usage": True}


def test_a_question_may_come_from_standard_input(ready: PlayedCluster, slice_: Slice) -> None:
    assert slice_("run", "smollm2", stdin="What is it?\n").out == "Hello\n"
    assert ready.chats[0]["messages"] == [{"role": "user", "content": "What is it?"}]


def test_piped_text_that_is_no_utf_8_is_no_crash(ready: PlayedCluster, slice_: Slice) -> None:
    with subprocess.Popen(
        slice_.argv("run", "smollm2"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=slice_.environment
    ) as process:
        assert process.communicate(b"caf\xe9", timeout=20)[0] == b"Hello\n"
    assert ready.chats[0]["messages"][0]["content"] == "caf\ufffd"


def test_piped_text_stands_before_the_question(ready: PlayedCluster, slice_: Slice) -> None:
    slice_("run", "smollm2", "Summarise this.", stdin="A long text.")
    assert ready.chats[0]["messages"][0]["content"] == "A long text.\n\nSummarise this."


def test_a_silent_open_pipe_beside_a_question_does_not_hang(ready: PlayedCluster, slice_: Slice) -> None:
    reading, writing = os.pipe()
    with subprocess.Popen(
        slice_.argv("run", "smollm2", "hi"), stdin=reading, stdout=subprocess.PIPE, text=True, env=slice_.environment
    ) as process:
        assert process.communicate(timeout=20)[0] == "Hello\n"
    os.close(reading)
    os.close(writing)


def test_no_question_and_no_terminal_is_a_usage_error(ready: PlayedCluster, slice_: Slice) -> None:
    ended = slice_("run", "smollm2")
    assert ended.code == 2
    assert "there is no question and no terminal to talk on" in ended.err


def test_a_model_that_nobody_has_is_pulled_deployed_and_awaited(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.pull_steps = [{"state": "done", "bytes_done": 1024, "bytes_total": 1024}]
    cluster.deployment_steps = [
        things.starting("box installs llamacpp 0.3.1"),
        things.starting("box installs llamacpp 0.3.1"),
        things.starting("box starts the engine"),
        things.deployment(),
    ]
    ended = slice_("run", "smollm2", "hi")
    assert (ended.code, ended.out) == (0, "Hello\n")
    assert [path for path, _ in cluster.sent("POST")] == ["pulls", "deployments"]
    assert ended.err.splitlines()[-2:] == ["smollm2: box installs llamacpp 0.3.1", "smollm2: box starts the engine"]


def test_a_stopped_model_is_started_again(ready: PlayedCluster, slice_: Slice) -> None:
    ready.deployments = {"smollm2": things.deployment(replicas=0, ready_replicas=0, state="stopped")}
    ready.deployment_steps = [things.deployment()]
    ended = slice_("run", "smollm2", "hi")
    assert (ended.code, ended.out) == (0, "Hello\n")
    assert ready.sent("PATCH") == [("deployments/smollm2", {"replicas": 1})]


def test_an_alias_is_asked_for_by_its_own_name(ready: PlayedCluster, slice_: Slice) -> None:
    ready.aliases = {"chat-default": "smollm2"}
    assert slice_("run", "chat-default", "hi").code == 0
    assert ready.chats[0]["model"] == "chat-default"


def test_a_model_is_found_behind_a_deployment_of_another_name(ready: PlayedCluster, slice_: Slice) -> None:
    ready.deployments = {"fast": things.deployment("fast")}
    assert slice_("run", "smollm2", "hi").code == 0
    assert ready.chats[0]["model"] == "fast"


def test_a_failed_engine_ends_the_wait_with_its_last_words(ready: PlayedCluster, slice_: Slice) -> None:
    ready.deployments = {"smollm2": things.starting(state="failed")}
    ready.replicas = [
        things.replica(
            state="crash_loop",
            code="engine.died_at_start",
            message="the engine ended five times",
            log_tail=["loading model", "bad magic"],
        )
    ]
    ended = slice_("run", "smollm2", "hi")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.splitlines() == [
        "  loading model",
        "  bad magic",
        "error[engine.died_at_start]: the engine ended five times",
        "hint: `slice logs smollm2` shows the whole log; `slice ps` shows the replica",
    ]


def test_a_refusal_that_waiting_cannot_cure_exits_6(ready: PlayedCluster, slice_: Slice) -> None:
    refusal = {
        "code": "placement.engine_unusable",
        "message": "no node can run vllm",
        "hint": "choose another engine",
        "nodes": [{"node": "box", "reason": "no NVIDIA driver"}],
    }
    ready.deployments = {"smollm2": things.starting(state="waiting", refusal=refusal)}
    ended = slice_("run", "smollm2", "hi")
    assert ended.code == 6
    assert ended.err == (
        "error[placement.engine_unusable]: no node can run vllm (box: no NVIDIA driver)\nhint: choose another engine\n"
    )


def test_a_refusal_that_may_pass_is_waited_out(ready: PlayedCluster, slice_: Slice) -> None:
    refusal = {"code": "placement.insufficient_memory", "message": "needs 4.0 GiB, box has 1.0 GiB", "nodes": []}
    waiting = things.starting("", state="waiting", refusal=refusal)
    ready.deployments = {"smollm2": waiting}
    ready.deployment_steps = [waiting, things.deployment(refusal=None)]
    ended = slice_("run", "smollm2", "hi")
    assert (ended.code, ended.err) == (0, "smollm2: needs 4.0 GiB, box has 1.0 GiB\n")


def test_the_time_out_exits_6_and_says_what_it_waited_for(ready: PlayedCluster, slice_: Slice) -> None:
    ready.deployments = {"smollm2": things.starting("box fetches the model")}
    ended = slice_("run", "smollm2", "hi", "--timeout", "100ms")
    assert ended.code == 6
    assert "smollm2: box fetches the model" in ended.err
    assert "`slice stop smollm2`" in ended.err


def test_a_door_that_learns_the_route_a_moment_late_is_asked_again(ready: PlayedCluster, slice_: Slice) -> None:
    fault = {"message": "smollm2 is not ready", "type": "server_error", "code": "door.model_not_ready"}
    ready.door_refusals = [(503, {"error": fault})]
    assert slice_("run", "smollm2", "hi").out == "Hello\n"
    assert len(ready.chats) == 2


def test_an_error_inside_the_stream_keeps_what_came_and_fails(ready: PlayedCluster, slice_: Slice) -> None:
    ready.door_error = {"message": "the engine died", "type": "server_error", "code": "door.engine_failed"}
    ended = slice_("run", "smollm2", "hi")
    assert (ended.code, ended.out) == (1, "Hello\n")
    assert ended.err.startswith("error[door.engine_failed]: the engine died\n")


def test_a_cut_stream_is_never_taken_for_a_whole_answer(ready: PlayedCluster, slice_: Slice) -> None:
    ready.door_cuts = True
    ended = slice_("run", "smollm2", "hi")
    assert ended.code != 0
    assert ended.out == "Hello\n"
    assert ended.err.startswith("error[door.")


def test_a_wrong_key_is_denied_with_the_way_to_a_new_one(ready: PlayedCluster, slice_: Slice) -> None:
    ended = slice_("run", "smollm2", "hi", "--key", "stranger")
    assert ended.code == 4
    assert "`slice key create NAME`" in ended.err


def test_the_key_may_come_from_the_environment(ready: PlayedCluster, slice_: Slice) -> None:
    (slice_.data_dir / "secrets" / "api_key").unlink()
    assert slice_("run", "smollm2", "hi").code == 4
    assert slice_("run", "smollm2", "hi", SLICE_API_KEY="slice_key").code == 0


def test_ctrl_c_during_an_answer_closes_the_stream(ready: PlayedCluster, slice_: Slice) -> None:
    ready.door_hangs = True
    process = slice_.started("run", "smollm2", "hi")
    assert process.stdout is not None
    assert process.stdout.read(5) == "Hello"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert ready.door_closed.wait(10)


def test_ctrl_c_while_waiting_leaves_the_deployment(ready: PlayedCluster, slice_: Slice) -> None:
    ready.deployments = {"smollm2": things.starting()}
    process = slice_.started("run", "smollm2", "hi")
    until(lambda: ("GET", "deployments/smollm2", None) in ready.requests)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "smollm2 goes on starting" in err
    assert ready.sent("DELETE") == []


def test_ctrl_c_during_the_pull_of_a_run_cancels_the_pull(cluster: PlayedCluster, slice_: Slice) -> None:
    process = slice_.started("run", "smollm2", "hi")
    until(lambda: ("GET", "pulls/pul_1", None) in cluster.requests)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "`slice pull smollm2` begins it anew" in err
    assert "goes on" not in err


def test_an_engine_that_cannot_be_had_any_more_is_told(ready: PlayedCluster, slice_: Slice) -> None:
    ended = slice_("run", "smollm2", "hi", "--engine", "vllm")
    assert (ended.code, ended.out) == (0, "Hello\n")
    assert ended.err == "smollm2 is deployed on llamacpp already; --engine is not used\n"


def test_a_conversation_remembers_stops_and_ends(ready: PlayedCluster, slice_: Slice) -> None:
    terminal = slice_.on_terminal("run", "smollm2")
    terminal.until(">>> ")
    terminal.type("first\n")
    terminal.until("Hello\r\n")
    terminal.type('"""two\nlines"""\n')
    until(lambda: len(ready.chats) == 2)
    terminal.type("/what\n")
    terminal.until("/what is unknown")
    terminal.type("/bye\n")
    assert terminal.end() == 0
    assert ready.chats[1]["messages"] == [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "two\nlines"},
    ]


def test_ctrl_c_in_a_conversation_stops_the_answer_and_goes_on(ready: PlayedCluster, slice_: Slice) -> None:
    ready.door_hangs = True
    terminal = slice_.on_terminal("run", "smollm2")
    terminal.until(">>> ")
    terminal.type("talk\n")
    terminal.until("Hello")
    terminal.interrupt()
    terminal.until("stopped")
    assert ready.door_closed.wait(10)
    terminal.type("\x04")
    assert terminal.end() == 0


def test_a_failure_in_a_conversation_does_not_end_it(ready: PlayedCluster, slice_: Slice) -> None:
    fault = {"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded"}
    ready.door_refusals = [(400, {"error": fault})]
    terminal = slice_.on_terminal("run", "smollm2")
    terminal.until(">>> ")
    terminal.type("hi\n")
    terminal.until("error[door.context_length_exceeded]: too long")
    terminal.type("again\n")
    terminal.until("Hello")
    terminal.type("/bye\n")
    assert terminal.end() == 0
    assert ready.chats[1]["messages"] == [{"role": "user", "content": "again"}]


def test_a_model_cannot_send_escape_sequences_to_the_terminal(ready: PlayedCluster, slice_: Slice) -> None:
    ready.answer_pieces = ["a\x1b]0;owned\x07b"]
    terminal = slice_.on_terminal("run", "smollm2", "hi")
    assert terminal.end() == 0
    assert "a]0;ownedb" in terminal.seen


def test_a_remote_context_names_cluster_token_and_key(ready: PlayedCluster, slice_: Slice) -> None:
    token, key = slice_.home / "token", slice_.home / "key"
    token.write_text("operator-secret\n")
    key.write_text("slice_key\n")
    slice_.argv = lambda *words: [*Slice.argv(slice_, *words)[:3], *words]  # type: ignore[method-assign]
    url = f"http://127.0.0.1:{ready.admin_port}/"
    added = slice_("context", "add", "far", "--url", url, "--token-file", str(token), "--key-file", str(key))
    assert (added.code, added.out) == (0, "")
    assert slice_("--context", "far", "list", "-o", "name").out == "smollm2\n"
    assert slice_("list", "-o", "name", "--context=far").out == "smollm2\n"
    assert slice_("list", "-o", "name", SLICE_CONTEXT="far").out == "smollm2\n"
    assert slice_("context", "use", "far").code == 0
    assert slice_("run", "smollm2", "hi").out == "Hello\n"
    listed = json.loads(slice_("context", "list", "-o", "json").out)["items"]
    assert [(item["name"], item["is_current"]) for item in listed] == [("local", False), ("far", True)]
    assert "operator-secret" not in json.dumps(listed)
    (file,) = slice_.home.rglob("contexts.json")
    assert file.stat().st_mode & 0o777 == 0o600
    assert "operator-secret" not in file.read_text()
    assert slice_("context", "rm", "far").code == 0
    assert slice_("--context", "far", "list").code == 3
