"""A node agent in a process of its own, for tests."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

from node_agent import agent
from protos.slice.node.v1 import node_pb2
from tests.node_agent import controllers, trees


def free_ports(count: int) -> tuple[int, int]:
    """Return a range of ports that are free now, below the kernel's ephemeral ones."""
    for first in range(21000 + os.getpid() % 400 * 20, 32000, count):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first, first + count
    raise AssertionError("no free ports")


class Node:
    """One node's directories and its agent's process."""

    def __init__(self, tmp_path: Path, devices: str = "cpu") -> None:
        self.tmp_path = tmp_path
        self.data_dir = tmp_path / "node"
        self.runtime = Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))
        self.shim_dir = self.runtime / "shims"
        self.control = self.runtime / "control.sock"
        self.log = tmp_path / "agent.log"
        self.config = {
            "node_name": "box",
            "data_dir": str(self.data_dir),
            "shim_dir": str(self.shim_dir),
            "control_target": f"unix:{self.control}",
            "token": controllers.TOKEN,
            "devices": devices,
            "engine_ports": free_ports(8),
            "engine_start_timeout_s": 30.0,
            "wheel_dir": "",
            "labels": {"rack": "a"},
            "agent_version": "0.1.0",
        }
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, *, under: tuple[str, ...] = (), cwd: Path | None = None, **changes: object) -> None:
        """Start the node agent, by the program `under` if there is one, which must become it; of the tree `cwd`."""
        file = self.tmp_path / "config.json"
        file.write_text(json.dumps({**self.config, **changes}))
        with self.log.open("ab") as log:
            argv = (*under, sys.executable, "-m", "tests.node_agent.run_agent", str(file))
            self.process = await asyncio.create_subprocess_exec(*argv, stderr=log, env={**os.environ}, cwd=cwd)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(10):
            return await self.process.wait()

    async def close(self) -> None:
        """End the node agent and every engine; nothing may be left."""
        if self.process is not None and self.process.returncode is None:
            await self.end(signal.SIGKILL)
        await agent.stop_all_engines(self.data_dir, self.shim_dir, 1.0)
        shutil.rmtree(self.runtime, ignore_errors=True)

    def events(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def want(replica_id: str = "rep_one", desired: str = "run", **settings: object) -> node_pb2.ReplicaWant:
    """Return a replica of the fake engine."""
    return node_pb2.ReplicaWant(
        replica_id=replica_id,
        deployment="demo",
        served_name="demo",
        engine="fake",
        engine_version="1",
        settings_json=json.dumps(settings),
        devices=[node_pb2.DevicePromise(device_id="cpu", bytes=1)],
        engine_key="secret",
        desired=desired,
    )


def desired(generation: int, *wants: node_pb2.ReplicaWant, **more: object) -> node_pb2.Desired:
    """Return a desired set."""
    return node_pb2.Desired(leader_epoch=1, generation=generation, replicas=wants, **more)


async def until_state(controller: controllers.Controller, state: str, replica_id: str = "rep_one"):
    """Return the first report of a replica in `state`."""

    def reached() -> node_pb2.ReplicaReport | None:
        report = controller.replica(replica_id)
        return report if report is not None and report.state == state else None

    return await trees.until(reached, 15.0)
