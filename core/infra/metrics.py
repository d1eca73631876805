"""A /metrics page of our own: numbers are read when somebody asks, and nothing is registered globally.

Comes in: names with functions that return the numbers of the moment. Goes out: Prometheus text. Called by a process's
HTTP edge. It keeps no number itself, so that no fact has two owners.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PAGE_BYTES = 4096  # x86_64 and arm64 Linux; /proc/self/statm counts pages


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One metric: `read` returns its number by the value of its one label, or under "" when it has none."""

    name: str
    meaning: str
    read: Callable[[], Mapping[str, float]]
    label: str = ""
    is_counter: bool = False


class MetricsPage(Collector):
    """The page of one process."""

    def __init__(self, readings: Iterable[Reading]) -> None:
        self._readings = tuple(readings)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Yield every metric with the numbers of now; called by prometheus_client."""
        for reading in self._readings:
            labels = (reading.label,) if reading.label else ()
            family: Metric = (
                CounterMetricFamily(reading.name.removesuffix("_total"), reading.meaning, labels=labels)
                if reading.is_counter
                else GaugeMetricFamily(reading.name, reading.meaning, labels=labels)
            )
            for value, number in reading.read().items():
                family.add_metric([value] if reading.label else [], number)  # type: ignore[attr-defined]
            yield family

    def render(self) -> bytes:
        """Return the page in Prometheus' text format."""
        return generate_latest(self._registry)


def resident_bytes() -> float:
    """Return this process's resident set in bytes (proc(5), statm)."""
    try:
        return float(int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES)
    except (OSError, IndexError, ValueError):
        return 0.0
