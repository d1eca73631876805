"""A controller in a process of its own: `python -m tests.controller.standalone URL SOCKET PORT`."""

import asyncio
import sys
from pathlib import Path

from controller.process import ControllerConfig, run
from core.errors import Failure
from core.infra.clock import SystemClock
from core.infra.entropy import SystemEntropy
from core.infra.logs import Log


def main(url: str, control: str, port: str) -> int:
    config = ControllerConfig(
        cluster_id="clu_test",
        database_url=url,
        host="127.0.0.1",
        port=int(port),
        control_socket=Path(control),
        operator_token="operator-token",
        node_token="node-token",
        door_token="door-token",
        key_pepper=b"pepper",
        engine_seed=b"seed",
        secret_key=b"k" * 32,
        openai_base_url="http://127.0.0.1:1/v1",
        heartbeat_s=0.2,
        drain_timeout_s=5,
        cpu_memory_reserve_bytes=0,
        version="0.0.test",
        secrets_dir=Path(control).parent,
    )
    clock = SystemClock()
    try:
        asyncio.run(run(config, clock=clock, entropy=SystemEntropy(), log=Log("controller", clock)))
    except Failure as failure:
        print(failure.code, flush=True)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
