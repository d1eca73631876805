"""One place for one HAProxy process: its directory, sockets and shim.

Called by `node_agent.dataplane.plane`. There are two, so that an HAProxy with another configuration can take the
listener over from the old one, which ends its streams in peace.
"""

import asyncio
import contextlib
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from core.errors import Failure
from core.infra import cluster, processes
from node_agent import shim_client
from node_agent.dataplane.admin import Admin
from node_agent.shim_client import ShimHandle, ShimSpec

NAMES = ("a", "b")
_LOG_MAX_BYTES = 4 * 1024**2


@dataclass(frozen=True, kw_only=True)
class Living:
    """An HAProxy that runs under a shim of ours."""

    slot: "Slot"
    handle: ShimHandle
    incarnation: int
    text: str
    """Its configuration."""


@dataclass(frozen=True, kw_only=True)
class Slot:
    """`directory` is HAProxy's working directory; `sockets` is short, since socket paths are."""

    name: str
    directory: Path
    sockets: Path

    @property
    def admin_socket(self) -> Path:
        """HAProxy's admin socket."""
        return self.sockets / f"haproxy-{self.name}.sock"

    @property
    def admin(self) -> Admin:
        """The way to the HAProxy of this slot."""
        return Admin(self.admin_socket)

    @property
    def log_path(self) -> Path:
        """What HAProxy says at its start."""
        return self.directory / "haproxy.log"

    @property
    def _configuration(self) -> Path:
        return self.directory / "haproxy.cfg"

    async def living(self) -> Living | None:
        """Return the HAProxy that runs here, or None; what a dead one left is swept.

        Raises:
            Failure: `shim.lost` when a shim lives but cannot be reached, or its tree cannot be killed.
        """
        if not self.directory.is_dir():
            return None
        handle = await shim_client.find(self.directory)
        if handle is None:
            await shim_client.sweep(self.directory)
            return None
        status = await handle.status()
        if status.state != "running":
            await self.end(handle)
            return None
        try:
            text = await asyncio.to_thread(self._configuration.read_text)
        except OSError:
            text = ""  # then it is not the one that is wanted
        return Living(slot=self, handle=handle, incarnation=status.incarnation, text=text)

    async def start(self, *, binary: str, text: str, files: dict[str, str], incarnation: int, heir_of: str) -> Living:
        """Start an HAProxy with the configuration `text`; `heir_of` is the admin socket whose listener it takes over.

        Raises:
            Failure: `shim.start_failed`.
        """
        try:
            await asyncio.to_thread(self._write, text, files)
        except OSError as error:
            raise Failure(
                "shim.start_failed", f"the data plane's files cannot be written: {error.strerror}", hint="free space"
            ) from error
        spec = ShimSpec(
            shim_id=f"plane-{self.name}",
            argv=(binary, "-db", "-f", self._configuration.name, *(("-x", heir_of) if heir_of else ())),
            env={},
            cwd=self.directory,
            log_path=self.log_path,
            record_dir=self.directory,
            socket_path=self.sockets / f"plane-{self.name}.sock",
            incarnation=incarnation,
            stop_grace_s=1.0,
            log_max_bytes=_LOG_MAX_BYTES,
        )
        handle = await shim_client.start(spec, sys.executable)
        return Living(slot=self, handle=handle, incarnation=incarnation, text=text)

    def _write(self, text: str, files: dict[str, str]) -> None:
        cluster.make_private_dir(self.directory)
        for name, content in {**files, self._configuration.name: text}.items():
            cluster.write_private(self.directory / name, content)

    async def end(self, handle: ShimHandle) -> None:
        """End the HAProxy here with all its connections, and its shim."""
        with contextlib.suppress(Failure):  # a shim that does not answer is swept with its tree
            await handle.stop(1.0)
            await handle.release()
        await shim_client.sweep(self.directory)
        await asyncio.to_thread(self.admin_socket.unlink, True)


async def retire(living: Living) -> None:
    """Let an HAProxy take no new connection and end when its last stream has."""
    with contextlib.suppress(Failure):  # its shim is gone, and so is it
        status = await living.handle.status()
        if status.leader is not None:
            processes.send_signal(status.leader, signal.SIGUSR1)


def slots(directory: Path, sockets: Path) -> tuple[Slot, ...]:
    """Return both places."""
    return tuple(Slot(name=name, directory=directory / name, sockets=sockets) for name in NAMES)
