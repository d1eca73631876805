"""Parts are killed for real; answers go on where they should, and everything comes back."""

import json
import os
import signal
import threading

import openai
import pytest

from core.infra.processes import ProcessMark, family
from tests.system.cluster import Running, a_cluster, kill
from tests.waiting import until

pytestmark = pytest.mark.system
QUESTION = [{"role": "user", "content": "Say hello in one word."}]


def answers(running: Running, model: str = "smollm2") -> bool:
    try:
        running.client().chat.completions.create(model=model, messages=QUESTION, max_tokens=4)
    except openai.APIError:
        return False
    return True


def engine_pid(running: Running, deployment: str = "smollm2") -> int:
    (replica,) = running.replicas(deployment)
    return int(replica["pid"])


def test_the_door_answers_and_engines_keep_their_pids_while_the_controller_is_killed(running: Running) -> None:
    pid, controller = engine_pid(running), running.part_pid("controller")
    kill(controller)
    assert answers(running)
    until(lambda: running.part_pid("controller") != controller, 20.0, "a new controller")
    until(lambda: running.slice("ps", check=False).returncode == 0, 20.0, "the admin API")
    until(lambda: [r["state"] for r in running.replicas("smollm2")] == ["ready"], 20.0, "the replica")
    assert engine_pid(running) == pid
    assert answers(running)


def test_a_killed_node_agent_comes_back_and_adopts_its_engines(running: Running) -> None:
    pid, agent = engine_pid(running), running.part_pid("node_agent")
    kill(agent)
    assert answers(running)
    until(lambda: running.part_pid("node_agent") != agent, 20.0, "a new node agent")
    until(lambda: running.admin("nodes")["items"][0]["state"] == "ready", 20.0, "the node")
    assert engine_pid(running) == pid
    os.kill(pid, 0)


def test_a_killed_postgresql_recovers_and_answers_go_on(running: Running) -> None:
    server = running.part_pid("postgres")
    kill(server)
    assert answers(running)
    until(lambda: running.part_pid("postgres") != server, 30.0, "a new postmaster")
    until(lambda: running.slice("list", check=False).returncode == 0, 30.0, "the admin API")
    assert "smollm2" in running.slice("list", "-o", "name").stdout


def test_an_engine_killed_while_it_streams_ends_the_stream_with_an_error_and_is_restarted(running: Running) -> None:
    pid = engine_pid(running)
    stream = running.client().chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Write a very long story about the sea."}],
        max_tokens=3000,
        stream=True,
    )
    next(stream)
    kill(pid)
    with pytest.raises(openai.APIError):
        for _ in stream:
            pass
    until(lambda: answers(running), 30.0, "the engine to be back")
    (replica,) = running.replicas("smollm2")
    assert replica["pid"] != pid
    assert replica["incarnation"] >= 2


def test_a_killed_ray_gcs_gets_the_whole_door_redeployed(running: Running) -> None:
    (leader,) = [m.pid for m in _door_tree(running) if _name(m.pid) == "gcs_server"]
    kill(leader)
    until(lambda: not _alive(leader), 10.0, "the GCS to be gone")
    until(lambda: answers(running), 60.0, "the door to be back")
    names = [_name(m.pid) for m in _door_tree(running)]
    assert names.count("gcs_server") == 1
    assert names.count("raylet") == 1


def test_a_dead_supervisor_stops_nothing_and_the_next_up_adopts(running: Running) -> None:
    parts = {name: running.part_pid(name) for name in ("postgres", "controller", "node_agent")}
    engine = engine_pid(running)
    kill(running.supervisor_pid())
    assert answers(running)
    running.up()
    assert {name: running.part_pid(name) for name in parts} == parts
    assert engine_pid(running) == engine
    assert answers(running)


def test_run_of_a_new_model_waits_for_a_stopped_node_agent_and_says_why(running: Running) -> None:
    agent = running.part_pid("node_agent")
    kill(agent, signal.SIGSTOP)
    try:
        until(lambda: running.admin("nodes")["items"][0]["state"] != "ready", 30.0, "the node to be suspect")
        asked = running.start("run", "fake", "hello")
        said: list[str] = []
        assert asked.stderr is not None
        reader = threading.Thread(target=lambda: said.extend(iter(asked.stderr.readline, "")))  # type: ignore[union-attr]
        reader.start()
        until(lambda: any("has not been heard of for" in line for line in said), 30.0, "the reason")
        assert asked.poll() is None, said
    finally:
        kill(agent, signal.SIGCONT)
    assert asked.stdout is not None
    assert asked.stdout.read().strip()
    assert asked.wait(60) == 0, said
    reader.join()
    asked.stdout.close()
    asked.stderr.close()
    running.slice("rm", "fake", "--force")


def test_killing_the_parent_of_a_renamed_tree_leaves_none_of_it(running: Running) -> None:
    running.slice("deploy", "fake", "--name", "tree", "--engine", "fake", "--set", "fork_tree=3")
    until(lambda: [r["state"] for r in running.replicas("tree")] == ["ready"], 30.0, "the tree")
    pid = engine_pid(running, "tree")
    tree = [item.pid for item in family(frozenset({pid}))]
    assert len(tree) >= 4
    kill(pid)
    until(lambda: not any(_alive(item) for item in tree), 20.0, "the tree to be gone")
    until(lambda: [r["state"] for r in running.replicas("tree")] == ["ready"], 30.0, "a new tree")
    running.slice("rm", "tree", "--force", check=False)
    running.json("ps")


def test_an_engine_that_dies_at_start_shows_its_last_words(running: Running) -> None:
    running.slice("deploy", "fake", "--name", "doomed", "--engine", "fake", "--set", "exit_at_start=3")
    until(lambda: [r for r in running.replicas("doomed") if r["log_tail"]], 30.0, "its last words")
    (replica,) = running.replicas("doomed")
    assert replica["code"] == "engine.died_at_start"
    assert replica["state"] in {"backoff", "crash_loop", "starting", "assigned"}
    shown = running.slice("ps").stdout
    assert replica["log_tail"][-1].strip()[:20] in shown


def test_after_kill_9_of_every_part_down_still_leaves_nothing() -> None:
    with a_cluster() as doomed:
        doomed.up("--starter-model", "")
        victims = [doomed.supervisor_pid(), *(doomed.part_pid(name) for name in ("controller", "node_agent"))]
        shim = _door_shim(doomed)
        for pid in (*victims, doomed.part_pid("postgres"), shim):
            kill(pid)
        doomed.slice("down")
        # `a_cluster` then checks that no process, socket, port or directory is left.


def test_down_ends_a_cluster_whose_door_shim_is_frozen() -> None:
    with a_cluster() as frozen:
        frozen.up("--starter-model", "")
        kill(_door_shim(frozen), signal.SIGSTOP)
        frozen.slice("down")


def _door_shim(running: Running) -> int:
    record = json.loads((running.block.door_dir / "shim" / "record.json").read_text())
    return int(record["shim"]["pid"])


def _door_tree(running: Running) -> list[ProcessMark]:
    return family(frozenset({_door_shim(running)}))


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
