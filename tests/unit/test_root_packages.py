"""Our root packages are ours alone: common names such as `core` must come from this distribution and nowhere else."""

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ["core", "scheduler", "adapters", "protos", "controller", "node_agent", "gateway", "cli"]


def top_level_names(one: importlib.metadata.Distribution) -> set[str]:
    """Return the importable names that the files of a distribution bring, its editable mapping aside."""
    names = set((one.read_text("top_level.txt") or "").split())
    for file in one.files or ():
        first = file.parts[0]
        if len(file.parts) > 1 and not first.endswith((".dist-info", ".data")) and first not in ("..", "__pycache__"):
            names.add(first)
        elif len(file.parts) == 1 and first.endswith(".py"):
            names.add(first.removesuffix(".py"))
    return names


def test_no_other_distribution_brings_a_package_of_our_name():
    others = {
        f"{one.name} brings {name}"
        for one in importlib.metadata.distributions()
        if one.name != "slice-cluster"
        for name in top_level_names(one) & set(OURS)
    }
    assert others == set()


def test_our_distribution_brings_all_of_them():
    distribution = importlib.metadata.distribution("slice-cluster")
    assert set(OURS) <= top_level_names(distribution)


@pytest.mark.parametrize("name", OURS)
def test_a_package_of_ours_is_found_in_our_tree(name):
    found = importlib.util.find_spec(name)
    assert found is not None
    assert [Path(place).resolve() for place in found.submodule_search_locations] == [ROOT / name]


def test_nothing_else_on_the_path_shadows_them():
    code = (
        "import importlib.machinery, sys\n"
        f"for name in {OURS!r}:\n"
        "    for entry in sys.path:\n"
        "        found = importlib.machinery.PathFinder.find_spec(name, [entry])\n"
        "        if found is not None and found.loader is not None: print(name, found.origin)\n"
    )
    ran = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=30)
    strangers = [line for line in ran.stdout.splitlines() if not line.split(" ", 1)[1].startswith(f"{ROOT}/")]
    assert strangers == []
