"""The matrix itself: what makes a cell, and what makes the run fail."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.matrix import Matrix
from tests.contract.stage import ROOT


def matrix() -> Matrix:
    return Matrix(["one", "two"], ["one"])


def test_a_cell_is_the_worst_of_its_cases():
    made = matrix()
    made.add("test_it_works", "one", "absent", reason="no such thing")
    made.add("test_it_works", "one", "passed", said="5 ms")
    assert made.rows["test_it_works"]["one"].text == "passed 5 ms"
    made.add("test_it_works", "one", "skipped", reason="no program")
    made.add("test_it_works", "one", "failed", reason="boom")
    assert made.rows["test_it_works"]["one"].outcome == "failed"


def test_every_engine_has_its_column_and_every_reason_a_line():
    made = matrix()
    made.add("test_it_works", "one", "passed")
    made.add("test_it_works", "two", "skipped", reason="no program")
    lines = made.lines()
    assert lines[0].split() == ["|", "test", "|", "one", "|", "two", "|"]
    assert "| it works | passed | skipped |" in lines
    assert "- two, it works: skipped: no program" in lines


@pytest.mark.parametrize(
    ("outcomes", "words"),
    [
        ({}, ["one must run and was not tried"]),
        ({"one": "skipped"}, ["one must run and was skipped: because"]),
        ({"one": "passed", "two": "skipped"}, []),
    ],
    ids=["never tried", "skipped", "another one skipped"],
)
def test_an_engine_that_must_run_is_missed(outcomes, words):
    made = matrix()
    for label, outcome in outcomes.items():
        made.add("test_it_works", label, outcome, reason="because")
    assert made.missing() == words


def test_a_run_in_which_an_engine_that_must_run_never_came_up_fails(tmp_path: Path):
    file = tmp_path / "matrix.md"
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "tests.contract.matrix", "-p", "no:cacheprovider"),
            *("--matrix", str(file), "tests/contract/test_matrix.py", "-k", "worst_of_its_cases"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "1 passed" in ran.stdout
    assert "llamacpp must run and was not tried" in ran.stdout
    assert "llamacpp must run and was not tried" in file.read_text()
