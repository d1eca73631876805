"""Runs a node agent as a process of its own: `python -m tests.node_agent.run_agent CONFIG.json`."""

import asyncio
import json
import os
import sys
from pathlib import Path

from core.infra.clock import SystemClock
from core.infra.entropy import SystemEntropy
from core.infra.logs import Log
from core.protocols import Span
from node_agent import agent, replica
from node_agent.files.origins import SourceOrigins


def main() -> None:
    """Run until SIGTERM."""
    values = json.loads(Path(sys.argv[1]).read_text())
    first, last = values.pop("engine_ports")
    origins = SourceOrigins(**values.pop("origins", {}))
    for name in ("tls_dir", "standing_file"):
        if name in values:
            values[name] = Path(values[name])
    policy = replica.RestartPolicy(**values.pop("restart_policy", {}))
    if "protocols" in values:
        oldest, newest = values.pop("protocols")
        values["protocols"] = Span(oldest=oldest, newest=newest)
    plane = values.pop("plane", None)
    if plane is not None:
        paths = {key: Path(plane[key]) for key in ("tls_dir", "files_socket")}
        plane = agent.PlaneConfig(host=plane["host"], port=plane["port"], **paths)
    config = agent.NodeConfig(
        **{**values, "data_dir": Path(values["data_dir"]), "shim_dir": Path(values["shim_dir"])},
        engine_ports=range(first, last),
        environment=dict(os.environ),
        origins=origins,
        restart_policy=policy,
        plane=plane,
    )
    clock = SystemClock()
    asyncio.run(agent.run(config, clock=clock, entropy=SystemEntropy(), log=Log("node_agent", clock)))


if __name__ == "__main__":
    main()
