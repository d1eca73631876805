"""One machine that joins: a data directory, `slice` commands in it, and the proof that nothing is left of it."""

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.infra import joined
from core.infra.joined import NodeBlock


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Everything of it lies below `home`."""

    home: Path
    command: tuple[str, ...] = (sys.executable, "-m", "cli")
    more: dict[str, str] = field(default_factory=dict)

    @property
    def data_dir(self) -> Path:
        return self.home / "data"

    @property
    def block(self) -> NodeBlock:
        found = joined.load(self.data_dir)
        assert found is not None
        return found

    def environment(self) -> dict[str, str]:
        """The environment of every command: this machine, its CPU alone, and no terminal tricks."""
        own = {
            "SLICE_DATA_DIR": str(self.data_dir),
            "SLICE_RUNTIME_DIR": str(self.home),
            "SLICE_DEVICES": "cpu",
            "NO_COLOR": "1",
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home / "config"),
        }
        return {**os.environ, **own, **self.more}

    async def slice(self, *arguments: str, code: int | None = 0, timeout_s: float = 90.0) -> Done:
        """Run one `slice` command to its end, which must be `code` (None: any)."""
        process = await asyncio.create_subprocess_exec(
            *self.command,
            *arguments,
            env=self.environment(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate()
        done = Done(code=process.returncode or 0, out=out.decode(), err=err.decode())
        assert code in (None, done.code), f"{arguments} ended {done.code}: {done.out}\n{done.err}\n{self.logs()}"
        assert "Traceback" not in done.err, done.err
        return done

    async def json(self, *arguments: str) -> Any:
        return json.loads((await self.slice(*arguments, "-o", "json")).out)

    def logs(self) -> str:
        files = sorted((self.data_dir / "logs").glob("*.log"))
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-3000:]}" for file in files)

    def leftovers(self) -> list[str]:
        """Return every process and directory that is still there of it, its data apart."""
        found = [str(item) for item in self.home.glob("slice-*")]
        needle = str(self.home).encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                is_zombie = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
                if needle in text and not is_zombie:
                    found.append(f"process {entry.name}: {text[:200]!r}")
        return found


@contextlib.asynccontextmanager
async def a_machine(**options: Any) -> AsyncIterator[Machine]:
    """Give a machine in a closed temporary directory, short enough for sockets; end what runs on it."""
    home = Path(tempfile.mkdtemp(prefix="sj-", dir="/tmp"))
    machine = Machine(home=home, **options)
    try:
        yield machine
    finally:
        try:
            if machine.data_dir.exists():
                await machine.slice("down")
            assert machine.leftovers() == []
        finally:
            shutil.rmtree(home, ignore_errors=True)
