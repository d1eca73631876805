"""A version's headers, read by a real child: good ones of both formats, and hostile ones within their bounds."""

import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from adapters.facts import facts_from_json
from core.errors import Failure
from core.units import MIB
from node_agent.files.header import HeaderFacts, read_facts, read_version_facts
from node_agent.subprocesses import Children
from tests.ggufs import CHAT_TEMPLATE, write_random_llama
from tests.node_agent.wheels import gguf_bytes

CONFIG = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
MEASURED = """
import sys, resource
from node_agent.files import inspect
before = resource.getrusage(resource.RUSAGE_SELF)
code = inspect.main(sys.argv[1:])
after = resource.getrusage(resource.RUSAGE_SELF)
cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
with open("/proc/self/status") as status:
    peak_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
print(code, cpu_s, peak_kib)
"""


def folder(root: Path, *, shards: int = 2, **texts: object) -> dict[str, Path]:
    """Write a model of `shards` safetensors files, its config, and `texts` by path."""
    root.mkdir(exist_ok=True)
    index: dict[str, str] = {}
    names = []
    for number in range(shards):
        names.append(f"model-{number + 1:05}-of-{shards:05}.safetensors")
        save_file({f"layer.{number}": np.zeros((4, 2), np.float16)}, root / names[-1])
        index[f"layer.{number}"] = names[-1]
    written = {
        "config.json": CONFIG,
        "model.safetensors.index.json": {"weight_map": index},
        "tokenizer_config.json": {"chat_template": CHAT_TEMPLATE},
        **texts,
    }
    for path, text in written.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(text if isinstance(text, str) else json.dumps(text))
    return {path: root / path for path in (*names, *written)}


async def read(files: dict[str, Path], tmp_path: Path) -> HeaderFacts:
    return await read_version_facts(files, Children(tmp_path / "children"))


async def fault(files: dict[str, Path], tmp_path: Path) -> tuple[str, str]:
    with pytest.raises(Failure) as caught:
        await read(files, tmp_path)
    return caught.value.code, caught.value.message


async def test_a_gguf_file_gives_facts_and_its_template(tmp_path: Path) -> None:
    model = write_random_llama(tmp_path / "m.gguf", seed=1)
    found = await read_facts(model, Children(tmp_path / "children"))
    assert facts_from_json(found.facts_json).architecture == "llama"
    assert found.chat_template == CHAT_TEMPLATE
    assert found.template_findings == ()


async def test_a_folder_of_safetensors_gives_facts_and_its_template(tmp_path: Path) -> None:
    files = folder(tmp_path / "m")
    found = await read(files, tmp_path)
    facts = facts_from_json(found.facts_json)
    assert (facts.format, facts.architecture, facts.layers, facts.parameters) == ("safetensors", "llama", 2, 16)
    assert (facts.quantization, facts.tensor_bytes) == ("F16", 32)
    assert facts.size_bytes == sum(place.stat().st_size for place in files.values())
    assert found.chat_template == CHAT_TEMPLATE


async def test_one_safetensors_file_alone_is_a_model_without_a_template(tmp_path: Path) -> None:
    save_file({"w": np.zeros(3, np.float32)}, tmp_path / "m.safetensors")
    found = await read({"m.safetensors": tmp_path / "m.safetensors"}, tmp_path)
    assert facts_from_json(found.facts_json).layers is None
    assert (found.chat_template, found.chat_template_sha256) == ("", "")


async def test_a_template_in_a_file_of_its_own_wins_and_the_others_are_looked_at(tmp_path: Path) -> None:
    files = folder(
        tmp_path / "m",
        **{"chat_template.jinja": "{{ messages }}", "additional_chat_templates/rag.jinja": "{{ lipsum() }}"},
    )
    found = await read(files, tmp_path)
    assert found.chat_template == "{{ messages }}"
    assert found.template_findings == ("template 'rag': it uses Jinja's own objects",)


async def test_a_long_template_comes_through_whole(tmp_path: Path) -> None:
    text = "é" * 100_000
    found = await read(folder(tmp_path / "m", **{"chat_template.jinja": text}), tmp_path)
    assert found.chat_template == text


async def test_a_gguf_in_parts_is_one_model_and_an_incomplete_one_is_refused(tmp_path: Path) -> None:
    files = {}
    for number in range(2):
        files[f"m-0000{number + 1}-of-00002.gguf"] = tmp_path / str(number)
        splits = [("split.no", number), ("split.count", 2)]
        body = b"".join(key(name, 2, struct.pack("<H", value)) for name, value in splits)
        (tmp_path / str(number)).write_bytes(gguf_claiming(pairs=2, body=body, padding=32))
    found = await read(files, tmp_path)
    assert facts_from_json(found.facts_json).size_bytes == sum(place.stat().st_size for place in files.values())
    del files["m-00002-of-00002.gguf"]
    code, message = await fault(files, tmp_path)
    assert (code, "these are not there: 2" in message) == ("format.gguf_invalid", True)


async def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    files = folder(tmp_path / "m", shards=3)
    del files["model-00002-of-00003.safetensors"]
    code, message = await fault(files, tmp_path)
    assert code == "format.safetensors_invalid"
    assert "names the file 'model-00002-of-00003.safetensors', which is not there" in message


async def test_a_pickle_among_the_files_refuses_the_model(tmp_path: Path) -> None:
    files = folder(tmp_path / "m")
    (tmp_path / "m" / "training_args.bin").write_bytes(pickle.dumps({"a": 1}))
    files["training_args.bin"] = tmp_path / "m" / "training_args.bin"
    code, message = await fault(files, tmp_path)
    assert code == "format.refused"
    assert message.startswith("training_args.bin starts with a pickle or zip signature")


async def test_a_gguf_template_that_is_an_attack_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_chat_template("{{ ''.__class__ }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    code, message = await fault({"m.gguf": tmp_path / "m.gguf"}, tmp_path)
    assert code == "format.template_refused"
    assert "__class" in message


async def test_more_names_than_a_command_line_takes_are_refused(tmp_path: Path) -> None:
    files = {f"{number}/{'x' * 1000}": tmp_path for number in range(2000)}
    assert (await fault(files, tmp_path))[0] == "format.refused"


def measured(files: dict[str, Path]) -> tuple[dict[str, str], int, float, int]:
    """Return the child's answer, its exit code, the CPU seconds it took to read, and its peak memory in bytes."""
    arguments = [part for path, place in files.items() for part in (path, str(place))]
    done = subprocess.run(
        [sys.executable, "-I", "-c", MEASURED, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    *answer, numbers = done.stdout.splitlines()
    code, cpu_s, peak_kib = numbers.split()
    return json.loads("".join(answer)), int(code), float(cpu_s), int(peak_kib) * 1024


def gguf_claiming(*, tensors: int = 0, pairs: int = 0, body: bytes = b"", padding: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs) + body + bytes(padding)


def key(name: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


def tensor(dimensions: list[int], offset: int) -> bytes:
    name = b"blk.0.attn_q.weight"
    shape = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return struct.pack("<Q", len(name)) + name + shape + struct.pack("<IQ", 0, offset)


DEEP = b'{"a":' + b"[" * 1_000_000
HOSTILE = {
    "row-19-pickle.safetensors": (pickle.dumps(list(range(9))), "format.refused"),
    "row-19-zip.safetensors": (b"PK\x03\x04" + bytes(100), "format.refused"),
    "row-20-tensor-behind-the-end.gguf": (
        gguf_claiming(tensors=1, body=tensor([2**40], 2**60), padding=64),
        "format.gguf_invalid",
    ),
    "row-20-two-to-the-63-pairs.gguf": (gguf_claiming(pairs=2**63), "format.gguf_invalid"),
    "row-20-alignment.gguf": (
        gguf_claiming(pairs=1, body=key("general.alignment", 4, struct.pack("<I", 0x80000000))),
        "format.gguf_invalid",
    ),
    "row-20-five-dimensions.gguf": (gguf_claiming(tensors=1, body=tensor([1] * 5, 0)), "format.gguf_invalid"),
    "row-20-truncated.gguf": (gguf_bytes()[:-40], "format.gguf_invalid"),
    "row-22-template.gguf": (
        gguf_claiming(
            pairs=1,
            body=key("tokenizer.chat_template", 8, struct.pack("<Q", 18) + b"{{ ''.__class__ }}"),
            padding=32,
        ),
        "format.template_refused",
    ),
    "header-of-2-to-the-60.safetensors": (struct.pack("<Q", 2**60) + b"{}" + bytes(20), "format.safetensors_invalid"),
    "deep.safetensors": (struct.pack("<Q", len(DEEP)) + DEEP, "format.safetensors_invalid"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_within_100_ms_and_64_mib(name: str, tmp_path: Path) -> None:
    data, code = HOSTILE[name]
    (tmp_path / name).write_bytes(data)
    answer, exit_code, cpu_s, peak_bytes = measured({name: tmp_path / name})
    assert (answer["code"], exit_code) == (code, 1)
    assert answer["message"]
    assert cpu_s <= 0.1
    assert peak_bytes <= 64 * MIB
