"""The GGUF reader: right on real headers, and safe on any bytes."""

import contextlib
import hashlib
import io
import json
import random
import struct
import tracemalloc

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.facts import facts_from_json
from core.errors import Failure
from core.formats import ggml_types
from core.formats.gguf import MAX_ARRAY_ELEMENTS, MAX_ARRAY_STRINGS, joined, read_header
from tests.ggufs import CHAT_TEMPLATE, VOCABULARY, write_random_llama

U8, I32, F32, BOOL, STRING, ARRAY, U64 = 0, 5, 6, 7, 8, 9, 10


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def image(
    *, pairs: list[bytes] = (), tensors: list[bytes] = (), data: int = 0, version: int = 3, counts=None, align: int = 32
) -> bytes:
    n_tensors, n_pairs = counts or (len(tensors), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_pairs) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % align) + bytes(data)


def read(data: bytes):
    return read_header(io.BytesIO(data), len(data))


def fault(data: bytes) -> str:
    with pytest.raises(Failure) as caught:
        read(data)
    assert caught.value.code == "format.gguf_invalid"
    return caught.value.message


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> bytes:
    place = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return write_random_llama(place, seed=3, layers=3, embedding=64, heads=4, kv_heads=2, context=128).read_bytes()


def test_a_written_model_is_read_back(real):
    header = read(real)
    assert (header.version, header.size_bytes) == (3, len(real))
    assert (header.architecture, header.quantization) == ("llama", "F32")
    assert (header.layers, header.heads, header.kv_heads) == (3, 4, 2)
    assert (header.key_length, header.value_length, header.embedding_length) == (16, 16, 64)
    assert (header.vocabulary, header.context_length, header.feed_forward_length) == (VOCABULARY, 128, 128)
    assert header.parameters == 2 * VOCABULARY * 64 + 64 + 3 * (2 * 64 + 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    assert header.tensor_bytes == 4 * header.parameters


def test_the_chat_template_is_known_by_its_digest(real):
    assert read(real).chat_template_sha256 == hashlib.sha256(CHAT_TEMPLATE.encode()).hexdigest()
    assert read(image()).chat_template_sha256 == ""


def test_the_facts_survive_the_way_to_the_controller(real):
    header = read(real)
    facts = facts_from_json(header.facts_json())
    assert (facts.format, facts.size_bytes, facts.tensor_bytes) == ("gguf", len(real), header.tensor_bytes)
    assert (facts.layers, facts.kv_heads, facts.heads, facts.vocabulary) == (3, 2, 4, VOCABULARY)
    assert set(json.loads(header.facts_json())) == {one for one in facts.__dataclass_fields__}


@pytest.mark.parametrize(
    "broken",
    [
        "[]",
        "nonsense",
        '{"layers": -1}',
        '{"layers": 1.5}',
        '{"layers": true}',
        '{"layers": 9223372036854775808}',
        '{"format": 7}',
        "[" * 100_000,
    ],
)
def test_facts_of_the_wrong_shape_are_refused(broken):
    with pytest.raises(Failure):
        facts_from_json(broken)


def test_facts_that_a_newer_node_adds_are_ignored():
    assert facts_from_json('{"format": "gguf", "size_bytes": 9, "colour": "red"}').size_bytes == 9


def test_version_2_is_read_too():
    assert read(image(version=2)).version == 2


def test_the_quantisation_falls_back_to_the_most_common_tensor_type():
    tensors = [tensor("a", [64], 0, 0), tensor("b", [512], 2, 256)]
    assert read(image(tensors=tensors, data=544)).quantization == "Q4_0"


def test_the_file_type_names_the_quantisation():
    assert read(image(pairs=[pair("general.file_type", 4, struct.pack("<I", 15))])).quantization == "Q4_K_M"


def test_kv_heads_are_those_of_all_heads_without_grouping_and_the_largest_where_layers_differ():
    base = [
        pair("general.architecture", STRING, text("x")),
        pair("x.attention.head_count", 4, struct.pack("<I", 8)),
        pair("x.embedding_length", 4, struct.pack("<I", 64)),
    ]
    assert read(image(pairs=base)).kv_heads == 8
    per_layer = pair("x.attention.head_count_kv", ARRAY, struct.pack("<IQ3i", I32, 3, 1, 4, 2))
    assert read(image(pairs=[*base, per_layer])).kv_heads == 4


def test_what_the_header_does_not_say_is_unknown_and_not_zero():
    header = read(image(pairs=[pair("general.architecture", STRING, text("mamba"))]))
    assert (header.layers, header.kv_heads, header.key_length, header.context_length) == (None, None, None, None)


def test_the_tables_agree_with_the_gguf_package():
    for kind in gguf.GGMLQuantizationType:
        assert ggml_types.TENSOR_TYPES[kind.value] == (kind.name, *gguf.GGML_QUANT_SIZES[kind])
    for kind in gguf.LlamaFileType:
        if kind.name != "GUESSED":
            assert ggml_types.FILE_TYPES[kind.value] == kind.name.split("_", 1)[1]


HUGE = 2**64 - 1
FAULTS = {
    "empty": (b"", "ends early"),
    "another file": (b"PK\x03\x04" + bytes(60), "does not begin with GGUF"),
    "version 1": (image(version=1), "version 1 is not known"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(16), "big-endian"),
    "too many tensors": (image(counts=(65_537, 0)), "65537 tensors"),
    "too many entries": (image(counts=(0, HUGE)), "metadata entries"),
    "cut header": (image(counts=(0, 5)), "ends early"),
    "huge key": (image(pairs=[struct.pack("<Q", HUGE)], counts=(0, 1)), "a metadata key"),
    "huge text": (image(pairs=[text("k") + struct.pack("<IQ", STRING, 2**24 + 1)]), "value of 'k'"),
    "text beyond the file": (image(pairs=[text("k") + struct.pack("<IQ", STRING, 2**24)]), "ends early"),
    "huge array": (
        image(pairs=[text("k") + struct.pack("<IIQ", ARRAY, U8, MAX_ARRAY_ELEMENTS + 1)]),
        "elements in 'k'",
    ),
    "too many strings": (
        image(pairs=[text("k") + struct.pack("<IIQ", ARRAY, STRING, MAX_ARRAY_STRINGS + 1)]),
        "strings",
    ),
    "array beyond the file": (image(pairs=[text("k") + struct.pack("<IIQ", ARRAY, U64, 1000)]), "ends early"),
    "array of arrays": (image(pairs=[text("k") + struct.pack("<IIQ", ARRAY, ARRAY, 1)]), "unusable type 9"),
    "unknown value type": (image(pairs=[pair("k", 13, b"")]), "unknown type 13"),
    "key twice": (image(pairs=[pair("k", U8, b"\0")] * 2), "twice"),
    "key not UTF-8": (image(pairs=[text(b"\xff") + struct.pack("<I", U8) + b"\0"]), "not UTF-8"),
    "alignment 0": (image(pairs=[pair("general.alignment", 4, struct.pack("<I", 0))]), "alignment 0"),
    "alignment 48": (image(pairs=[pair("general.alignment", 4, struct.pack("<I", 48))]), "alignment 48"),
    "alignment 8192": (image(pairs=[pair("general.alignment", 4, struct.pack("<I", 8192))]), "alignment 8192"),
    "five dimensions": (image(tensors=[tensor("t", [1] * 5)], data=64), "5 dimensions"),
    "no dimension": (image(tensors=[tensor("t", [])], data=64), "0 dimensions"),
    "empty tensor": (image(tensors=[tensor("t", [0, 4])], data=64), "impossible shape"),
    "overflowing shape": (image(tensors=[tensor("t", [2**40, 2**40])], data=64), "impossible shape"),
    "unknown tensor type": (image(tensors=[tensor("t", [4], 4)], data=64), "unknown type 4"),
    "row no multiple of a block": (image(tensors=[tensor("t", [33], 2)], data=64), "32 elements in a block of Q4_0"),
    "unaligned tensor": (image(tensors=[tensor("t", [4], 0, 4)], data=64), "multiple of 32"),
    "tensor beyond the file": (image(tensors=[tensor("t", [16], 0, 32)], data=64), "ends 32 bytes behind"),
    "offset near 2^64": (image(tensors=[tensor("t", [4], 0, HUGE - 31)], data=64), "behind the end"),
    "overlapping tensors": (image(tensors=[tensor("a", [16]), tensor("b", [4], 0, 32)], data=96), "overlap"),
}


@pytest.mark.parametrize(("data", "words"), FAULTS.values(), ids=FAULTS.keys())
def test_a_faulty_file_is_refused_with_its_fault(data, words):
    assert words in fault(data)


def test_a_model_that_lost_its_end_is_refused(real):
    assert "truncated" in fault(real[:-1])


@pytest.mark.parametrize("kind", [F32, BOOL, STRING], ids=["float", "bool", "text"])
def test_a_count_of_the_wrong_type_is_taken_as_unknown(kind):
    value = {F32: struct.pack("<f", 3.0), BOOL: b"\1", STRING: text("3")}[kind]
    pairs = [pair("general.architecture", STRING, text("x")), pair("x.block_count", kind, value)]
    assert read(image(pairs=pairs)).layers in (None, 1)


def outcome(data: bytes) -> None:
    """Read `data`; only our own failure may come out."""
    with contextlib.suppress(Failure):
        read(data)


@given(st.binary(max_size=400))
def test_any_bytes_give_a_header_or_a_failure(data):
    outcome(data)


@given(st.integers(2, 3), st.binary(max_size=400), st.integers(0, 3), st.integers(0, 3))
def test_any_bytes_behind_a_right_beginning_give_a_header_or_a_failure(version, data, tensors, pairs):
    outcome(b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + data)


@given(st.integers(0, 2**32), st.integers(1, 12))
def test_a_real_header_with_changed_bytes_gives_a_header_or_a_failure(real, seed, changes):
    source = random.Random(seed)
    damaged = bytearray(real)
    for _ in range(changes):
        damaged[source.randrange(9000)] = source.choice([0, 1, 2, 127, 128, 255, source.randrange(256)])
    outcome(bytes(damaged))


def test_a_big_claim_costs_no_memory():
    many = [text(f"k{number}") + struct.pack("<IIQ", ARRAY, U8, 1_000_000) + bytes(1_000_000) for number in range(20)]
    data = image(pairs=many)
    tracemalloc.start()
    try:
        read(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_no_tensor_data_is_read(real):
    class Counting(io.BytesIO):
        furthest = 0

        def read(self, size: int | None = -1, /) -> bytes:
            found = super().read(size)
            self.furthest = max(self.furthest, self.tell())
            return found

    stream = Counting(real)
    header = read_header(stream, len(real))
    assert stream.furthest <= len(real) - header.tensor_bytes


def part(number: int, count: int, *pairs: bytes, rows: int = 1) -> bytes:
    splits = [pair("split.no", 2, struct.pack("<H", number)), pair("split.count", 2, struct.pack("<H", count))]
    return image(pairs=[*splits, *pairs], tensors=[tensor(f"t{number}", [4, rows])], data=16 * rows)


def test_a_model_in_parts_is_known_by_all_of_them():
    first = part(0, 3, pair("general.architecture", STRING, text("llama")))
    others = [part(2, 3, rows=5), part(1, 3, rows=3)]
    headers = [read(one) for one in (first, *others)]
    whole = joined(headers)
    assert whole.architecture == "llama"
    assert (whole.parameters, whole.tensor_bytes) == (4 * 9, 16 * 9)
    assert whole.size_bytes == len(first) + sum(map(len, others))
    assert joined([headers[1], headers[2], headers[0]]) == whole


def test_a_missing_part_is_named():
    with pytest.raises(Failure) as caught:
        joined([read(part(0, 3)), read(part(2, 3))])
    assert caught.value.code == "format.gguf_invalid"
    assert "split into 3 parts, and these are not there: 2" in caught.value.message


def test_another_file_beside_a_model_is_no_part_of_it():
    model, projector = (
        read(image(tensors=[tensor("a", [4])], data=16)),
        read(image(tensors=[tensor("b", [8])], data=32)),
    )
    assert joined([model, projector]) == model
