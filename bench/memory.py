"""What Slice's own processes take: proportional set size, so that shared pages are counted once."""

import json
from pathlib import Path

from bench.report import Section
from core.infra.processes import family
from tests.system.cluster import Running


def measured(running: Running) -> list[Section]:
    """Return the memory table of a cluster at rest, engines apart."""
    roots = {name: running.part_pid(name) for name in ("postgres", "controller", "node_agent")}
    roots["supervisor"] = running.supervisor_pid()
    record = json.loads((running.block.door_dir / "shim" / "record.json").read_text())
    roots["front door: Ray, Serve, HAProxy and their shim"] = int(record["shim"]["pid"])
    rows, total = [], [0, 0]
    for name, pid in roots.items():
        # The supervisor's children are the other parts, counted on their own rows.
        pids = [pid] if name == "supervisor" else [item.pid for item in family(frozenset({pid}))]
        pss, rss = (sum(_kib(item, field) for item in pids) for field in ("Pss", "Rss"))
        total = [total[0] + pss, total[1] + rss]
        rows.append((name, str(len(pids)), f"{pss / 1024:.0f} MiB", f"{rss / 1024:.0f} MiB"))
    rows.append(("**all but engines**", "", f"**{total[0] / 1024:.0f} MiB**", f"{total[1] / 1024:.0f} MiB"))
    return [
        Section(
            title="Memory at rest, engines apart (bar: 1.8 GB)",
            method="PSS and RSS from /proc/PID/smaps_rollup, summed over each part's process tree, starter serving.",
            header=("part", "processes", "PSS", "RSS"),
            rows=tuple(rows),
        )
    ]


def _kib(pid: int, field: str) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{field}:")), 0)
