"""The recorded block of a machine that joined a cluster: which one, as whom, and where its controller is.

Written once by `slice node join` to `DATA/node.json`, the last of what it writes: a directory with this file is a
node's, whole; one without it never joined. Read by every process of ours on that machine.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core import joining
from core.errors import Failure
from core.identities import Identity, Role
from core.infra import cluster
from core.infra.cluster import PORTS, MachineBlock
from core.infra.settings import process_environment

BLOCK_FORMAT = 1
FILE = "node.json"


@dataclass(frozen=True, kw_only=True)
class NodeBlock(MachineBlock):
    """One machine as a node; `plane_host` is where other machines reach it, `controller_port` takes its session."""

    node_id: str
    node_name: str
    controller_host: str
    controller_port: int
    plane_host: str

    @property
    def file(self) -> Path:
        """Where this block is recorded."""
        return self.data_dir / FILE

    @property
    def identity(self) -> Identity:
        """Who this node is in certificates."""
        return Identity(cluster_id=self.cluster_id, role=Role.NODE, name=self.node_id)

    @property
    def controller(self) -> str:
        """HOST:PORT of the controller."""
        return joining.address(self.controller_host, self.controller_port)

    @property
    def plane_port(self) -> int:
        """Port of the node's data plane."""
        return self.port(PORTS["plane"])


def save(block: NodeBlock) -> None:
    """Record `block` in its data directory."""
    values = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(block).items()}
    cluster.write_private(block.file, json.dumps({"format": BLOCK_FORMAT, **values}, indent=2) + "\n")


def load(data_dir: Path) -> NodeBlock | None:
    """Return the block recorded in `data_dir`, or None when that is no directory of a joined machine.

    Raises:
        Failure: `cluster.data_dir_unusable` when it is unreadable, damaged or of a newer release.
    """
    values = _values(data_dir)
    if values is None:
        return None
    here = data_dir.resolve()
    try:
        is_newer = values.pop("format") != BLOCK_FORMAT
        recorded, runtime_dir = Path(values.pop("data_dir")), Path(values.pop("runtime_dir"))
        if recorded != here:
            runtime_dir = cluster.runtime_dir_of(here, process_environment())
        if not is_newer:
            return NodeBlock(**values, data_dir=here, runtime_dir=runtime_dir)
    except (KeyError, TypeError) as error:
        raise _damaged(data_dir) from error
    raise Failure(
        "cluster.data_dir_unusable",
        f"{data_dir / FILE} was written by a newer release",
        hint="use that release, or another --data-dir",
    )


def is_moved(data_dir: Path) -> bool:
    """Return whether the directory lay somewhere else when its node was last started.

    Raises:
        Failure: `cluster.data_dir_unusable`.
    """
    values = _values(data_dir)
    return values is not None and values.get("data_dir") != str(data_dir.resolve())


def _values(data_dir: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((data_dir / FILE).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _damaged(data_dir) from error
    if not isinstance(found, dict):
        raise _damaged(data_dir)
    return found


def _damaged(data_dir: Path) -> Failure:
    return Failure(
        "cluster.data_dir_unusable",
        f"{data_dir / FILE} cannot be read or is damaged",
        hint="restore it from a backup, or join anew with another --data-dir",
    )
