"""Which files of a repository make up the version that is wanted, and which bytes may be part of a model."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Failure
from node_agent.files import choose, kinds
from node_agent.files.choose import Candidate
from tests.node_agent import wheels
from tests.node_agent.benches import safetensors_bytes

SAFETENSORS = [
    *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("chat_template.jinja", "tokenizer.model", "README.md", "LICENSE", ".gitattributes"),
    *("pytorch_model.bin", "training_args.bin", "modeling_demo.py", "onnx/model.onnx", "1_Pooling/config.json"),
]
SHARDED = [
    *("config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
    *("model.safetensors.index.json", "original/consolidated.safetensors", "preprocessor_config.json"),
]
GGUFS = [
    *("demo.Q4_K_M.gguf", "demo.Q8_0.gguf", "demo-f16.gguf", "mmproj-demo-f16.gguf", "imatrix.gguf", "README.md"),
    *("big/demo-BF16-00001-of-00002.gguf", "big/demo-BF16-00002-of-00002.gguf", "demo-UD-Q2_K_XL.gguf"),
]


def chosen(files: list[str], selector: str = "", formats: tuple[str, ...] = ()) -> list[str]:
    choice = choose.choose("org/name", [Candidate(path=path) for path in files], selector, formats)
    return [one.path for one in choice.files]


def test_a_safetensors_model_comes_with_what_engines_read_beside_it_and_no_code() -> None:
    assert chosen(SAFETENSORS) == [
        "model.safetensors",
        "1_Pooling/config.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]


def test_a_model_in_shards_comes_with_all_of_them_and_their_index() -> None:
    assert chosen(SHARDED) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "config.json",
        "model.safetensors.index.json",
        "preprocessor_config.json",
    ]


@pytest.mark.parametrize(
    ("selector", "formats", "first", "count"),
    [
        ("", (), "demo.Q4_K_M.gguf", 1),
        ("", ("gguf",), "demo.Q4_K_M.gguf", 1),
        ("", ("safetensors", "gguf"), "demo.Q4_K_M.gguf", 1),
        ("gguf", ("safetensors",), "demo.Q4_K_M.gguf", 1),
        ("q8_0", (), "demo.Q8_0.gguf", 1),
        ("F16", (), "demo-f16.gguf", 1),
        ("bf16", (), "big/demo-BF16-00001-of-00002.gguf", 2),
        ("Q2_K_XL", (), "demo-UD-Q2_K_XL.gguf", 1),
        ("UD-Q2_K_XL", (), "demo-UD-Q2_K_XL.gguf", 1),
        ("big/demo-BF16-00002-of-00002.gguf", (), "big/demo-BF16-00001-of-00002.gguf", 2),
        ("mmproj-demo-f16.gguf", (), "mmproj-demo-f16.gguf", 1),
    ],
)
def test_a_gguf_is_chosen_by_name_by_quantisation_or_by_default(
    selector: str, formats: tuple[str, ...], first: str, count: int
) -> None:
    files = chosen(GGUFS, selector, formats)
    assert (files[0], len(files)) == (first, count)


def test_the_first_wanted_format_that_is_there_is_taken() -> None:
    both = [*SAFETENSORS, *GGUFS]
    assert chosen(both, formats=("gguf", "safetensors")) == ["demo.Q4_K_M.gguf"]
    assert chosen(both, formats=("safetensors", "gguf"))[0] == "model.safetensors"
    assert chosen(both, "safetensors", ("gguf",))[0] == "model.safetensors"


@pytest.mark.parametrize(
    ("files", "selector", "formats", "code", "words"),
    [
        (GGUFS, "Q3_K_S", (), "source.not_found", "BF16, F16, Q4_K_M, Q8_0"),
        (GGUFS, "", ("safetensors",), "source.not_found", "BF16, F16, Q4_K_M, Q8_0"),
        (SAFETENSORS, "", ("gguf",), "source.not_found", "model.safetensors, pytorch_model.bin"),
        (["README.md"], "", (), "source.not_found", "no model files at all"),
        (["model.safetensors"], "", (), "source.not_found", "no config.json"),
        (["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"], "Q4_K_M", (), "source.ambiguous", "a-Q4_K_M.gguf, b-Q4_K_M.gguf"),
        (["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"], "", (), "source.ambiguous", "a-Q4_K_M.gguf, b-Q4_K_M.gguf"),
        (["config.json", "a.safetensors", "b.safetensors"], "", (), "source.ambiguous", "a.safetensors, b.safetensors"),
        (["config.json", "adapter_model.safetensors"], "", (), "source.not_found", "adapter_model.safetensors"),
        (["x-00001-of-00003.gguf", "x-00003-of-00003.gguf"], "", (), "source.not_found", "2 of the 3 parts"),
        (SAFETENSORS, "pytorch_model.bin", (), "format.refused", "pickled"),
        (SAFETENSORS, "modeling_demo.py", (), "format.refused", "safetensors and GGUF"),
        (["pytorch_model.bin"], "", (), "source.not_found", "pytorch_model.bin"),
        (GGUFS, "", ("exotic",), "source.not_found", "Q8_0"),
    ],
)
def test_what_cannot_be_chosen_says_what_is_there(
    files: list[str], selector: str, formats: tuple[str, ...], code: str, words: str
) -> None:
    with pytest.raises(Failure) as caught:
        chosen(files, selector, formats)
    assert caught.value.code == code
    assert words in str(caught.value)


@given(st.lists(st.sampled_from([*SAFETENSORS, *SHARDED, *GGUFS]), unique=True), st.sampled_from(["", "Q4_K_M", "x"]))
def test_no_choice_has_a_pickle_code_or_a_file_twice(files: list[str], selector: str) -> None:
    try:
        found = chosen(files, selector)
    except Failure:
        return
    assert len(set(found)) == len(found)
    assert kinds.is_weights(found[0])
    assert all(kinds.is_taken(path) for path in found)


# -- by their bytes ---------------------------------------------------------------------------------------------------

GGUF, WEIGHTS = wheels.gguf_bytes(), safetensors_bytes()
PICKLE = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x01u." + b"\x00" * 64
ZIP = b"PK\x03\x04" + b"\x00" * 64


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.gguf", GGUF),
        ("a.safetensors", WEIGHTS),
        ("blob", GGUF),
        ("blob", WEIGHTS),
        ("config.json", b"{}"),
        ("chat_template.jinja", "{{ 'é' }}".encode()),
        ("merges.txt", b"#version"),
        ("tokenizer.model", b"\x0a\x0e\x0a\x05<unk>\x15"),
        ("ollama/template", b"{{ .Prompt }}"),
        ("ollama/license", b"MIT"),
    ],
)
def test_what_a_model_is_made_of_is_taken(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    kinds.require_file(name, tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("model.safetensors", PICKLE, "starts with a pickle/zip signature"),
        ("model.safetensors", ZIP, "starts with a pickle/zip signature"),
        ("model.gguf", ZIP, "starts with a pickle/zip signature"),
        ("model.gguf", WEIGHTS, "is no GGUF"),
        ("model.safetensors", GGUF, "no safetensors"),
        ("blob", PICKLE, "starts with a pickle/zip signature"),
        ("pytorch_model.bin", PICKLE, "starts with a pickle/zip signature"),
        ("config.json", PICKLE, "starts with a pickle/zip signature"),
        ("tokenizer.model", ZIP, "starts with a pickle/zip signature"),
        ("config.json", b"\xff\xfe\x00", "is no text"),
        ("model.safetensors", (2**63).to_bytes(8, "little") + b"{}", "no safetensors"),
        ("model.safetensors", (10**6).to_bytes(8, "little") + b"{}", "no safetensors"),
        ("model.safetensors", b"", "no safetensors"),
        ("page.html", b"<html>", "is no GGUF and no safetensors file"),
    ],
)
def test_anything_else_is_refused_whatever_its_name(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(Failure, match=words) as caught:
        kinds.require_file(name, tmp_path / "file")
    assert caught.value.code == "format.refused"


@given(st.binary(max_size=80), st.sampled_from(["a.gguf", "a.safetensors", "a", "config.json", "a.bin"]))
def test_any_head_is_taken_or_refused(head: bytes, name: str) -> None:
    try:
        kinds.require_head(name, head, None)
    except Failure as failure:
        assert failure.code == "format.refused"  # noqa: PT017 - either way is right
