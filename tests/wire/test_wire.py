"""The wire of former releases: what they wrote is read, and a change that would break them is seen."""

import json
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorSet

from protos.slice.node.v1 import node_pb2
from protos.slice.routes.v1 import routes_pb2
from tests.wire import changes, freezing

RELEASES = sorted(file.stem for file in freezing.GOLDEN.glob("*.binpb"))


def frozen(release: str) -> FileDescriptorSet:
    return FileDescriptorSet.FromString((freezing.GOLDEN / f"{release}.binpb").read_bytes())


def today() -> FileDescriptorSet:
    """Return the wire that the checked-in stubs speak."""
    files = FileDescriptorSet()
    for module in (node_pb2, routes_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    return files


def lines() -> list[Any]:
    found = []
    for release in RELEASES:
        for number, line in enumerate(json.loads((freezing.GOLDEN / f"{release}.json").read_text())):
            found.append(pytest.param(line, id=f"{release}-{number}-{line['message'].rpartition('.')[2]}"))
    return found


def kind_of(full_name: str) -> Any:
    module = node_pb2 if full_name.startswith("slice.node.") else routes_pb2
    return getattr(module, full_name.rpartition(".")[2])


def test_former_wires_are_kept() -> None:
    assert RELEASES == ["1-many-machines", "1-one-machine"]


@pytest.mark.parametrize("line", lines())
def test_what_a_former_release_wrote_means_today_what_it_meant_then(line: Any) -> None:
    read = kind_of(line["message"]).FromString(bytes.fromhex(line["hex"]))
    assert freezing.words(read) == line["means"]


@pytest.mark.parametrize("release", RELEASES)
def test_a_former_release_reads_what_is_written_today_but_for_what_is_new(release: str) -> None:
    kinds, now = freezing.messages(frozen(release)), freezing.messages(today())
    for name, former in kinds.items():
        for branch in freezing.branches(former):
            read = former.FromString(freezing.filled(now[name], branch).SerializeToString())
            assert freezing.words(read) == freezing.words(freezing.filled(former, branch)), name


@pytest.mark.parametrize("release", RELEASES)
def test_nothing_of_a_former_wire_was_changed(release: str) -> None:
    assert changes.faults(frozen(release), today()) == []


def test_the_stubs_are_of_the_proto_files() -> None:
    assert changes.faults(today(), freezing.of_this_tree()) == []
    assert changes.faults(freezing.of_this_tree(), today()) == []


def message(files: FileDescriptorSet, name: str) -> DescriptorProto:
    return next(one for file in files.file for one in file.message_type if one.name == name)


def field(files: FileDescriptorSet, name: str, number: int) -> FieldDescriptorProto:
    return next(one for one in message(files, name).field if one.number == number)


def reuse(files: FileDescriptorSet) -> None:
    field(files, "Heartbeat", 4).name = "uptime_s"


def retype(files: FileDescriptorSet) -> None:
    field(files, "HelloAck", 4).type = FieldDescriptorProto.TYPE_STRING


def remove(files: FileDescriptorSet) -> None:
    message(files, "Hello").field.remove(field(files, "Hello", 12))


def single(files: FileDescriptorSet) -> None:
    field(files, "Observed", 2).label = FieldDescriptorProto.LABEL_OPTIONAL


def choose(files: FileDescriptorSet) -> None:
    field(files, "NodeMessage", 4).ClearField("oneof_index")


def other_message(files: FileDescriptorSet) -> None:
    field(files, "Desired", 4).type_name = ".slice.node.v1.ReplicaWant"


def in_a_map(files: FileDescriptorSet) -> None:
    message(files, "Hello").nested_type[0].field[1].type = FieldDescriptorProto.TYPE_UINT32


def other_method(files: FileDescriptorSet) -> None:
    files.file[0].service[1].method[0].client_streaming = False


def no_message(files: FileDescriptorSet) -> None:
    message(files, "Reject").name = "Refusal"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (reuse, "Heartbeat.disk_free_bytes = 4 is uptime_s now"),
        (retype, "HelloAck.lease_ms = 4 is of another type now"),
        (remove, "Hello.labels = 12 is gone and its number is not reserved"),
        (single, "Observed.replicas = 2 is of another type now"),
        (choose, "NodeMessage.goodbye = 4 is of another type now"),
        (other_message, "Desired.files = 4 is of another type now"),
        (in_a_map, "LabelsEntry.value = 2 is of another type now"),
        (other_method, "NodeControl.Session is gone or of another shape"),
        (no_message, "Reject is gone"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_change_that_breaks_the_former_release_is_seen(change: Any, told: str) -> None:
    changed = today()
    change(changed)
    assert told in changes.faults(frozen("1-many-machines"), changed)


def test_a_field_may_go_when_its_number_is_reserved_and_new_ones_may_come() -> None:
    changed = today()
    remove(changed)
    message(changed, "Hello").reserved_range.add(start=12, end=13)
    message(changed, "Hello").field.add(name="news", number=99, type=FieldDescriptorProto.TYPE_STRING, label=1)
    assert changes.faults(frozen("1-many-machines"), changed) == []


def test_every_message_of_a_former_wire_is_kept() -> None:
    for release in RELEASES:
        told = {line["message"] for line in json.loads((freezing.GOLDEN / f"{release}.json").read_text())}
        assert told == set(freezing.messages(frozen(release)))
