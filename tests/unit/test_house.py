"""House rules that no linter knows: file sizes, module names, and places that must not leak into the tree."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
MAX_LINES = 600
# Written in pieces, so that this file does not find itself.
FORBIDDEN_TEXTS = [
    re.compile("/work" + "/[a-z.]"),
    re.compile("/(home|root)" + "/[a-z.]"),
    re.compile("python" + "hosted"),
]
BINARY = {".png", ".jpg", ".ico", ".gz", ".gguf", ".woff2"}


def tracked() -> list[Path]:
    """Return the files of the tree that git knows or would add."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return [ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).is_file()]


@pytest.fixture(scope="module")
def files() -> list[Path]:
    return tracked()


def test_no_python_file_of_ours_is_longer_than_the_limit(files):
    long = {
        str(path.relative_to(ROOT)): count
        for path in files
        if path.suffix == ".py"
        and "_pb2" not in path.name
        and (count := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert long == {}


def test_no_module_has_a_name_that_says_nothing(files):
    nameless = [
        str(path.relative_to(ROOT))
        for path in files
        if path.suffix == ".py" and FORBIDDEN_NAMES & {path.stem, *path.relative_to(ROOT).parts[:-1]}
    ]
    assert nameless == []


def test_no_text_names_a_place_of_the_machine_it_was_written_on(files):
    leaks = []
    for path in files:
        if path.suffix in BINARY:
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
            if any(pattern.search(line) for pattern in FORBIDDEN_TEXTS):
                leaks.append(f"{path.relative_to(ROOT)}:{number}")
    assert leaks == []


def test_every_module_opens_with_a_docstring(files):
    bare = [
        str(path.relative_to(ROOT))
        for path in files
        if path.suffix == ".py"
        and "_pb2" not in path.name
        and path.name != "__init__.py"
        and not path.read_text().lstrip().startswith(('"""', "#!"))
    ]
    assert bare == []
