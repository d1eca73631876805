"""The recorded block of a machine that joined a cluster: which one, as whom, and where its controller is.

Written once by `slice node join` to `DATA/node.json`, the last of what it writes: a directory with this file is a
node's, whole; one without it never joined, or has left. Read by every process of ours on that machine. `slice node
leave` renames it when the cluster knows the node no more, which is one step, and removes the renamed one last of all.
"""

from dataclasses import dataclass
from pathlib import Path

from core import joining
from core.identities import Identity, Role
from core.infra import cluster
from core.infra.cluster import PORTS, MachineBlock

FILE = "node.json"
LEFT_FILE = "node.left.json"


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


def load(data_dir: Path) -> NodeBlock | None:
    """Return the block recorded in `data_dir`, or None when that is no directory of a joined machine.

    Raises:
        Failure: `cluster.data_dir_unusable` when it is unreadable, damaged or of a newer release.
    """
    return cluster.block_in(data_dir / FILE, NodeBlock)


def is_moved(data_dir: Path) -> bool:
    """Return whether the directory lay somewhere else when its node was last started.

    Raises:
        Failure: `cluster.data_dir_unusable`.
    """
    return cluster.is_file_moved(data_dir / FILE)


def mark_left(block: NodeBlock) -> None:
    """Make `block`'s directory one that has left, of which remains are to be removed."""
    block.file.rename(block.data_dir / LEFT_FILE)


def left(data_dir: Path) -> NodeBlock | None:
    """Return the block of a node that has left, and of which not all was removed, or None.

    Raises:
        Failure: `cluster.data_dir_unusable` when it is unreadable, damaged or of a newer release.
    """
    return cluster.block_in(data_dir / LEFT_FILE, NodeBlock)
