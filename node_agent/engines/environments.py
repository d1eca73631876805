"""Virtual environments of engines: made by venv, filled by the node agent's own pip, proven by an import.

Comes in: an install plan. Goes out: an environment, or a `Failure` in words of ours. Called by
`node_agent.engines.house`. With a lock pip runs in hash-checking mode, and only the lock says what is installed. A
directory of wheels comes first and alone: with an index beside it pip would ask the network all the same.
"""

import asyncio
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from adapters.contract import InstallPlan
from core.errors import Failure
from core.infra import cluster
from core.infra.logs import Log
from core.units import GIB, MIB, text_from_bytes
from node_agent.subprocesses import Children, Done

PROBE_DEADLINE_S = 300.0  # a first import compiles byte code and loads CUDA
_RESERVE_BYTES = 256 * MIB
_UNPACKED_SHARE = 3  # a wheel and what it unpacks to, which for binaries is about twice as much
_ANNOUNCED = re.compile(r"^\s*Downloading (\S+) \((\d+(?:\.\d+)?) ([kMG]?B)\)")
_LOCAL = re.compile(r"^Processing (/\S+\.whl)")
_COLLECTING = re.compile(r"^Collecting (\S+)")
_UNITS = {"B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3}
_ABSENT = ("No matching distribution", "Could not find a version")
_MISMATCH = "DO NOT MATCH THE HASHES"
_FULL = ("No space left", "Disk quota exceeded")


def tries(wheel_dir: str, *, has_lock: bool) -> tuple[tuple[str, ...], ...]:
    """Return pip's options, one tuple for each attempt, the strictest first.

    1. The directory of wheels alone, where there is one.
    2. The index too; wheels only: what builds from source runs its author's code on this machine.
    3. Without a lock also what has no wheel.
    """
    links = ("--find-links", wheel_dir) if wheel_dir else ()
    only = ("--only-binary", ":all:")
    offline = (("--no-index", *links, *only),) if wheel_dir else ()
    loose = () if has_lock else ((*links, "--prefer-binary"),)
    return (*offline, (*links, *only), *loose)


def pip_progress(line: str) -> str:
    """Return what a line of pip's output means for people, "" when it means nothing."""
    if found := _ANNOUNCED.match(line):
        size = text_from_bytes(int(float(found[2]) * _UNITS[found[3]]))
        return f"downloading {found[1].split('-')[0].rsplit('/', 1)[-1]}, {size}"
    if found := _LOCAL.match(line):
        return f"taking {Path(found[1]).name.split('-')[0]} from the directory of wheels"
    if found := _COLLECTING.match(line):
        return f"looking for {found[1]}"
    if line.startswith("Installing collected packages:"):
        count = line.count(",") + 1
        return f"unpacking {count} package{'' if count == 1 else 's'}"
    return ""


class Environments:
    """Fills environments in their final place, because console scripts hold its absolute path."""

    def __init__(self, *, wheel_dir: str, environment: Mapping[str, str], children: Children, log: Log) -> None:
        self._wheel_dir = wheel_dir
        self._environment = environment
        self._children = children
        self._log = log

    async def make(
        self, place: Path, plan: InstallPlan, *, lock: str, scratch: Path, tell: Callable[[str], None]
    ) -> None:
        """Make the environment of `plan` in `place`, which is empty; `tell` hears how far it is.

        Raises:
            Failure: `engine.install_failed`, `source.digest_mismatch`, `disk.full`.
            OSError: something cannot be written.
        """
        python = str(place / "bin" / "python")
        tell("making its environment")
        # A copy of the interpreter's links only: pip stays the node agent's own.
        venv = (sys.executable, "-m", "venv", "--without-pip", str(place))
        self._check(await self._run(venv), "the virtual environment")
        what = ("-r", lock) if lock else plan.requirements
        await asyncio.to_thread(cluster.make_private_dir, scratch)
        pip = (sys.executable, "-m", "pip", "--python", python)
        await self._fill((*pip, "install"), what, plan, has_lock=bool(lock), scratch=scratch, tell=tell)
        if plan.removed:
            tell(f"taking out {', '.join(plan.removed)}")
            argv = (*pip, "--disable-pip-version-check", "uninstall", "--yes", *plan.removed)
            self._check(await self._run(argv), f"{', '.join(plan.removed)} could not be taken out again", is_said=True)
        if plan.probe:
            tell("trying whether it imports")
            try:
                async with asyncio.timeout(PROBE_DEADLINE_S):
                    probed = await self._run((python, "-I", "-c", plan.probe))
            except TimeoutError:
                raise Failure(
                    "engine.install_failed",
                    f"the import check took longer than {PROBE_DEADLINE_S / 60:.0f} minutes",
                    hint="the machine is very busy, or the engine waits for a device; try again",
                ) from None
            self._check(probed, "the import check")

    async def _fill(
        self,
        pip: tuple[str, ...],
        what: tuple[str, ...],
        plan: InstallPlan,
        *,
        has_lock: bool,
        scratch: Path,
        tell: Callable[[str], None],
    ) -> None:
        hashes = ("--require-hashes",) if has_lock else ()
        base = (*pip, "--no-input", "--disable-pip-version-check", "--progress-bar", "off", *hashes)
        space = _Space(scratch)

        def heard(line: str) -> None:
            space.hear(line)
            if words := pip_progress(line):
                tell(words)

        done = Done(code=1, output="")
        for options in tries(self._wheel_dir, has_lock=has_lock):
            # pip writes into TMPDIR first: ours, so that one disk is filled, and a kill leaves nothing elsewhere.
            environment = {**self._environment, "TMPDIR": str(scratch)}
            done = await self._children.run((*base, *options, *what), environment=environment, on_line=heard)
            if done.code == 0 or not any(word in done.output for word in _ABSENT) or _MISMATCH in done.output:
                break
        if done.code != 0:
            self._log.warning("engine_install_failed", step="pip", output=done.output[-4000:])
            raise _pip_failure(", ".join(plan.requirements), done.output, space)

    async def _run(self, argv: tuple[str, ...]) -> Done:
        return await self._children.run(argv, environment=self._environment)

    def _check(self, done: Done, what: str, *, is_said: bool = False) -> None:
        if done.code == 0:
            return
        self._log.warning("engine_install_failed", step=what, output=done.output[-4000:])
        if any(word in done.output for word in _FULL):
            raise Failure("disk.full", "the disk filled up while an engine was installed", hint="free some space")
        raise Failure(
            "engine.install_failed",
            what if is_said else f"{what} failed",
            hint="the node agent's log has the program's own words",
        )


class _Space:
    """Watches that what pip announces fits on the disk, before it is there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.announced_bytes = 0

    def hear(self, line: str) -> None:
        """Add what a line announces.

        Raises:
            Failure: `disk.full`, with how much is missing.
        """
        count = 0
        if found := _ANNOUNCED.match(line):
            count = int(float(found[2]) * _UNITS[found[3]])
        elif local := _LOCAL.match(line):
            wheel = Path(local[1])
            count = wheel.stat().st_size if wheel.is_file() else 0
        if count:
            self.announced_bytes += count
            self.require(count * _UNPACKED_SHARE)

    def require(self, size_bytes: int) -> None:
        """Refuse what does not fit beside a reserve of 256 MiB.

        Raises:
            Failure: `disk.full`, with how much is missing.
        """
        missing = size_bytes + _RESERVE_BYTES - shutil.disk_usage(self._directory).free
        if missing > 0:
            raise Failure(
                "disk.full",
                f"{text_from_bytes(missing)} more must be free below {self._directory.parent} for this engine",
                hint="free space on that disk; the install goes on by itself",
            )


def _pip_failure(name: str, output: str, space: _Space) -> Failure:
    if any(word in output for word in _FULL):
        try:
            space.require(max(space.announced_bytes * _UNPACKED_SHARE, GIB))
        except Failure as failure:
            return failure
        return Failure("disk.full", f"the disk filled up while {name} was installed", hint="free some space")
    if _MISMATCH in output:
        return Failure(
            "source.digest_mismatch",
            f"a package of {name} is not the one whose digest this release pins",
            hint="the directory of wheels or the index holds another file under its name: do not use it",
        )
    # pip ends with "from versions: none" both for an unknown version and for an index that it cannot reach.
    if any(word in output for word in ("connection error", "Retrying (", "timed out", "SSLError", "ProxyError")):
        return Failure(
            "engine.install_failed",
            f"the package index could not be reached for {name}",
            hint="check the network and pip's configuration (`pip config list`), or set wheel_dir",
        )
    if any(word in output for word in _ABSENT):
        return Failure(
            "engine.install_failed",
            f"neither the package index nor the directory of wheels has all that {name} needs",
            hint="check the version, and that the machine's Python and processor are among those it is built for",
        )
    return Failure(
        "engine.install_failed",
        f"{name} could not be installed",
        hint="check the network and pip's configuration; the node agent's log has pip's words",
    )
