"""What a simulated controller keeps of nodes and streams in memory; the twin of `controller.fleet.service`."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from controller.exchange import Observation
from controller.fleet import lease as machine
from controller.fleet import session as protocol
from controller.fleet.leases import Leases
from controller.fleet.model import NodeNow
from core.devices import DeviceReading
from core.ids import NodeId
from core.states import NodeState
from tests.scenarios.network import Way

if TYPE_CHECKING:
    from tests.scenarios.session import Session


@dataclass(kw_only=True)
class Entry:
    """The live half of one node."""

    stream: int = 0
    devices: tuple[DeviceReading, ...] = ()
    observation: Observation | None = None
    matter: Observation | None = None
    version: int = 0
    written: tuple[int, int] = (0, 0)
    state_written: tuple[NodeState, bool] | None = None
    applied: int = 0
    sent: int = 0
    epoch: int = 0
    boot_id: str = ""
    serial: int = 0


@dataclass(kw_only=True)
class Peer:
    """One stream at this end: `heard` is what each of its messages is to the lease."""

    session: "Session"
    node_id: NodeId
    epoch: int
    entry: Entry
    way: Way
    # The simulated node agents speak the first protocol: their heartbeats carry readings.
    state: protocol.SessionState = field(default_factory=lambda: protocol.SessionState(protocol=1))

    def __post_init__(self) -> None:
        self.heard = machine.Heard(self.epoch)


def nodes(leases: Leases, entries: Mapping[NodeId, Entry], peers: Container[int], now: float) -> dict[NodeId, NodeNow]:
    """Return every node as it is known at this moment, after a look at all leases."""
    leases.look(now)
    held, awake = leases.brake.held, leases.awake_s(now)
    found: dict[NodeId, NodeNow] = {}
    for node_id, entry in entries.items():
        lease = leases.lease(node_id)
        found[node_id] = NodeNow(
            node_id=node_id,
            name=node_id,
            state=lease.state,
            silent_s=lease.silent_s(awake),
            is_heard=lease.heard_at is not None,
            is_connected=entry.stream in peers,
            devices=entry.devices,
            disk_free_bytes=0,
            applied_generation=entry.applied,
            sent_generation=entry.sent,
            session_epoch=entry.epoch,
            observation=entry.observation,
            observed_version=entry.version,
            is_held=node_id in held,
            is_flapping=lease.is_flapping(awake),
            returned_s=None if lease.returned_at is None else awake - lease.returned_at,
        )
    return found
