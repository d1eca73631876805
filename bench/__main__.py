"""`make bench`: measures the running product and writes one results file; nothing here is a test.

python -m bench            everything
python -m bench startup    one measurement: startup, latency or memory
"""

import sys
from datetime import UTC, datetime

from bench import latency, memory, report, startup
from tests.system.cluster import a_cluster


def main(chosen: list[str]) -> int:
    """Run the chosen measurements on one cluster of their own and record them."""
    wanted = set(chosen) or {"startup", "latency", "memory"}
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
