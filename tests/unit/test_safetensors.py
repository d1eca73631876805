"""The safetensors reader: agrees with the library on real files, and is safe on any bytes."""

import io
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load, save

from core.errors import Failure
from core.formats.safetensors import BITS, MAX_HEADER_BYTES, read_header


def image(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def tensor(kind: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    listed = [list(value) if isinstance(value, tuple) else value for value in (shape, offsets)]
    return {"dtype": kind, "shape": listed[0], "data_offsets": listed[1]}


def read(data: bytes):
    return read_header(io.BytesIO(data), len(data), "m.safetensors")


def fault(data: bytes, code: str = "format.safetensors_invalid") -> str:
    with pytest.raises(Failure) as caught:
        read(data)
    assert caught.value.code == code
    assert caught.value.hint
    return caught.value.message


def test_a_file_of_the_library_is_read_back():
    tensors = {
        "model.embed.weight": np.zeros((5, 4), np.float16),
        "scalar": np.array(1.5, np.float32),
        "none": np.zeros((0, 7), np.int64),
    }
    header = read(save(tensors, metadata={"format": "pt"}))
    assert header.names == set(tensors)
    assert header.elements == {"F16": 20, "F32": 1, "I64": 0}
    assert header.tensor_bytes == 44


def test_a_file_without_tensors_is_read():
    assert read(image({})).tensor_bytes == 0
    assert read(image({"__metadata__": {"a": "b"}})).names == frozenset()


def test_a_header_may_be_padded_with_spaces():
    assert read(image(json.dumps({"a": tensor()}).encode() + b"   ", b"1234")).names == {"a"}


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(["u1", "<i2", "<f4", "<f8"]), st.lists(st.integers(0, 4), max_size=3)),
        max_size=5,
    )
)
def test_whatever_the_library_writes_is_read_as_it_means_it(shapes):
    tensors = {name: np.zeros(shape, kind) for name, (kind, shape) in shapes.items()}
    header = read(save(tensors))
    assert header.names == set(tensors)
    assert header.tensor_bytes == sum(one.nbytes for one in tensors.values())
    assert sum(header.elements.values()) == sum(one.size for one in tensors.values())


@given(st.data())
def test_what_is_taken_the_library_takes_too(data):
    """Any byte of a good file is changed: the reader never takes what the library refuses."""
    good = bytearray(save({"a": np.zeros(3, np.int16), "b": np.zeros((2, 2), np.uint8)}))
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(good[: data.draw(st.integers(0, len(good)))])
    try:
        read(cut)
    except Failure as failure:
        assert failure.code in {"format.safetensors_invalid", "format.refused"}  # noqa: PT017
        return
    try:
        load(cut)
    except SafetensorError as error:
        # The one known difference: we take a header whose text the library wants ASCII-escaped, or whose order differs.
        pytest.fail(f"the library refuses what we took: {error}")
    except (KeyError, TypeError, AttributeError):
        pass  # a type that numpy has not


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    for candidate in (data, struct.pack("<Q", len(data)) + data, image(b"{" + data + b"}")):
        try:
            read(candidate)
        except Failure as failure:
            assert failure.code in {"format.safetensors_invalid", "format.refused"}  # noqa: PT017


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        pytest.param(
            {"w": tensor(offsets=(0, 4))}, b"", "tensor 'w' ends at byte 73, the file has 69 bytes", id="short"
        ),
        pytest.param({"w": tensor(shape=(2,))}, b"1234", "tensor 'w' of 2 x F32 needs 8 bytes", id="size"),
        pytest.param({"w": tensor(kind="F33")}, b"1234", "tensor 'w' has the unknown type 'F33'", id="type"),
        pytest.param({"w": tensor(kind=["F32"])}, b"1234", "unknown type", id="type-list"),
        pytest.param({"w": tensor(shape=(True,))}, b"1234", "impossible shape", id="bool"),
        pytest.param({"w": tensor(shape=(1.0,))}, b"1234", "impossible shape", id="float"),
        pytest.param({"w": tensor(shape=(-1, -1))}, b"1234", "impossible shape", id="negative"),
        pytest.param({"w": tensor(shape=(2**40, 2**40))}, b"1234", "impossible shape", id="huge"),
        pytest.param({"w": tensor(shape=(1,) * 17)}, b"1234", "impossible shape", id="dimensions"),
        pytest.param({"w": tensor(shape=4)}, b"1234", "impossible shape", id="no-list"),
        pytest.param({"w": tensor(offsets=(4, 0))}, b"1234", "impossible offsets", id="backwards"),
        pytest.param({"w": tensor(offsets=(0, 2**70))}, b"1234", "impossible offsets", id="far"),
        pytest.param({"w": tensor(offsets=(0,))}, b"1234", "impossible offsets", id="one"),
        pytest.param({"w": tensor(kind="F4", shape=(1,), offsets=(0, 1))}, b"1", "impossible shape", id="half-a-byte"),
        pytest.param({"w": 3}, b"1234", "is not described", id="number"),
        pytest.param({"w": {**tensor(), "x": 1}}, b"1234", "is not described", id="more"),
        pytest.param({"a": tensor(), "b": tensor(offsets=(2, 6))}, b"123456", "'a' and 'b' overlap", id="overlap"),
        pytest.param({"a": tensor(offsets=(2, 6))}, b"123456", "2 bytes before tensor 'a' belong", id="hole"),
        pytest.param({"a": tensor()}, b"123456", "its last 2 bytes belong to no tensor", id="rest"),
        pytest.param({"__metadata__": {"a": 1}}, b"", "metadata are not texts", id="metadata"),
        pytest.param({"__metadata__": []}, b"", "metadata are not texts", id="metadata-list"),
        pytest.param({"x" * 2000: tensor()}, b"1234", "has a name of 2000 characters", id="name"),
        pytest.param(b'{"a":1,"a":2}', b"", "the name 'a' stands there twice", id="twice"),
        pytest.param(b'{"a":NaN}', b"", "NaN is no JSON", id="nan"),
        pytest.param(b'{"a":' + b"[" * 100_000, b"", "it is not JSON", id="deep"),
        pytest.param(b'{"a":' + b"9" * 10_000 + b"}", b"", "it is not JSON", id="digits"),
        pytest.param(b'{"\xff":1}', b"", "it is not JSON", id="utf8"),
        pytest.param(b"[1]      ", b"", "its header does not begin with {", id="list"),
        pytest.param(b"{" * 400_000, b"", "describes more than 262144 tensors", id="many"),
    ],
)
def test_a_bad_header_is_named(header, data, words):
    assert words in fault(image(header, data))


def test_a_header_longer_than_the_file_or_the_bound_is_named():
    assert "its header should end at byte 1008, the file has 10 bytes" in fault(image(b"{}", length=1000))
    assert f"more than {MAX_HEADER_BYTES}" in fault(image(b"{}", length=2**63 - 1))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}q\x00.", id="pickle"),
        pytest.param(b"PK\x03\x04" + bytes(40), id="torch-zip"),
    ],
)
def test_a_pickle_under_a_safetensors_name_is_refused(data):
    message = fault(data, "format.refused")
    assert message == "m.safetensors starts with a pickle or zip signature; only safetensors and GGUF are accepted"


def test_a_length_that_looks_like_a_pickle_is_no_reason_to_refuse():
    raw = json.dumps({"a": tensor(kind="U8", shape=(0,), offsets=(0, 0))}).encode()
    padded = image(raw + b" " * (0x0480 - len(raw)))
    assert padded[:2] == b"\x80\x04"
    assert read(padded).names == {"a"}


def test_other_bytes_are_refused():
    assert "neither a GGUF nor a safetensors file" in fault(b"<!DOCTYPE html><html>", "format.refused")
    assert "neither" in fault(b"", "format.refused")


def test_every_type_has_a_whole_number_of_bits():
    assert all(bits in (4, 6, 8, 16, 32, 64) for bits in BITS.values())
