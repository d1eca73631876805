"""The machine is started again: another boot id, numbers that mean nothing any more, and nobody to ask."""

import asyncio
import contextlib
import json
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.infra import processes
from node_agent import shim_client
from tests.node_agent import controllers, nodes, trees
from tests.node_agent.controllers import Controller
from tests.node_agent.nodes import Node

BOOT_ID = "/proc/sys/kernel/random/boot_id"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    try:
        yield node
    finally:
        await node.close()


@pytest.fixture
def rebooted(tmp_path: Path) -> tuple[str, ...]:
    """A program that starts another as the kernel of the next boot would: in a mount namespace with another boot id."""
    (tmp_path / "boot_id").write_text("00000000-0000-4000-8000-00000000b007\n")
    script = f'mount --bind "{tmp_path}/boot_id" {BOOT_ID} && exec "$@"'
    under = ("unshare", "--mount", "sh", "-c", script, "sh")
    tried = subprocess.run([*under, "cat", BOOT_ID], capture_output=True, text=True, check=False, timeout=10)
    if "b007" not in tried.stdout:
        pytest.skip(f"no mount namespace can be made here: {tried.stderr.strip()}")
    return under


def stopped_for_good(node: Node) -> None:
    """Kill all that runs of `node`, nothing of it told to end: the power is gone."""
    assert node.process is not None
    marks = [shim_client.read_record(path.parent) for path in node.data_dir.glob("replicas/*/record.json")]
    shims = frozenset(record.status.shim.pid for record in marks if record is not None and record.status.shim)
    with contextlib.suppress(ProcessLookupError):
        node.process.kill()
    for member in processes.family(shims):
        processes.send_signal(member, signal.SIGKILL)


async def test_after_a_reboot_the_last_set_starts_without_a_controller_and_old_numbers_are_nobodys(
    node: Node, rebooted: tuple[str, ...]
) -> None:
    async with controllers.serving(node.control, Controller()) as controller:
        await node.start()
        await trees.until(lambda: controller.hellos)
        await controller.want(nodes.desired(1, nodes.want("rep_one", fork_tree=1), nodes.want("rep_two")))
        await nodes.until_state(controller, "ready", "rep_one")
        await nodes.until_state(controller, "ready", "rep_two")
        await controller.want(nodes.desired(2, nodes.want("rep_one"), nodes.want("rep_two", desired="stop")))
        await nodes.until_state(controller, "stopped", "rep_two")
    stopped_for_good(node)
    await node.process.wait()
    directory = node.data_dir / "replicas" / "rep_one"
    before = shim_client.read_record(directory)
    assert before is not None
    await trees.until(lambda: before.group is None or before.group.remove())  # a reboot leaves no group either
    stranger = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
    try:
        mark = processes.mark(stranger.pid)
        assert mark is not None
        given_anew(directory, mark)  # worst case: number and start time have come round
        await node.start(under=rebooted)
        await trees.until(lambda: (r := shim_client.read_record(directory)) and r.status.incarnation == 2, 20.0)
        await trees.until(lambda: is_ready(directory), 20.0)
        record = shim_client.read_record(directory)
        assert record is not None
        assert record.boot_id.endswith("b007")
        assert record.status.state == "running"
        assert processes.mark(stranger.pid) == mark
        two = shim_client.read_record(node.data_dir / "replicas" / "rep_two")
        assert two is None or two.status.incarnation == 1
    finally:
        stranger.kill()
        await stranger.wait()
        # What knows this boot's id only would not touch what the next one left.
        stopped_for_good(node)
        last = shim_client.read_record(directory)
        await trees.until(lambda: last is None or last.group is None or last.group.remove())


def given_anew(directory: Path, mark: processes.ProcessMark) -> None:
    number = {"pid": mark.pid, "start_ticks": mark.start_ticks}
    file = directory / "record.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "leader": number, "shim": number}))
    shim_client.note_family(directory, [mark])


def is_ready(directory: Path) -> bool:
    started = json.loads((directory / "launch.json").read_text())
    return started["incarnation"] == 2 and started["load_s"] > 0
