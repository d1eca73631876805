"""What in a wire breaks the release before it: pure, on descriptors."""

from collections.abc import Iterator

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorSet


def faults(former: FileDescriptorSet, now: FileDescriptorSet) -> list[str]:
    """Return every change from `former` to `now` that a program of the former wire would misread, one line each.

    1. A message or a method is gone, or a method is of another shape. 2. A field is gone and its number not reserved.
    3. Its number means something else: another name, type, message, or one instead of many. 4. It went into or out of
    a oneof, or lost or gained presence.
    """
    found: list[str] = []
    packages = {file.package: file for file in now.file}
    for file in former.file:
        if file.package not in packages:
            found.append(f"{file.package} is gone")
            continue
        present = packages[file.package]
        kinds = {one.name: one for one in present.message_type}
        for kind in file.message_type:
            found += _of_message(kind, kinds.get(kind.name))
        services = {(one.name, method.name): method for one in present.service for method in one.method}
        for service in file.service:
            for method in service.method:
                if services.get((service.name, method.name)) != method:
                    found.append(f"{service.name}.{method.name} is gone or of another shape")
    return found


def _of_message(former: DescriptorProto, now: DescriptorProto | None) -> Iterator[str]:
    if now is None:
        yield f"{former.name} is gone"
        return
    fields = {field.number: field for field in now.field}
    for field in former.field:
        name = f"{former.name}.{field.name} = {field.number}"
        present = fields.get(field.number)
        if present is None:
            if not any(span.start <= field.number < span.end for span in now.reserved_range):
                yield f"{name} is gone and its number is not reserved"
        elif present.name != field.name:
            yield f"{name} is {present.name} now"
        elif _shape(present, now) != _shape(field, former):
            yield f"{name} is of another type now"
    nested = {one.name: one for one in now.nested_type}
    for one in former.nested_type:
        yield from _of_message(one, nested.get(one.name))


def _shape(field: FieldDescriptorProto, owner: DescriptorProto) -> tuple[object, ...]:
    choice = owner.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
    return field.type, field.label, field.type_name, field.proto3_optional, choice
