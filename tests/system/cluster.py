"""A whole cluster of real processes for system tests: started by `slice up`, watched from outside, ended for sure."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openai import OpenAI

from core.infra import cluster
from core.infra.cluster import PORTS_PER_CLUSTER, ClusterBlock
from tests.system.fetching import fetched
from tests.waiting import until

SLICE = [sys.executable, "-m", "cli"]


def free_port_pair() -> int:
    """Return a port that is free together with the next one, above those that outgoing connections take meanwhile."""
    for port in random.sample(range(61000, 65500, 2), 2250):
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
    raise AssertionError("no two ports are free")


@dataclass(frozen=True, kw_only=True)
class Running:
    """A cluster that was asked to come up."""

    data_dir: Path
    port: int
    clients: list[OpenAI] = field(default_factory=list)
    path_first: str = ""  # a directory whose programs every part of the cluster finds first

    def environment(self) -> dict[str, str]:
        """The environment of every command: this cluster, and no terminal tricks."""
        own = {"SLICE_DATA_DIR": str(self.data_dir), "NO_COLOR": "1", "HOME": str(self.data_dir.parent)}
        path = os.pathsep.join(filter(None, (self.path_first, os.environ.get("PATH", ""))))
        return {**os.environ, **own, "PATH": path}

    def slice(
        self, *arguments: str, check: bool = True, timeout_s: float = 180.0
    ) -> "subprocess.CompletedProcess[str]":
        """Run one `slice` command to its end."""
        done = subprocess.run(
            [*SLICE, *arguments],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert not check or done.returncode == 0, f"{arguments} ended {done.returncode}: {done.stderr}\n{self.logs()}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def start(self, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
        """Start one `slice` command and leave it running."""
        return subprocess.Popen(
            [*SLICE, *arguments],
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def up(self, *arguments: str) -> dict[str, str]:
        """Run `slice up` and return what it prints as JSON."""
        ports = () if (self.data_dir / "cluster.json").exists() else ("--port", str(self.port))
        done = self.slice("up", "-o", "json", *ports, *arguments)
        found: dict[str, str] = json.loads(done.stdout)
        return found

    @property
    def block(self) -> ClusterBlock:
        """The cluster's recorded block."""
        found = cluster.load(self.data_dir)
        assert found is not None
        return found

    def client(self, **options: Any) -> OpenAI:
        """An official OpenAI client on the front door, closed with the cluster."""
        key = self.block.secret_file("api_key").read_text().strip()
        made = OpenAI(
            **{"base_url": self.block.openai_base_url, "api_key": key, "max_retries": 0, "timeout": 60.0, **options}
        )
        self.clients.append(made)
        return made

    def json(self, *arguments: str) -> Any:
        """Run a command with `-o json` and return what it printed."""
        return json.loads(self.slice(*arguments, "-o", "json").stdout)

    def admin(self, path: str) -> Any:
        """Return the object at `/api/v1/<path>` of the admin API."""
        token = self.block.secret_file("operator_token").read_text().strip()
        url = f"{self.block.controller_url}/api/v1/{path}"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        status, text = fetched(request, timeout_s=15)
        assert status == 200, (status, text)
        return json.loads(text)

    def replicas(self, deployment: str) -> list[dict[str, Any]]:
        """Return the replicas of one deployment as the admin API tells them."""
        return [item for item in self.admin("replicas")["items"] if item["deployment"] == deployment]

    def part_pid(self, name: str) -> int:
        """Return the recorded pid of a part."""
        return int(json.loads((self.block.parts_dir / f"{name}.json").read_text())["pid"])

    def supervisor_pid(self) -> int:
        """Return the pid that supervises."""
        return int(json.loads((self.data_dir / "supervisor.json").read_text())["pid"])

    def logs(self) -> str:
        """Return the tail of every log of the cluster, for a failed assertion."""
        tails = []
        for file in sorted((self.data_dir / "logs").glob("*")):
            text = file.read_text(errors="replace")[-3000:]
            tails.append(f"--- {file.name}\n{text}")
        return "\n".join(tails)


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to one process of ours."""
    os.kill(pid, number)


def leftovers(data_dir: Path, block: ClusterBlock) -> list[str]:
    """Return every trace of a cluster that should be gone: processes, sockets, its runtime directory, its ports."""
    found = []
    needles = (str(data_dir).encode(), str(block.runtime_dir).encode())
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if state != "Z" and any(needle in text for needle in needles):
            found.append(f"process {entry.name}: {text[:200]!r}")
    if block.runtime_dir.exists():
        found.append(f"directory {block.runtime_dir}: {[item.name for item in block.runtime_dir.iterdir()]}")
    ports = {block.door_port, block.controller_port, *range(block.base_port, block.base_port + PORTS_PER_CLUSTER)}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        port = int(fields[1].rpartition(":")[2], 16)
        if fields[3] == "0A" and port in ports:
            found.append(f"listening port {port}")
    return found


@contextmanager
def a_cluster() -> Iterator[Running]:
    """Give a cluster that is not up yet, in a closed temporary directory; end it and see that nothing is left."""
    home = Path(tempfile.mkdtemp(prefix="sl-"))
    home.chmod(0o700)
    running = Running(data_dir=home / "data", port=free_port_pair())
    try:
        yield running
    finally:
        for client in running.clients:
            client.close()
        try:
            if running.data_dir.exists():
                running.slice("down", check=False)
        finally:
            block = cluster.load(running.data_dir) if running.data_dir.exists() else None
            if block is not None:
                until(lambda: not leftovers(running.data_dir, block), 20.0, "nothing to be left of the cluster")
            shutil.rmtree(home, ignore_errors=True)
