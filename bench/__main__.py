"""`make bench`: measures the running product and writes one results file; nothing here is a test.

python -m bench            the main job: startup, latency and memory
python -m bench startup    one measurement of it
python -m bench plane      what a node's data plane adds; starts no cluster
python -m bench engines    four engines at once; needs what `make engines` builds
python -m bench copies     a model's file from node to node; needs no cluster
python -m bench failover   machines lost under load; needs root and `ip netns`
python -m bench streams    fifty streams while a machine is killed, cut off, suspended, rebooted, drained; likewise
python -m bench controller the controller killed under load; likewise
python -m bench sessions   1,000 nodes by mTLS on one controller, and two storms of hellos
python -m bench scenario   one simulated hour of 1,000 nodes and 5,000 replicas, with faults
"""

import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from bench import copies, engines, failover, latency, memory, plane, report, scenario, sessions, startup, streams
from tests.fakes import hub as hubs
from tests.system.cluster import a_cluster
from tests.system.four_engines import missing, serving_four


def main(chosen: list[str]) -> int:
    """Run the chosen measurements on one cluster of their own and record them."""
    wanted = set(chosen) or {"startup", "latency", "memory"}
    if wanted == {"engines"}:
        return _engines()
    if wanted == {"plane"}:
        print(report.write(f"{datetime.now(UTC):%Y-%m-%d}-plane", plane.measured()).read_text())
        return 0
    if wanted == {"failover"}:
        print(report.write(f"{datetime.now(UTC):%Y-%m-%d}-failover", failover.losses()).read_text())
        return 0
    if wanted == {"streams"}:
        print(report.write(f"{datetime.now(UTC):%Y-%m-%d}-streams", streams.measured()).read_text())
        return 0
    if wanted == {"controller"}:
        print(report.write(f"{datetime.now(UTC):%Y-%m-%d}-controller", failover.controllers()).read_text())
        return 0
    if wanted == {"copies"}:
        print(report.write(f"{datetime.now(UTC):%Y-%m-%d}-copies", copies.measured()).read_text())
        return 0
    if wanted == {"sessions"}:
        print(report.write(f"{datetime.now(UTC):%Y-%m-%d}-sessions", sessions.measured()).read_text())
        return 0
    if wanted == {"scenario"}:
        print(report.write(f"{datetime.now(UTC):%Y-%m-%d}-scenario", scenario.measured()).read_text())
        return 0
    sections: list[report.Section] = []
    with a_cluster() as running:
        running.up()
        if "startup" in wanted:
            sections += startup.measured(running)
        if "latency" in wanted:
            sections += latency.measured(running)
        if "memory" in wanted:
            sections += memory.measured(running)
    file = report.write(f"{datetime.now(UTC):%Y-%m-%d}-main-job", sections)
    print(file.read_text())
    return 0


def _engines() -> int:
    if absent := missing():
        print(f"no environment of {', '.join(absent)}: run `make engines`", file=sys.stderr)
        return 1
    with (
        tempfile.TemporaryDirectory() as programs,
        hubs.hub() as hub,
        serving_four(Path(programs), f'hf_endpoint = "{hub.url}"\n') as running,
    ):
        sections = engines.measured(running, hub)
    print(report.write(f"{datetime.now(UTC):%Y-%m-%d}-engines", sections).read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
