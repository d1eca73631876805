"""What doors tell of a model, from what the controller knows of it."""

from dataclasses import asdict

import pytest

from controller.api.routes_servicer import rendered
from controller.reconcile.cards import card
from controller.registry.model import Version
from controller.routes.model import Card, PublishedTable, Table
from controller.routes.table import table
from core.devices import DeviceKind, DeviceReading
from core.ids import DeviceId, NodeId
from gateway import table as doors
from tests.controller.test_pure import NOW, deployment, node, replica, routable_deployment

FACTS = {"architecture": "llama", "quantization": "Q8_0", "parameters": 134, "context_length": 8192, "heads": None}


def version(**fields: object) -> Version:
    values: dict = {
        "version_id": "ver_1",
        "model_id": "mod_1",
        "number": 1,
        "digest": "sha256:" + "a" * 64,
        "source": "hf:x/y",
        "format": "gguf",
        "size_bytes": 270,
        "chat_template_sha256": "",
        "facts": FACTS,
        "template_findings": (),
        "stage": "staging",
        "is_deleting": False,
        "created_at": NOW,
    }
    return Version(**{**values, **fields})


def device(name: str, kind: DeviceKind) -> DeviceReading:
    return DeviceReading(device_id=DeviceId(name), kind=kind, name=name, total_bytes=9, free_bytes=9)


BOX = {NodeId("nod_1"): node(devices=(device("cpu", DeviceKind.CPU), device("GPU-1", DeviceKind.NVIDIA)))}


def test_a_card_tells_the_version_the_served_context_and_one_replica_s_memory() -> None:
    replicas = [replica(promises={"cpu": 5, "GPU-1": 7}), replica(state="failed", promises={"GPU-1": 99})]
    found = card(deployment(settings={"context": 4096}), version(), replicas, BOX)
    assert asdict(found) | {"capabilities": ()} == asdict(
        Card(
            digest="a" * 64,
            size_bytes=270,
            format="gguf",
            architecture="llama",
            quantization="Q8_0",
            parameters=134,
            context_length=8192,
            served_context=4096,
            memory_bytes=12,
            device_bytes=7,
        )
    )
    assert "chat" in found.capabilities


@pytest.mark.parametrize("found", [None, version(digest="fake", facts={"parameters": -1})], ids=["none", "no file"])
def test_what_is_not_known_stays_empty(found: Version | None) -> None:
    made = card(deployment(), found, [], {})
    assert (made.digest, made.parameters, made.memory_bytes, made.served_context) == ("", 0, 0, 0)


def test_a_card_reaches_the_door_as_it_is() -> None:
    made = card(deployment(settings={"context": 4096}), version(), [replica()], BOX)
    routed = routable_deployment("m", [])
    published = table([type(routed)(**{**vars(routed), "card": made})], [], [], engine_seed=b"s")
    message = rendered(PublishedTable(version=1, table=Table(routes=published.routes)))
    found = doors.table_from(message).routes["m"].card
    assert asdict(found) == asdict(made) | {"capabilities": frozenset(made.capabilities)}
