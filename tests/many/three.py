"""Three machines in network namespaces: the controller's, called as this one is, and `two` and `three`, that joined."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adapters.registry import adapter
from cli.roots.node_agent import hostname
from core.infra import cluster
from tests.joining.machine import Machine, a_machine
from tests.many.places import Place, places
from tests.waiting import until_async

ONE = hostname()
"""The name of the node on the controller's machine."""
_ASKER = Path(__file__).with_name("asker.py")
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_NOBODY = "02:00:00:00:00:99"
"""A hardware address that no machine has: frames to it are gone, and nobody is told."""


@dataclass
class Heard:
    """What an asker has said so far; instants are this machine's monotonic clock, which namespaces share."""

    answers: list[dict[str, Any]] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)

    def take(self, said: dict[str, Any]) -> None:
        """Take in a line of the asker's."""
        (self.answers if said["event"] == "answer" else self.changes).append(said)

    def errors(self, since: float = 0.0) -> list[str]:
        """Return what went wrong with requests that began after `since`."""
        return [one["error"] for one in self.answers if one["begun"] >= since and one["error"]]

    def good(self, since: float) -> list[dict[str, Any]]:
        """Return the good answers to requests that began after `since`."""
        return [one for one in self.answers if one["begun"] >= since and not one["error"]]

    def first(self, since: float, what: str, is_so: Callable[[dict[str, list[str]]], bool]) -> float | None:
        """Return the seconds from `since` to the first look at `what` of which `is_so` holds."""
        for change in self.changes:
            if change["event"] == what and change["at"] >= since and is_so(change["items"]):
                return float(change["at"]) - since
        return None


@dataclass(frozen=True, kw_only=True)
class Three:
    """The cluster; `machines` and `networks` by the names of the nodes."""

    machines: dict[str, Machine]
    networks: dict[str, Place]
    hub: str

    @property
    def here(self) -> Machine:
        """The controller's machine."""
        return self.machines[ONE]

    async def nodes(self) -> dict[str, dict[str, Any]]:
        """Return every node by its name."""
        return {node["name"]: node for node in (await self.here.json("node", "list"))["items"]}

    async def replicas(self, deployment: str) -> list[dict[str, Any]]:
        """Return the replicas of a deployment."""
        return [one for one in (await self.here.json("ps"))["items"] if one["deployment"] == deployment]

    async def until_node(self, name: str, state: str, deadline_s: float = 40.0) -> None:
        """Wait until a node is in `state`."""

        async def is_so() -> bool:
            return (await self.nodes()).get(name, {}).get("state") == state

        await until_async(is_so, deadline_s, f"node {name} to be {state}")

    async def until_ready(self, deployment: str, count: int = 1, deadline_s: float = 60.0) -> list[dict[str, Any]]:
        """Wait until a deployment has exactly `count` replicas, all ready."""
        found: list[dict[str, Any]] = []

        async def is_so() -> bool:
            found[:] = await self.replicas(deployment)
            return [one["state"] for one in found] == ["ready"] * count

        await until_async(is_so, deadline_s, f"{count} of {deployment}")
        return found

    def pids(self, name: str) -> list[int]:
        """Return every process in a machine's network."""
        said = subprocess.run(["ip", "netns", "pids", self.networks[name].name], capture_output=True, text=True)
        return [int(word) for word in said.stdout.split()]

    def part(self, name: str) -> int:
        """Return the recorded pid of a part of the controller's machine."""
        return int(json.loads((self.here.data_dir / "parts" / f"{name}.json").read_text())["pid"])

    def signal(self, name: str, number: signal.Signals) -> float:
        """Send a signal to all of a machine's processes; return when."""
        at = time.monotonic()
        for _ in range(3):  # what was forked meanwhile too
            for pid in self.pids(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        return at

    def cut(self, name: str) -> float:
        """Pull a machine's plug out of the network; return when."""
        return self._wire(name, "down")

    def heal(self, name: str) -> float:
        """Put the plug back; return when."""
        return self._wire(name, "up")

    def _wire(self, name: str, state: str) -> float:
        port = f"port{list(self.networks).index(name)}"
        subprocess.run(["ip", "-n", self.hub, "link", "set", port, state], check=True)
        return time.monotonic()

    def black_hole(self, name: str, other: str) -> float:
        """Let all that machine `name` sends to `other` vanish, and nothing of the way back; return when."""
        self._ip(name, "neigh", "replace", self.networks[other].address, "lladdr", _NOBODY, "nud", "permanent")
        return time.monotonic()

    def refill(self, name: str, other: str) -> float:
        """End the black hole; return when."""
        self._ip(name, "neigh", "del", self.networks[other].address)
        return time.monotonic()

    def forget_neighbours(self, name: str) -> None:
        """End every black hole of a machine."""
        self._ip(name, "neigh", "flush", "nud", "permanent")

    def _ip(self, name: str, *words: str) -> None:
        subprocess.run(["ip", "-n", self.networks[name].name, *words, "dev", "wire"], check=True)

    async def reboot(self, name: str) -> float:
        """Cut the power of a machine and start it again as its kernel's next boot would; return when it was cut."""
        at = self.signal(name, signal.SIGKILL)
        machine = self.machines[name]
        file = machine.home / "boot_id"
        file.write_text(f"{uuid.uuid4()}\n")
        # `ip netns exec` gives each command a mount namespace of its own.
        booted = ("sh", "-c", f'mount --bind "{file}" {_BOOT_ID} && exec "$@"', "sh")
        place = self.networks[name]
        self.machines[name] = replace(machine, command=(*place.prefix, *booted, *place.command[len(place.prefix) :]))
        await self.machines[name].slice("up")
        return at

    @contextlib.asynccontextmanager
    async def asking(self, model: str, *, clients: int, words: int = 20, pause_s: float = 0.02) -> AsyncIterator[Heard]:
        """Ask the door from `clients` clients without pause, and watch the cluster, for the length of the block.

        A client whose request failed asks again after `pause_s` seconds.
        """
        block = cluster.load(self.here.data_dir)
        assert block is not None
        settings = {
            "door": block.openai_base_url,
            "admin": block.controller_url,
            "key": block.secret_file("api_key").read_text().strip(),
            "token": block.secret_file("operator_token").read_text().strip(),
            "model": model,
            "clients": clients,
            "words": words,
            "pause_s": pause_s,
        }
        heard = Heard()
        async with self.beside(_ASKER, settings, heard.take):
            yield heard

    @contextlib.asynccontextmanager
    async def beside(
        self, program: Path, settings: Mapping[str, object], hear: Callable[[dict[str, Any]], None]
    ) -> AsyncIterator[None]:
        """Run a program in the front door's network for the length of the block, and hear each JSON line it prints.

        It ends when its standard input does, and what it still says then is heard.
        """
        process = await asyncio.create_subprocess_exec(
            *self.networks[ONE].prefix,
            sys.executable,
            "-I",
            str(program),
            json.dumps(settings),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1024**2,
        )
        reading = asyncio.ensure_future(_read(process.stdout, hear))
        try:
            yield
        finally:
            assert process.stdin is not None
            process.stdin.close()
            await reading
            await process.wait()


async def _read(lines: Any, hear: Callable[[dict[str, Any]], None]) -> None:
    async for line in lines:
        hear(json.loads(line))


@contextlib.asynccontextmanager
async def _resumed(three: Three) -> AsyncIterator[None]:
    """Let whatever a test stopped or cut go on, so that it can be ended; end what runs in a later boot."""
    begun = dict(three.machines)
    try:
        yield
    finally:
        for name in three.networks:
            three.signal(name, signal.SIGCONT)
            three.heal(name)
            three.forget_neighbours(name)
        for name, machine in three.machines.items():
            if machine != begun[name]:
                await machine.slice("down")


def _download(folder: str) -> None:
    plan = adapter("llamacpp").install_plan(adapter("llamacpp").default_version)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--require-hashes", "--dest", folder, "--requirement", plan.lock], check=True, timeout=600)


@contextlib.asynccontextmanager
async def three_machines(*more: str, settings: str = "") -> AsyncIterator[Three]:
    """Give the cluster, all nodes ready; `more` are further words of `slice up`, `settings` is its `slice.toml`.

    The two that joined reach no package index: llama.cpp comes to them out of a directory.
    """
    with places(3) as networks, tempfile.TemporaryDirectory() as wheels:
        await asyncio.to_thread(_download, wheels)
        async with contextlib.AsyncExitStack() as stack:
            machines = {
                name: await stack.enter_async_context(a_machine(command=place.command))
                for name, place in zip((ONE, "two", "three"), networks, strict=True)
            }
            by_name = dict(zip(machines, networks, strict=True))
            three = Three(machines=machines, networks=by_name, hub=networks[0].name[:-2] + "x")
            await stack.enter_async_context(_resumed(three))
            three.here.data_dir.mkdir(mode=0o700)
            (three.here.data_dir / "slice.toml").write_text(settings)
            up = ("up", "--node-host", networks[0].address, "--starter-model", "", *more)
            await three.here.slice(*up, timeout_s=300)
            for name in ("two", "three"):
                line = (await three.here.slice("node", "token", "create")).out.strip()
                await machines[name].slice("node", "join", *line.split()[3:], "--name", name, "--wheel-dir", wheels)
                await three.until_node(name, "ready")
            yield three
