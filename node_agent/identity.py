"""What the node agent remembers of itself between its lives: its id, and the last desired set it applied.

Comes in: the node's data directory. Goes out: `identity.json` and `applied.json`, 0600. Called by `node_agent.agent`
and `node_agent.supervisor`; blocks on the disk.
"""

import base64
import fcntl
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from core.errors import Failure
from core.ids import IdSource, NodeId
from core.infra import cluster
from protos.slice.node.v1 import node_pb2


@dataclass(frozen=True, kw_only=True)
class Applied:
    """The last desired set that was applied; empty before the first."""

    generation: int = 0
    leader_epoch: int = 0
    desired: node_pb2.Desired | None = None


def node_id(data_dir: Path, ids: IdSource) -> NodeId:
    """Return the node's id, made at its first start and kept.

    Raises:
        Failure: `cluster.data_dir_unusable` when the file is damaged: a new id would orphan every replica here.
    """
    file = data_dir / "identity.json"
    try:
        return NodeId(str(json.loads(file.read_text())["node_id"]))
    except FileNotFoundError:
        fresh = ids.fresh("nod")
        cluster.write_private(file, json.dumps({"node_id": fresh}) + "\n")
        return NodeId(fresh)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Failure(
            "cluster.data_dir_unusable", f"{file} cannot be read", hint="restore it, or remove it to join as a new node"
        ) from error


def load_applied(data_dir: Path) -> Applied:
    """Return what `save_applied` wrote; empty when there is nothing, or nothing that can be read."""
    try:
        values = json.loads((data_dir / "applied.json").read_text())
        encoded = values["desired"]
        # Never an empty set for want of one: that would stop everything.
        desired = None if encoded is None else node_pb2.Desired.FromString(base64.b64decode(encoded))
        return Applied(generation=int(values["generation"]), leader_epoch=int(values["leader_epoch"]), desired=desired)
    except (OSError, ValueError, KeyError, TypeError, DecodeError):
        return Applied()


def save_applied(data_dir: Path, applied: Applied) -> None:
    """Write `applied` whole or not at all; it holds engine keys, hence 0600."""
    message = applied.desired
    values = {
        "generation": applied.generation,
        "leader_epoch": applied.leader_epoch,
        "desired": None if message is None else base64.b64encode(message.SerializeToString()).decode(),
    }
    cluster.write_private(data_dir / "applied.json", json.dumps(values) + "\n")


def machine_id() -> str:
    """Return the host's /etc/machine-id, or its name where there is none."""
    try:
        return Path("/etc/machine-id").read_text().strip() or socket.gethostname()
    except OSError:
        return socket.gethostname()


class OnlyOne:
    """Holds the lock of a data directory for as long as the process lives, so that two never fight over it."""

    def __init__(self, data_dir: Path) -> None:
        self._handle = os.open(data_dir / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._handle)
            raise Failure(
                "node.already_running",
                f"another node agent works in {data_dir}",
                hint="stop it first, or give this one a data directory of its own",
            ) from None

    def release(self) -> None:
        """Let another node agent begin."""
        os.close(self._handle)
