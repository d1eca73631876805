"""docs/checklists/new-engine.md, followed to the letter in a copy of the tree: it is true, and enough."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adapters import contract
from adapters.registry import adapters

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "checklists" / "new-engine.md"
ENGINE = Path(__file__).parent / "echo"
PACKAGES = ("adapters", "cli", "controller", "core", "gateway", "node_agent", "protos", "scheduler", "tests")
CONTESTANT = """
    Contestant(
        label="newcomer",
        engine="echo",
        context=1024,
        settings={"context": 1024, "delay_ms": 4.0},
        model=random_gguf,
        says_when_idle=True,
        is_our_program=True,
        slow_start={"warm_up_s": 1.0},
    ),"""
IGNORED = '    "adapters.echo.program.** -> *",\n'


def insert(file: Path, after: str, text: str) -> None:
    """Write `text` behind the one place in `file` that reads `after`."""
    before = file.read_text()
    assert before.count(after) == 1, f"{file.name} has {before.count(after)} times {after!r}"
    file.write_text(before.replace(after, after + text))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with the engine in it: its folder, and the lines that the page names under "Lists"."""
    copy = tmp_path_factory.mktemp("newcomer") / "tree"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "newcomer"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    shutil.copytree(ENGINE, copy / "adapters" / "echo", ignore=shutil.ignore_patterns("__pycache__"))
    insert(copy / "adapters" / "registry.py", "import Adapter\n", "from adapters.echo.adapter import Echo\n")
    insert(copy / "adapters" / "registry.py", "(LlamaCpp(), ", "Echo(), ")
    insert(copy / "pyproject.toml", 'modules = ["adapters.llamacpp", ', '"adapters.echo", ')
    insert(copy / "pyproject.toml", '    "adapters.fake.program.** -> *",\n', IGNORED)
    insert(copy / "tests" / "contract" / "engines.py", "CONTESTANTS = (", CONTESTANT)
    return copy


def run(tree: Path, *argv: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *argv], cwd=tree, capture_output=True, text=True, timeout=300, start_new_session=True
    )


def lint(tree: Path) -> subprocess.CompletedProcess:
    return run(tree, "-c", "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache'])")


# The newcomer's engine


def test_a_new_engine_passes_the_contract_suite_with_nothing_but_its_folder_and_its_lines(tree: Path) -> None:
    ran = run(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contract", "tests/unit/test_adapters.py",
              "-k", "newcomer or (test_adapters and echo)")  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed is not None
    assert int(passed[1]) > 90
    assert "skipped" not in ran.stdout.splitlines()[-1]


def test_the_import_rules_take_a_new_engine_with_its_lines(tree: Path) -> None:
    linted = lint(tree)
    assert linted.returncode == 0, linted.stdout


def test_the_import_rules_miss_a_line_and_hold_a_new_engine_apart(tree: Path) -> None:
    rules, init = tree / "pyproject.toml", tree / "adapters" / "echo" / "__init__.py"
    kept = {file: file.read_text() for file in (rules, init)}
    try:
        rules.write_text(kept[rules].replace(IGNORED, ""))
        init.write_text('"""x"""\nfrom adapters.fake import adapter\n')
        linted = lint(tree)
    finally:
        for file, text in kept.items():
            file.write_text(text)
    assert linted.returncode == 1
    assert "Adapters describe, the node agent acts BROKEN" in linted.stdout
    assert "adapters.echo.program.serve -> socket" in linted.stdout
    assert "The engines do not know each other BROKEN" in linted.stdout


# The page


def test_the_page_fits_on_a_screen() -> None:
    assert len(PAGE.read_text().splitlines()) <= 60


def test_every_file_that_the_page_names_is_there() -> None:
    words = " ".join(re.findall(r"`([^`]+)`", PAGE.read_text())).split()
    paths = [word for word in words if re.fullmatch(r"[\w/.-]*/[\w/.-]*", word) and "NAME" not in word]
    assert len(paths) > 6
    assert [path for path in paths if not (ROOT / path).exists() and not (ENGINE / path).exists()] == []


def test_every_engine_has_the_files_that_the_page_asks_for() -> None:
    folders = {Path(sys.modules[type(one).__module__].__file__ or "").parent for one in adapters()}
    for folder in folders:
        assert (folder / "__init__.py").exists(), folder
        assert not (folder / "program").exists() or (folder / "program" / "__init__.py").exists(), folder
        assert (folder / "design.md").exists(), folder


def test_every_engine_is_held_apart_from_the_others() -> None:
    rules = (ROOT / "pyproject.toml").read_text()
    (modules,) = re.findall(r'name = "The engines do not know each other".*?modules = \[(.*?)\]', rules, re.DOTALL)
    packages = {type(one).__module__.rpartition(".")[0] for one in adapters()}
    assert set(re.findall(r'"([^"]+)"', modules)) == packages


def test_the_page_names_every_member_of_the_contract_and_nothing_that_is_not_there() -> None:
    text = PAGE.read_text()
    members = {name for name in vars(contract.Adapter) if not name.startswith("_")}
    assert [name for name in sorted(members) if f"`{name}`" not in text] == []
    powers = {
        name
        for name, one in vars(contract).items()
        if getattr(one, "_is_protocol", False) and one.__module__ == contract.__name__ and one is not contract.Adapter
    }
    assert [name for name in sorted(powers) if f"`{name}`" not in text] == []
    named = {word for word in re.findall(r"`([A-Z][A-Za-z_]+)`", text) if word not in ("NAME", "UNKNOWN_FOOTPRINT")}
    assert [name for name in sorted(named) if not hasattr(contract, name) and name != "Contestant"] == []
