"""What slice imports: help and lists must not pay for what they do not use."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from cli import tree
from cli.lazy import Entry, GroupEntry, Table, not_installed
from core.errors import Failure
from tests.cli import things
from tests.cli.conftest import Slice
from tests.cli.played import PlayedCluster

HEAVY = {"rich", "grpc", "ray", "psycopg", "fastapi", "pydantic", "yaml", "asyncio", "http", "psutil", "numpy"}


def _imported(slice_: Slice, *words: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "cli", "--data-dir", str(slice_.data_dir), *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=slice_.environment,
        timeout=20,
        check=True,
    )
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


def _roots(modules: set[str]) -> set[str]:
    return {name.split(".")[0] for name in modules}


def test_help_imports_nothing_heavy_and_no_command(slice_: Slice) -> None:
    imported = _imported(slice_, "--help")
    assert _roots(imported) & HEAVY == set()
    assert not {name for name in imported if name.startswith(("cli.commands", "cli.cluster", "cli.roots"))}


@pytest.mark.parametrize("words", [["run", "--help"], ["ps", "--help"], ["node", "--help"]], ids=" ".join)
def test_help_of_a_command_draws_nothing_with_rich(slice_: Slice, words: list[str]) -> None:
    assert _roots(_imported(slice_, *words)) & {"rich", "grpc", "ray", "psycopg", "fastapi", "yaml", "psutil"} == set()


def test_a_piped_list_imports_no_rich(cluster: PlayedCluster, slice_: Slice) -> None:
    cluster.models = {"smollm2": things.model()}
    imported = _roots(_imported(slice_, "list"))
    assert imported & {"rich", "grpc", "ray", "psycopg", "fastapi", "yaml", "psutil", "asyncio"} == set()


def _entries(table: Table = tree.TABLE, before: str = "") -> list[tuple[str, Entry]]:
    found: list[tuple[str, Entry]] = []
    for name, entry in table.items():
        if isinstance(entry, GroupEntry):
            found += _entries(entry.verbs, f"{before}{name} ")
        else:
            found.append((before + name, entry))
    return found


@pytest.mark.parametrize("name, entry", _entries(), ids=[name for name, _ in _entries()])
def test_the_table_says_what_the_function_says(name: str, entry: Entry) -> None:
    module, _, function = entry.target.partition(":")
    # Read, not imported: `up` would bring Ray and PostgreSQL along.
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    body = ast.parse(Path(spec.origin).read_text()).body
    (found,) = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == function]
    docstring = ast.get_docstring(found)
    assert docstring is not None
    same_words = entry.summary.rstrip(".").split(";")[0].split(",")[0]
    assert docstring.startswith(same_words), f"{entry.summary!r} is not how {docstring.splitlines()[0]!r} begins"


def test_every_command_has_help_and_every_list_an_output_option() -> None:
    root = tree.root()
    for name, _ in _entries():
        if name in {"up", "down"}:
            continue  # they import the processes of the cluster: tests/cluster runs them
        command = root
        for word in name.split(" "):
            command = command.get_command(None, word)
        assert command.help
        has_output = any("--output" in param.opts for param in command.params)
        assert has_output or name.split(" ")[-1] in {
            "run",
            "rm",
            "logs",
            "down",
            "add",
            "use",
            "completion",
            "export",
        }, name


def test_a_package_that_is_not_installed_is_a_sentence_with_the_cure() -> None:
    found = not_installed("up", ModuleNotFoundError("no ray", name="ray.serve"))
    assert isinstance(found, Failure)
    assert found.message == "`slice up` needs the Python package 'ray', which is not installed here"
    assert "slice-cluster[server]" in found.hint
    ours = ModuleNotFoundError("our own fault", name="cli.nowhere")
    assert not_installed("up", ours) is ours


def test_version_is_an_option_too(slice_: Slice) -> None:
    ended = slice_("--version")
    assert (ended.code, ended.out.split()[0]) == (0, "slice")


def test_slice_alone_shows_its_help(slice_: Slice) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli"], capture_output=True, text=True, env=slice_.environment, timeout=20, check=False
    )
    assert done.returncode == 0
    assert "Chat with a model" in done.stdout


def test_a_shell_completes_command_names(slice_: Slice) -> None:
    script = slice_("completion", "bash")
    assert "_SLICE_COMPLETE=complete_bash" in script.out
    done = subprocess.run(
        [sys.executable, "-m", "cli"],
        capture_output=True,
        text=True,
        env={**slice_.environment, "_SLICE_COMPLETE": "complete_bash", "COMP_WORDS": "slice de", "COMP_CWORD": "1"},
        stdin=subprocess.DEVNULL,
        timeout=20,
        check=False,
    )
    assert done.stdout.split() == ["deploy", "deployments"]
