"""A cluster in which one model is served by four engines at once; for the test of that promise and for its bench."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from adapters import registry
from tests import engine_models, standins
from tests.system.cluster import Running, a_cluster
from tests.waiting import until

ENGINES = {
    "smollm2": "llamacpp",
    "smollm2-vllm": "vllm",
    "smollm2-transformers": "transformers",
    "smollm2-ollama": "ollama",
}
"""Deployment -> engine; Ollama is its stand-in unless the real program is on PATH."""
START_S = 300.0


def missing() -> list[str]:
    """Return the engines whose environments `make engines` has not built."""
    return [name for name in engine_models.ENGINES if not engine_models.is_installed(registry.adapter(name))]


def states(running: Running, deployment: str) -> list[str]:
    """Return the states of a deployment's replicas."""
    return [one["state"] for one in running.replicas(deployment)]


def pid(running: Running, deployment: str) -> int:
    """Return the pid of a deployment's one engine."""
    (replica,) = running.replicas(deployment)
    return int(replica["pid"])


@contextmanager
def serving_four(programs: Path, settings: str = "") -> Iterator[Running]:
    """Give a cluster with all of `ENGINES` serving; stand-ins are written to the directory `programs`.

    `settings` is the text of its `slice.toml`.
    """
    python = engine_models.engine_python(registry.adapter("llamacpp"))
    standins.install(programs, engine_python=python)
    with a_cluster() as made:
        running = replace(made, path_first=str(programs))
        node = running.data_dir / "node"
        node.mkdir(parents=True, mode=0o700)
        running.data_dir.chmod(0o700)
        # As if an operator had installed them before: the node agent finds its own marks on them.
        (running.data_dir / "slice.toml").write_text(settings)
        (node / "engines").symlink_to(engine_models.engines_dir())
        running.up()
        running.slice("pull", "smollm2", "--source", f"file:{engine_models.smollm2_safetensors()}")
        for name, version in (("vllm", "v2"), ("transformers", "v2"), ("ollama", "v1")):
            running.slice("deploy", f"smollm2@{version}", "--engine", name, "--name", f"smollm2-{name}")
        until(lambda: all(states(running, name) == ["ready"] for name in ENGINES), START_S, "all four to serve")
        yield running
