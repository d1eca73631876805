"""How many bytes of a device may still be promised.

Believes the device, not the book: what the device says is free, less what has been promised but is not used yet, less a
reserve. Called by `scheduler.plan`, which books each start of a plan in a `Ledger` before it looks for room for the
next one. Reads nothing but the snapshot.
"""

from collections.abc import Mapping

from core.devices import DeviceKind
from core.ids import DeviceId, NodeId
from core.states import OCCUPYING
from scheduler.snapshot import DeviceView, NodeView, ReplicaView, Snapshot


def unused_promise_bytes(replica: ReplicaView, device_id: DeviceId) -> int:
    """Return the bytes of `device_id` that were promised to `replica` and that it does not use yet, never negative.

    A replica that ended or gave up holds no promise. `measured_bytes` is the replica's sum over its devices, so it is
    shared out in proportion to the promises.
    """
    promise = replica.promises.get(device_id, 0)
    if replica.state not in OCCUPYING or promise <= 0:
        return 0
    whole = sum(replica.promises.values())
    return max(0, promise - replica.measured_bytes * promise // whole)


def held_bytes(replica: ReplicaView, device_id: DeviceId) -> int:
    """Return the bytes of `device_id` that come free when `replica` is gone: used ones and promised ones."""
    promise = replica.promises.get(device_id, 0)
    if replica.state not in OCCUPYING or promise <= 0:
        return 0
    whole = sum(replica.promises.values())
    return max(promise, replica.measured_bytes * promise // whole)


class Ledger:
    """The room of every device while one plan is being made; owned by that one call."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._reserve_bytes = snapshot.cpu_reserve_bytes
        self._taken: dict[tuple[NodeId, DeviceId], int] = {}
        self._promised: dict[tuple[NodeId, DeviceId], int] = {}
        for replica in snapshot.replicas:
            if replica.state not in OCCUPYING:
                continue
            for device_id, promise in replica.promises.items():
                self._take(replica.node_id, device_id, unused_promise_bytes(replica, device_id), promise)

    def _take(self, node_id: NodeId, device_id: DeviceId, unused: int, promise: int) -> None:
        key = (node_id, device_id)
        self._taken[key] = self._taken.get(key, 0) + unused
        self._promised[key] = self._promised.get(key, 0) + promise

    def promisable_bytes(self, node: NodeView, device: DeviceView, freed: Mapping[DeviceId, int] | None = None) -> int:
        """Return the bytes that may still be promised on `device`, with `freed` bytes thought to be free; never < 0.

        The device's reading and a replica's measured bytes are not of the same instant: a reading from before an engine
        loaded, with its use from after it, would give its bytes twice. So the promises of all, used or not, are never
        more than the device has.
        """
        key = (node.node_id, device.device_id)
        reserve = self._reserve_bytes if device.kind is DeviceKind.CPU else 0
        more = (freed or {}).get(device.device_id, 0)
        free = min(device.free_bytes + more, device.total_bytes) - self._taken.get(key, 0)
        unpromised = device.total_bytes - max(0, self._promised.get(key, 0) - more)
        return max(0, min(free, unpromised) - reserve)

    def book(self, node_id: NodeId, promises: Mapping[DeviceId, int]) -> None:
        """Take `promises` off the room of the node's devices."""
        for device_id, count in promises.items():
            self._take(node_id, device_id, count, count)
