"""What every replica of a node shares, as one value.

Made once by `node_agent.agent`, handed to `node_agent.supervisor` and each `node_agent.runner`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters.contract import Adapter
from core.clock import Clock
from core.infra.logs import Log
from node_agent.containers.house import ContainerHouse
from node_agent.devices.reading import Devices
from node_agent.engines import EngineHouse
from node_agent.files.pulls import Pulls
from node_agent.files.store import FileStore
from node_agent.ports import Ports
from node_agent.replica import RestartPolicy


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What every runner of the node shares; `start_timeout_s` is in seconds, `chance` draws from 0 to 1,
    `changed` says that a report changed.
    """

    replicas_dir: Path
    shim_dir: Path
    environment: Mapping[str, str]
    start_timeout_s: float
    adapter: Callable[[str], Adapter]
    store: FileStore
    pulls: Pulls
    engines: EngineHouse
    containers: ContainerHouse
    ports: Ports
    devices: Devices
    clock: Clock
    chance: Callable[[], float]
    changed: Callable[[], None]
    log: Log
    policy: RestartPolicy
