"""Freezes the wire of a release: its descriptors, and every message as it writes it.

`python -m tests.wire.freezing NAME [COMMIT]` writes `golden/NAME.binpb` (a FileDescriptorSet) and `golden/NAME.json`
(each message's bytes, with every field set, and what they mean) from the .proto files of COMMIT, or of this tree. Run
before a release; what it wrote is never written again.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from grpc_tools import protoc

GOLDEN = Path(__file__).parent / "golden"
PROTOS = ("protos/slice/node/v1/node.proto", "protos/slice/routes/v1/routes.proto")
_DEPTH = 6
"""Messages nest less than this; a recursive one would end here."""


def compiled(sources: dict[str, str]) -> descriptor_pb2.FileDescriptorSet:
    """Return the descriptors of .proto texts by path."""
    with tempfile.TemporaryDirectory() as place:
        for path, text in sources.items():
            file = Path(place) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        out = Path(place) / "set.binpb"
        assert protoc.main(["protoc", f"-I{place}", f"--descriptor_set_out={out}", *sources]) == 0, "it compiles"
        return descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())


def of_this_tree() -> descriptor_pb2.FileDescriptorSet:
    """Return the descriptors of the .proto files that lie here."""
    return compiled({path: Path(path).read_text() for path in PROTOS})


def of_commit(commit: str) -> descriptor_pb2.FileDescriptorSet:
    """Return the descriptors of the .proto files of a commit."""
    return compiled({path: _at(commit, path) for path in PROTOS})


def _at(commit: str, path: str) -> str:
    return subprocess.run(("git", "show", f"{commit}:{path}"), check=True, capture_output=True, text=True).stdout


def messages(files: descriptor_pb2.FileDescriptorSet) -> dict[str, type[Message]]:
    """Return the classes of all messages, by full name."""
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    names = [f"{file.package}.{one.name}" for file in files.file for one in file.message_type]
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in names}


def filled(kind: type[Message], oneof: str = "") -> Message:
    """Return a message with every field set to something of its own; of a oneof's fields only `oneof`."""
    message = kind()
    _fill(message, oneof, _DEPTH)
    return message


def branches(kind: type[Message]) -> tuple[str, ...]:
    """Return the names of the fields of a message's oneof; ("",) when it has none."""
    found = tuple(field.name for field in kind.DESCRIPTOR.fields if _is_choice(field))
    return found or ("",)


def _is_choice(field: FieldDescriptor) -> bool:
    return field.containing_oneof is not None and not field.containing_oneof.name.startswith("_")


def _fill(message: Any, oneof: str, depth: int) -> None:
    for field in message.DESCRIPTOR.fields:
        if depth == 0 or (_is_choice(field) and field.name != oneof):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _fill_map(getattr(message, field.name), field.message_type, field)
        elif field.message_type is not None:
            place = getattr(message, field.name)
            if field.is_repeated:
                _fill(place.add(), "", depth - 1)
            else:
                place.SetInParent()
                _fill(place, "", depth - 1)
        elif field.is_repeated:
            getattr(message, field.name).append(_value(field))
        else:
            setattr(message, field.name, _value(field))


def _fill_map(place: Any, entry: Descriptor, field: FieldDescriptor) -> None:
    kind = entry.fields_by_name["value"]
    place[f"{field.name}-key"] = _value(kind) if kind.message_type is None else None


def _value(field: FieldDescriptor) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        text = f"{field.containing_type.name}.{field.name}"
        return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return True
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return field.number + 0.5
    return 1000 + field.number


def words(message: Message) -> Any:
    """Return a message as JSON values, by the names of the .proto."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def main(name: str, commit: str = "") -> None:
    """Write one release's wire."""
    files = of_commit(commit) if commit else of_this_tree()
    (GOLDEN / f"{name}.binpb").write_bytes(files.SerializeToString(deterministic=True))
    lines = [
        {
            "message": full_name,
            "hex": message.SerializeToString(deterministic=True).hex(),
            "means": words(message),
        }
        for full_name, kind in messages(files).items()
        for message in (filled(kind, branch) for branch in branches(kind))
    ]
    (GOLDEN / f"{name}.json").write_text("[\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
