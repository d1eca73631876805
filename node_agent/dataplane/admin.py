"""HAProxy's admin socket: maps and certificates are changed in the running process, without a reload.

Comes in: the socket's path. Goes out: commands, one connection each (HAProxy's management guide, section 9.3). Called
by `node_agent.dataplane.plane` alone. A map is replaced in one transaction: requests see the old one or the new one.
"""

import asyncio
import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from node_agent.dataplane.configuration import AUTHORITY, IDENTITY, LEASE, LEASE_FROM, LEASE_UNTIL
from node_agent.dataplane.entries import MapLine, file_text

_DEADLINE_S = 5.0
_PAYLOAD_MAX = 8 * 1024
"""Bytes of map lines in one command: command and payload must fit HAProxy's buffer of 16 KiB."""
_NEW_VERSION = re.compile(r"New version created: (\d+)")


class AdminError(Exception):
    """HAProxy cannot be reached by its admin socket, or refused a command."""


class Admin:
    """One running HAProxy."""

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = str(socket_path)

    async def ask(self, command: str) -> str:
        """Return the answer to `command`.

        Raises:
            AdminError: nobody answered within 5 s.
        """
        try:
            async with asyncio.timeout(_DEADLINE_S):
                return await self._exchange(command)
        except (OSError, TimeoutError, UnicodeError) as error:
            raise AdminError(f"its admin socket does not answer: {error or 'no answer in time'}") from error

    async def _exchange(self, command: str) -> str:
        reader, writer = await asyncio.open_unix_connection(self._socket_path)
        try:
            writer.write(command.encode() + b"\n")
            writer.write_eof()
            await writer.drain()
            return (await reader.read()).decode().strip()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def pid(self) -> int:
        """Return the process's id.

        Raises:
            AdminError: it does not answer.
        """
        for line in (await self.ask("show info")).splitlines():
            name, _, value = line.partition(": ")
            if name == "Pid":
                return int(value)
        raise AdminError("it does not tell its pid")

    async def map_lines(self, name: str) -> tuple[MapLine, ...]:
        """Return what the map `name` holds.

        Raises:
            AdminError: it does not answer, or has no such map.
        """
        try:
            lines = [line.split() for line in (await self.ask(f"show map {name}")).splitlines()]
            return tuple((key, int(value)) for _, key, value in lines)
        except ValueError as error:
            raise AdminError(f"it has no map {name}") from error

    async def replace_map(self, name: str, lines: Sequence[MapLine]) -> None:
        """Make the map `name` hold exactly `lines`, at one stroke.

        Raises:
            AdminError: it could not; the map is as it was.
        """
        found = _NEW_VERSION.search(await self.ask(f"prepare map {name}"))
        if found is None:
            raise AdminError(f"it has no map {name}")
        version = f"@{found[1]}"
        for payload in _payloads(lines):
            await self._silent(f"add map {version} {name} <<\n{payload}")
        await self._silent(f"commit map {version} {name}")

    async def set_lease(self, from_ms: int, until_ms: int) -> None:
        """Let requests pass between two instants of the wall clock, in milliseconds since 1970.

        Raises:
            AdminError: it could not.
        """
        commands = [f"set map {LEASE} {key} {at}" for key, at in ((LEASE_FROM, from_ms), (LEASE_UNTIL, until_ms))]
        await self._silent("; ".join(commands))

    async def end_exchanges(self, server: str) -> None:
        """Cut whatever goes on with `server` (BACKEND/SERVER).

        Raises:
            AdminError: it could not.
        """
        await self._silent(f"shutdown sessions server {server}")

    async def set_identity(self, pem: str) -> None:
        """Show `pem` (certificate and key) to callers from now on; connections that are open stay.

        Raises:
            AdminError: it is no pair.
        """
        await self._commit(f"ssl cert {IDENTITY}", pem)

    async def set_authority(self, pem: str) -> None:
        """Trust the roots in `pem`, and no others, from now on.

        Raises:
            AdminError: they are none.
        """
        await self._commit(f"ssl ca-file {AUTHORITY}", pem)

    async def _commit(self, what: str, pem: str) -> None:
        lines = "\n".join(line for line in pem.splitlines() if line.strip())  # an empty one would end the payload
        said = await self.ask(f"set {what} <<\n{lines}\n")
        done = await self.ask(f"commit {what}")
        if "Success" not in done:
            with contextlib.suppress(AdminError):
                await self.ask(f"abort {what}")
            raise AdminError(f"it refuses a new {what}: {' '.join(f'{said} {done}'.split())[-300:]}")

    async def _silent(self, command: str) -> None:
        if said := await self.ask(command):
            raise AdminError(f"it refuses {command.split(' <<')[0][:80]!r}: {' '.join(said.split())[:300]}")


def _payloads(lines: Sequence[MapLine]) -> Iterator[str]:
    text = ""
    for line in lines:
        one = file_text([line])
        if len(text) + len(one) > _PAYLOAD_MAX:
            yield text
            text = ""
        text += one
    if text:
        yield text
