"""What doors tell of a model: from a deployment's version, settings and promises. Called by `publish`. Pure.

It must hold nothing that moves by itself: each change is a new table for every door.
"""

from collections.abc import Iterable, Mapping

from adapters import registry as engines
from controller.deployments.model import Deployment, Replica
from controller.fleet.model import NodeNow
from controller.registry.model import Version
from controller.routes.model import Card
from core.devices import DeviceKind
from core.ids import NodeId
from core.states import SERVING, ReplicaState

_DIGEST = "sha256:"


def card(row: Deployment, version: Version | None, replicas: Iterable[Replica], live: Mapping[NodeId, NodeNow]) -> Card:
    """Return the card of a deployment's route; without its version only what the engine can do is known."""
    serving = [one for one in replicas if ReplicaState(one.state) in SERVING]
    facts = version.facts if version is not None else {}
    digest = version.digest if version is not None else ""
    return Card(
        digest=digest.removeprefix(_DIGEST) if digest.startswith(_DIGEST) else "",
        size_bytes=version.size_bytes if version is not None else 0,
        format=version.format if version is not None else "",
        architecture=str(facts.get("architecture") or ""),
        quantization=str(facts.get("quantization") or ""),
        parameters=_number(facts.get("parameters")),
        context_length=_number(facts.get("context_length")),
        served_context=_number(row.settings.get("context")),
        embedding_length=_number(facts.get("embedding_length")),
        capabilities=tuple(sorted(one.value for one in engines.adapter(row.engine).capabilities(row.settings))),
        memory_bytes=max((sum(one.promises.values()) for one in serving), default=0),
        device_bytes=max((_elsewhere(one, live.get(NodeId(one.node_id))) for one in serving), default=0),
    )


def _elsewhere(replica: Replica, node: NodeNow | None) -> int:
    """Return the bytes promised to `replica` on other devices than the CPU."""
    cpus = {device.device_id for device in node.devices if device.kind is DeviceKind.CPU} if node is not None else set()
    return sum(count for device, count in replica.promises.items() if device not in cpus)


def _number(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
