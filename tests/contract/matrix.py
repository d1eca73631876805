"""The matrix engine x test, as a pytest plugin: `pytest -p tests.contract.matrix tests/contract [--matrix FILE]`.

In: the reports of tests that take the fixture `contestant`. Out: a table at the end, the same as Markdown in FILE, and
exit code 1 when an engine that must run was skipped anywhere or never came up for a test. A cell is `passed`; `absent`,
when the adapter declares not to have it and asking for it was refused or did no harm; `skipped`, with the reason below
the table; or `failed`. A test with several cases is one cell: the worst of them.
"""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.contract.engines import CONTESTANTS

_RANK = ("failed", "skipped", "passed", "absent")
"""Worst first; a cell with cases that passed and cases that are absent has passed."""
_CELL = "cell"


@dataclass
class Cell:
    """What the cases of one test said of one engine; `said` are measurements, `reasons` say why."""

    outcomes: set[str] = field(default_factory=set)
    said: list[str] = field(default_factory=list)
    reasons: dict[str, None] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        """The worst of its cases."""
        return next(one for one in _RANK if one in self.outcomes)

    @property
    def text(self) -> str:
        """The outcome, with what was measured."""
        return " ".join([self.outcome, *self.said])


class Matrix:
    """All cells, by test and engine, in the order in which they came."""

    def __init__(self, labels: Sequence[str], must_run: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self.must_run = tuple(must_run)
        self.rows: dict[str, dict[str, Cell]] = {}

    def add(self, test: str, label: str, outcome: str, *, reason: str = "", said: str = "") -> None:
        """Note one case."""
        cell = self.rows.setdefault(test, {}).setdefault(label, Cell())
        cell.outcomes.add(outcome)
        if said:
            cell.said.append(said)
        if reason:
            cell.reasons[reason] = None

    def missing(self) -> list[str]:
        """Return a sentence for each engine that must run and did not, anywhere."""
        found = []
        for label in self.must_run:
            cells = [row[label] for row in self.rows.values() if label in row]
            skipped = [cell for cell in cells if "skipped" in cell.outcomes]
            if not cells:
                found.append(f"{label} must run and was not tried")
            elif skipped:
                found.append(f"{label} must run and was skipped: {next(iter(skipped[0].reasons), 'no reason given')}")
        return found

    def lines(self) -> list[str]:
        """Return the table as Markdown, and below it the reasons."""
        head = ["test", *self.labels]
        body = [
            [_sentence(test), *(row[label].text if label in row else "" for label in self.labels)]
            for test, row in self.rows.items()
        ]
        widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]

        def joined(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

        table = [joined(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(joined, body)]
        return [*table, *self._counts(), *self._notes()]

    def _counts(self) -> list[str]:
        lines = [""]
        for label in self.labels:
            outcomes = [row[label].outcome for row in self.rows.values() if label in row]
            counts = ", ".join(f"{outcomes.count(one)} {one}" for one in reversed(_RANK) if one in outcomes)
            lines.append(f"- {label}: {counts or 'not tried'}")
        return lines

    def _notes(self) -> list[str]:
        notes: dict[tuple[str, str], list[str]] = {}
        for test, row in self.rows.items():
            for label, cell in row.items():
                for reason in cell.reasons:
                    notes.setdefault((label, f"{cell.outcome}: {reason}"), []).append(_sentence(test))
        lines = [""]
        for (label, reason), tests in notes.items():
            where = tests[0] if len(tests) == 1 else f"{len(tests)} tests"
            lines.append(f"- {label}, {where}: {reason}")
        return lines if len(lines) > 1 else []


def _sentence(test: str) -> str:
    return test.removeprefix("test_").replace("_", " ")


class Collector:
    """Feeds a `Matrix` from pytest's reports."""

    def __init__(self, matrix: Matrix, file: str | None) -> None:
        self._matrix = matrix
        self._file = file

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Give each case its place in the matrix, which its reports carry on."""
        for item in items:
            callspec = getattr(item, "callspec", None)
            if callspec is not None and "contestant" in callspec.params:
                name = getattr(item, "originalname", None) or item.name
                item.user_properties.append((_CELL, (name, callspec.params["contestant"].label)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what one phase of a case says."""
        properties = dict(report.user_properties)
        if _CELL not in properties or (report.passed and report.when != "call"):
            return
        test, label = properties[_CELL]
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self._matrix.add(test, label, "skipped", reason=reason.removeprefix("Skipped: "))
        elif report.failed:
            self._matrix.add(test, label, "failed", reason=_last_line(report))
        elif "absent" in properties:
            self._matrix.add(test, label, "absent", reason=str(properties["absent"]))
        else:
            self._matrix.add(test, label, "passed", said=str(properties.get("said", "")))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail when an engine that must run did not; write the file."""
        if self._matrix.missing() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self._file:
            machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
            text = "\n".join(["# Engines, one contract", "", f"`make engines-test` on {machine}.", "", *self._said()])
            Path(self._file).parent.mkdir(parents=True, exist_ok=True)
            Path(self._file).write_text(text + "\n")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table."""
        terminalreporter.section("engines, one contract")
        for line in self._said():
            terminalreporter.write_line(line)

    def _said(self) -> list[str]:
        missing = self._matrix.missing()
        return [*self._matrix.lines(), *(["", *missing] if missing else [])]


def _last_line(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else report.longreprtext).strip().splitlines()[0][:200]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--matrix`."""
    parser.addoption("--matrix", metavar="FILE", help="write the matrix engine x test to FILE as Markdown")


def pytest_configure(config: pytest.Config) -> None:
    """Begin to collect."""
    labels = [one.label for one in CONTESTANTS]
    must_run = [one.label for one in CONTESTANTS if one.must_run]
    config.pluginmanager.register(Collector(Matrix(labels, must_run), config.getoption("--matrix")), "engines-matrix")
