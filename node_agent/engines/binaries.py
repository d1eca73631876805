"""Engines that are programs of their own: found on the node's PATH, or installed by an operator from a verified file.

Comes in: an adapter's `Binary`, a source. Goes out: absolute paths with the versions that the programs tell of
themselves. Called by `node_agent.engines.house`. Whatever is run here runs as a child with a deadline.
"""

import asyncio
import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters.contract import Binary
from core.errors import CODES, Failure
from core.infra.logs import Log
from core.infra.tasks import TaskGuard
from core.units import text_from_bytes
from node_agent.subprocesses import Children

_VERSION_DEADLINE_S = 15.0
_PROGRESS = re.compile(r"^progress (\d+) (\d+)$")


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program on the node; `version` is "" when it does not tell."""

    path: str
    version: str


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A program that was put into its place: where in there, and the SHA-256 of what it came from."""

    executable: str
    digest: str


_Mark = tuple[int, ...]
"""What tells one state of a file from another."""


def _mark_of(path: Path) -> _Mark | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino, facts.st_mtime_ns, facts.st_size


class Binaries:
    """Asks programs for their versions, each once for as long as its file does not change, and installs them."""

    def __init__(
        self,
        *,
        environment: Mapping[str, str],
        source_hosts: str,
        children: Children,
        guard: TaskGuard,
        log: Log,
        changed: Callable[[], None],
    ) -> None:
        self._environment = environment
        self._source_hosts = source_hosts
        self._children = children
        self._guard = guard
        self._log = log
        self._changed = changed
        self._told: dict[str, tuple[_Mark, str]] = {}
        self._questions: dict[str, asyncio.Task[str]] = {}

    async def on_path(self, binary: Binary, *, is_patient: bool) -> Program | None:
        """Return the program that the node's PATH leads to, None when there is none.

        Who is not patient gets a version of "" while the program has not told it; `changed` says when it has.
        """
        found = await asyncio.to_thread(shutil.which, binary.executable, path=self._environment.get("PATH"))
        if found is None:
            return None
        path = Path(found).resolve()
        mark = await asyncio.to_thread(_mark_of, path)
        known = self._told.get(str(path))
        if known is not None and known[0] == mark:
            return Program(path=str(path), version=known[1])
        question = self._question(path, binary)
        return Program(path=str(path), version=await asyncio.shield(question) if is_patient else "")

    async def version_of(self, path: Path, binary: Binary) -> str:
        """Return the version that a program tells of itself, "" when it tells none within 15 s."""
        return await asyncio.shield(self._question(path, binary))

    def _question(self, path: Path, binary: Binary) -> "asyncio.Task[str]":
        name = str(path)
        if name not in self._questions:
            self._questions[name] = self._guard.brief(f"version of {path.name}", self._answer(path, binary))
            self._questions[name].add_done_callback(lambda _: self._questions.pop(name, None))
        return self._questions[name]

    async def _answer(self, path: Path, binary: Binary) -> str:
        mark = await asyncio.to_thread(_mark_of, path)
        if mark is None:
            return ""
        version = await self._asked(path, binary)
        self._told[str(path)] = (mark, version)
        self._changed()
        return version

    async def _asked(self, path: Path, binary: Binary) -> str:
        argv = (str(path), *binary.version_argv)
        try:
            async with asyncio.timeout(_VERSION_DEADLINE_S):
                done = await self._children.run(argv, environment=self._environment)
        except (TimeoutError, OSError) as error:
            self._log.warning("engine_version_unknown", program=str(path), reason=type(error).__name__)
            return ""
        found = re.search(binary.version_pattern, done.output)
        if found is None:
            self._log.warning("engine_version_unknown", program=str(path), code=done.code, output=done.output[-500:])
            return ""
        return found[1]

    async def install(self, place: Path, binary: Binary, source: str, tell: Callable[[str], None]) -> Taken:
        """Put the program of `source` into `place`, which is there and empty.

        Raises:
            Failure: `source.*`, `format.refused`, `disk.full`, `engine.install_failed`.
            OSError: no child can be started.
        """

        def heard(line: str) -> None:
            if found := _PROGRESS.match(line):
                whole = f" of {text_from_bytes(int(found[2]))}" if int(found[2]) else ""
                tell(f"{text_from_bytes(int(found[1]))}{whole} brought")

        tell("bringing the program")
        asked = {"source": source, "place": str(place), "executable": binary.executable}
        order = json.dumps({**asked, "source_hosts": self._source_hosts})
        done = await self._children.run(
            (sys.executable, "-I", "-m", "node_agent.engines.unpack", order),
            environment=self._environment,
            on_line=heard,
        )
        try:
            answer = json.loads(done.output.splitlines()[-1])
            if done.code == 0:
                return Taken(executable=str(answer["executable"]), digest=str(answer["digest"]))
            if answer["code"] in CODES:
                raise Failure(answer["code"], str(answer["message"]), hint=str(answer["hint"]))
        except (IndexError, ValueError, KeyError, TypeError):
            pass
        self._log.warning("engine_install_failed", step="unpack", output=done.output[-4000:])
        raise Failure(
            "engine.install_failed", "the program could not be unpacked", hint="the node agent's log says why"
        )
