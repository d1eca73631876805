"""Stand-ins for engines whose programs cannot be had where the tests run; the real llama.cpp works underneath.

`install` makes a directory with executables called `ollama` and `text-generation-launcher`; a test that puts it first
on PATH has these engines. They behave as the real programs' documentation and source say, traps included, and they
prove nothing about the real programs: what only passed a stand-in is not proven, and says so where it is claimed.
"""

import shlex
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PROGRAMS = {"ollama": "tests.standins.ollama", "text-generation-launcher": "tests.standins.tgi"}


def install(directory: Path, *, engine_python: str, gguf_twin: Path | None = None) -> Path:
    """Return `directory` with both executables in it.

    `engine_python` is the interpreter of the environment that holds llama.cpp. `gguf_twin` is a GGUF of the model that
    the TGI stand-in is asked to serve as safetensors, which llama.cpp cannot read. Both are written into the
    executables, since an engine gets nothing of a test's environment.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name, module in _PROGRAMS.items():
        settings = {
            "PYTHONPATH": str(_ROOT),
            "STANDIN_PYTHON": engine_python,
            "STANDIN_GGUF": str(gguf_twin or ""),
        }
        exports = "".join(f"export {key}={shlex.quote(value)}\n" for key, value in settings.items())
        program = directory / name
        program.write_text(f'#!/bin/sh\n{exports}exec {shlex.quote(sys.executable)} -m {module} "$@"\n')
        program.chmod(0o755)
    return directory
