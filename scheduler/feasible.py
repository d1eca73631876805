"""Which devices could take one more replica, and why each of the other nodes cannot.

In: a deployment, the nodes, the ledger of what is promised. Out: `Choices` with candidates and per-node reasons, or the
one `Refusal` that sums the reasons up. Called by `scheduler.plan`. Does not rank.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from core.devices import DeviceKind
from core.ids import DeviceId, NodeId
from core.states import NodeState
from core.units import text_from_bytes, text_from_seconds
from scheduler.footprint import Ledger
from scheduler.outcome import NodeReason, Refusal
from scheduler.snapshot import DeploymentView, DeviceView, NodeView

NODE_READY = "node_ready"
NODE_APPROVED = "node_approved"
NODE_UNCORDONED = "node_uncordoned"
ENGINE_USABLE = "engine_usable"
MEMORY_FREED = "memory_freed"
DEPLOYMENT_CHANGED = "deployment_changed"
"""Kinds of events that cure refusals; shown to people, so that they know what is waited for."""

Freed = Mapping[tuple[NodeId, DeviceId], int]


class Candidate(NamedTuple):
    """One device that has room: `left_bytes` may still be promised after this replica."""

    node: NodeView
    device: DeviceView
    left_bytes: int


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Every device with room, and of the nodes without one the filter that dropped them (its number) and why."""

    candidates: tuple[Candidate, ...]
    dropped: tuple[tuple[int, NodeReason], ...]

    @property
    def is_short_of_memory(self) -> bool:
        """Whether some node was dropped for nothing but its memory."""
        return any(stage == _MEMORY for stage, _ in self.dropped)


# The filters in their order; a node is named with the first that drops it.
_PINNED, _SILENT, _UNAPPROVED, _CORDONED, _FAILED, _ENGINE, _DEVICE, _MEMORY = range(8)


def silence(node: NodeView) -> str:
    """Return why a node that is not ready cannot be used, e.g. `has not been heard of for 9s`; empty when it can."""
    if node.state is NodeState.READY:
        return ""
    if node.state is NodeState.OFFLINE:
        return f"{_GOODBYE} {text_from_seconds(node.silent_s)} ago"
    return f"{_UNHEARD} for {text_from_seconds(node.silent_s)}"


_GOODBYE = "said goodbye"
_UNHEARD = "has not been heard of"


def is_silence(reason: str) -> bool:
    """Return whether `reason`, one of a refusal's nodes, was made by `silence`."""
    return reason.startswith((_GOODBYE, _UNHEARD))


def choices(
    deployment: DeploymentView,
    need_bytes: int,
    nodes: Sequence[NodeView],
    ledger: Ledger,
    *,
    failed_on: frozenset[NodeId],
    freed: Freed | None = None,
) -> Choices:
    """Return where a replica of `need_bytes` fits, thinking the bytes of `freed` free already."""
    candidates: list[Candidate] = []
    dropped: list[tuple[int, NodeReason]] = []
    for node in nodes:
        found = _plain_reason(deployment, node, failed_on)
        if found is None:
            fitting, found = _fitting(deployment, need_bytes, node, ledger, freed or {})
            candidates += fitting
        if found is not None:
            dropped.append((found[0], NodeReason(node_id=node.node_id, name=node.name, reason=found[1])))
    return Choices(candidates=tuple(candidates), dropped=tuple(dropped))


def _plain_reason(deployment: DeploymentView, node: NodeView, failed_on: frozenset[NodeId]) -> tuple[int, str] | None:
    if deployment.node_name and deployment.node_name != node.name:
        return _PINNED, f"is not {deployment.node_name}, to which it is pinned"
    if silent := silence(node):
        return _SILENT, silent
    if not node.is_approved:
        return _UNAPPROVED, "waits for `slice node approve`"
    if node.is_cordoned:
        return _CORDONED, "is cordoned"
    if node.node_id in failed_on:
        return _FAILED, "has failed to run it already"
    if deployment.is_contained and node.container_fault:
        return _ENGINE, f"cannot run containers: {node.container_fault}"
    kinds = _usable_kinds(deployment, node)
    if kinds is None:
        reason = node.engine_reasons.get(deployment.engine, "")
        return _ENGINE, f"cannot run {deployment.engine}" + (f": {reason}" if reason else "")
    if not any(device.kind in kinds for device in node.devices):
        names = " or ".join(sorted(kind.value for kind in kinds)) or "known"
        return _DEVICE, f"has no {names} device for {deployment.engine}"
    return None


def _usable_kinds(deployment: DeploymentView, node: NodeView) -> frozenset[DeviceKind] | None:
    """Return the kinds of devices on which the engine can run on `node`, or None when it cannot run there at all.

    1. External: the CPU stands for the node that watches it.
    2. In a container, and unusable as a process: whatever the node has; the image brings the rest.
    3. Else what the node says.
    """
    if deployment.is_external:
        return frozenset({DeviceKind.CPU})
    kinds = node.engines.get(deployment.engine)
    return frozenset(DeviceKind) if kinds is None and deployment.is_contained else kinds


def _fitting(
    deployment: DeploymentView, need_bytes: int, node: NodeView, ledger: Ledger, freed: Freed
) -> tuple[list[Candidate], tuple[int, str] | None]:
    kinds = _usable_kinds(deployment, node) or frozenset()
    here = (
        {device_id: count for (node_id, device_id), count in freed.items() if node_id == node.node_id} if freed else {}
    )
    fitting: list[Candidate] = []
    best: tuple[int, DeviceView] | None = None
    for device in node.devices:
        if device.kind not in kinds:
            continue
        room = ledger.promisable_bytes(node, device, here)
        if room >= need_bytes:
            fitting.append(Candidate(node=node, device=device, left_bytes=room - need_bytes))
        elif best is None or room > best[0]:
            best = (room, device)
    if fitting or best is None:
        return fitting, None
    room, device = best
    where = "memory" if device.kind is DeviceKind.CPU else f"device {device.device_id}"
    text = f"needs {text_from_bytes(need_bytes)}, {text_from_bytes(room)} of {text_from_bytes(device.total_bytes)}"
    return [], (_MEMORY, f"has too little room: it {text} of {where} can be promised")


def refusal_before_nodes(deployment: DeploymentView, nodes: Sequence[NodeView]) -> Refusal | None:
    """Return the refusal that needs no look at memory: no node at all, all silent or cordoned, or footprint unknown."""
    if not nodes:
        return _refusal(
            deployment,
            "placement.no_node",
            "no machine has joined yet",
            "start a node agent on a machine with `slice up` or `slice node join`",
            (),
            {NODE_READY},
        )
    if deployment.footprint.total_bytes is None:
        return _refusal(
            deployment,
            "placement.footprint_unknown",
            f"nobody knows how much memory {deployment.name} needs",
            "give memory_bytes in its settings, or pull a model whose header says its sizes",
            (),
            {DEPLOYMENT_CHANGED},
        )
    return None


def no_other_node(deployment: DeploymentView) -> Refusal:
    """Return the refusal of a successor for which there is no node but the one that its predecessor is to leave."""
    return _refusal(
        deployment,
        "placement.no_node",
        "there is no other node",
        "start a node agent on another machine with `slice node join`",
        (),
        {NODE_READY},
    )


def tried_enough(deployment: DeploymentView, names: Sequence[str]) -> Refusal:
    """Return the refusal of a successor when as many as may be tried have failed, on the nodes `names`."""
    code, hint, cures = _SUMMARY[_FAILED]
    message = f"its successor has failed to run already, on {' and '.join(names)}"
    return _refusal(deployment, code, message, hint, (), cures | {DEPLOYMENT_CHANGED})


def refusal(deployment: DeploymentView, found: Choices, *, placed: int) -> Refusal | None:
    """Return why no node takes one more replica, `placed` of the wanted ones having a place.

    Return None when every node that could be asked has failed to run it already: the failed replicas say why.
    The code is that of the filter which the nodes got furthest to, since curing that one is the shortest way.
    """
    asked = [stage for stage, _ in found.dropped if stage not in (_PINNED, _SILENT, _UNAPPROVED, _CORDONED)]
    if asked and all(stage == _FAILED for stage in asked):
        return None
    made = why(deployment, found)
    if found.dropped and all(stage == _PINNED for stage, _ in found.dropped):
        made = replace(made, message=f"{made.message}, and no node of that name has joined")
    if deployment.replicas <= 1:
        return made
    return replace(made, message=f"{placed} of {deployment.replicas} replicas have a place: {made.message}")


def why(deployment: DeploymentView, found: Choices) -> Refusal:
    """Return the refusal that sums up why each of the nodes in `found` takes no replica."""
    stage = max((stage for stage, _ in found.dropped), default=_SILENT)
    reasons = tuple(reason for _, reason in found.dropped)
    furthest = [reason for at, reason in found.dropped if at == stage]
    code, hint, cures = _SUMMARY[stage]
    message = "; ".join(f"node {reason.name} {reason.reason}" for reason in furthest[:3])
    if stage == _PINNED:
        message = f"it may run on node {deployment.node_name} only"
    elif len(furthest) > 3:
        message += f"; and {len(furthest) - 3} more nodes"
    return _refusal(deployment, code, message, hint, reasons, cures | {NODE_READY, DEPLOYMENT_CHANGED})


_SUMMARY: Mapping[int, tuple[str, str, frozenset[str]]] = {
    _PINNED: (
        "placement.no_node",
        "`slice node list` shows the nodes; start a node agent there, or deploy it without --node",
        frozenset({NODE_READY}),
    ),
    _SILENT: (
        "placement.no_node",
        "look whether the node agent runs there and reaches the controller",
        frozenset({NODE_READY}),
    ),
    _UNAPPROVED: (
        "placement.no_node",
        "`slice node approve NODE` lets a node work",
        frozenset({NODE_APPROVED}),
    ),
    _CORDONED: (
        "placement.no_node",
        "`slice node uncordon NODE` lets a node take replicas again",
        frozenset({NODE_UNCORDONED}),
    ),
    _FAILED: ("placement.no_node", "read the failed replica's message, then deploy again", frozenset()),
    _ENGINE: (
        "placement.engine_unusable",
        "cure the reason on a node, or deploy with another engine",
        frozenset({ENGINE_USABLE}),
    ),
    _DEVICE: (
        "placement.engine_unusable",
        "add a node with such a device, or deploy with another engine",
        frozenset({ENGINE_USABLE}),
    ),
    _MEMORY: (
        "placement.insufficient_memory",
        "free memory, stop another deployment, or ask for less (fewer slots, a shorter context)",
        frozenset({MEMORY_FREED}),
    ),
}


def _refusal(
    deployment: DeploymentView,
    code: str,
    message: str,
    hint: str,
    nodes: tuple[NodeReason, ...],
    cured_by: Iterable[str],
) -> Refusal:
    return Refusal(
        deployment_id=deployment.deployment_id,
        code=code,
        message=message,
        hint=hint,
        nodes=nodes,
        cured_by=frozenset(cured_by),
    )
