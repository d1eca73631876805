"""Which files of a repository or a folder make up the version that is wanted.

Pure. Comes in: what is there, what the source says after its colon, what the target's engines eat. Goes out: the files,
the weights' first one first. Called by `node_agent.files.hub` and `node_agent.files.local`. Never taken: pickles, code,
and what our engines do not load (adapters, projectors).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.errors import Failure
from node_agent.files import kinds

FORMATS = ("safetensors", "gguf")
MAX_FILES = 1000
_PART = re.compile(r"\A(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf|\.safetensors)\Z")
_QUANT = re.compile(
    r"(?i)(?:\A|[-._/])(?P<label>(?:UD-)?(?:I?Q\d[0-9A-Z]*(?:_[0-9A-Z]+)*|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|BF16|F(?:P)?(?:16|32)))\Z"
)
_DEFAULT_QUANTS = (
    *("Q4_K_M", "Q4_K_S", "Q4_K_L", "Q4_K_XL", "Q4_0", "Q4_1", "IQ4_XS", "IQ4_NL", "MXFP4", "MXFP4_MOE"),
    *("Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q6_K", "Q8_0", "BF16", "F16", "F32"),
)
"""The quantisation taken when none is named: 4 bits with K-quants first, the habit of llama.cpp and Ollama."""
_COMPANIONS = re.compile(
    r"\A(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template|"
    r"preprocessor_config|processor_config|video_preprocessor_config|image_processor_config|modules|"
    r"sentence_bert_config|config_sentence_transformers)\.json\Z"
    r"|\A\d_[A-Za-z]+/config\.json\Z|\A(additional_chat_templates/)?[A-Za-z0-9_-]+\.jinja\Z"
    r"|\A(merges|vocab)\.txt\Z|\A(tokenizer|spiece|sentencepiece(\.bpe)?)\.model\Z|\A[A-Za-z0-9_.-]+\.tiktoken\Z"
)
_NO_MODEL = re.compile(r"(?i)(\A|/|[-._])(mmproj|imatrix|ggml-vocab)|(\A|/)adapter_model\.|training_args")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One file that is there; `size_bytes` is None and the digests "" where nobody says."""

    path: str
    size_bytes: int | None = None
    sha256: str = ""
    git_sha1: str = ""


class _Absent(Failure):
    """This format is not there at all; another one may be."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The files of one version; `selector` names them at this place for ever."""

    files: tuple[Candidate, ...]
    selector: str


def choose(place: str, candidates: Sequence[Candidate], selector: str, formats: Sequence[str]) -> Choice:
    """Return the files of `place` that `selector` and `formats` (best first, empty: any) mean.

    1. A file's own name: that file, with the other parts of a split GGUF.
    2. `safetensors` or `gguf`: that format.
    3. A quantisation's label: the GGUF of that label.
    4. Nothing: the first wanted format that is there; of GGUF the default quantisation.

    Raises:
        Failure: `source.not_found`, `source.ambiguous`, `format.refused`.
    """
    by_path = {one.path: one for one in candidates}
    if selector in by_path:
        return _exactly(place, by_path, selector)
    wanted = [one for one in (formats or FORMATS) if one in FORMATS]
    if selector.lower() in FORMATS:
        wanted, selector = [selector.lower()], ""
    if selector:
        return _labelled(place, by_path, selector)
    fault: Failure | None = None
    for one in wanted:
        try:
            return _safetensors(place, by_path) if one == "safetensors" else _default_gguf(place, by_path)
        except _Absent as absent:
            fault = fault or absent
    raise fault or _nothing(place, by_path, f"nothing that engines for {', '.join(formats)} load")


def _exactly(place: str, by_path: Mapping[str, Candidate], path: str) -> Choice:
    if not kinds.is_weights(path):
        raise Failure(
            "format.refused",
            f"{path} of {place} is no model file",
            hint="only safetensors and GGUF are accepted; pickled weights could run code when loaded",
        )
    if is_part(path):
        return Choice(files=_whole(place, by_path, _stem(path)), selector=path)
    return Choice(files=(by_path[path],), selector=path)


def is_part(path: str) -> bool:
    """Return whether a name is that of one part of a split GGUF."""
    return path.endswith(".gguf") and _PART.match(path) is not None


def _stem(path: str) -> str:
    """Return what the parts of one file have in common."""
    found = _PART.match(path)
    return f"{found['stem']}{found['suffix']}" if found else path


def label_of(path: str) -> str:
    """Return the quantisation that a GGUF file's name, or its folder's, ends with, in capitals, or ""."""
    folder, _, stem = _stem(path).removesuffix(".gguf").rpartition("/")
    found = _QUANT.search(stem) or _QUANT.search(folder)  # a folder for each quantisation is a habit too
    return found["label"].upper().replace("FP16", "F16").replace("FP32", "F32") if found else ""


def _ggufs(by_path: Mapping[str, Candidate]) -> dict[str, str]:
    """Return the GGUF models that are there, parts counted once, with their labels."""
    return {
        _stem(path): label_of(path) for path in by_path if path.endswith(".gguf") and _NO_MODEL.search(path) is None
    }


def _labelled(place: str, by_path: Mapping[str, Candidate], label: str) -> Choice:
    models = _ggufs(by_path)
    wanted = label.upper()
    found = [stem for stem, has in models.items() if has == wanted]
    found = found or [stem for stem, has in models.items() if has.removeprefix("UD-") == wanted]
    if not found:
        raise _nothing(place, by_path, f"no file and no quantisation {label!r}")
    return _one_of(place, by_path, found, label)


def _default_gguf(place: str, by_path: Mapping[str, Candidate]) -> Choice:
    models = _ggufs(by_path)
    if not models:
        raise _nothing(place, by_path, "no GGUF model")
    if len(models) == 1:
        return _one_of(place, by_path, list(models), "")
    for label in _DEFAULT_QUANTS:
        found = [stem for stem, has in models.items() if has.removeprefix("UD-") == label]
        if found:
            return _one_of(place, by_path, found, label)
    return _one_of(place, by_path, list(models), "")


def _one_of(place: str, by_path: Mapping[str, Candidate], stems: Sequence[str], label: str) -> Choice:
    if len(stems) > 1:
        what = f"several files of quantisation {label}" if label else "several GGUF models"
        raise Failure(
            "source.ambiguous",
            f"{place} has {what}: {_listed(stems)}",
            hint="name one of these files after a colon",
        )
    files = _whole(place, by_path, stems[0])
    return Choice(files=files, selector=files[0].path)


def _whole(place: str, by_path: Mapping[str, Candidate], stem: str) -> tuple[Candidate, ...]:
    """Return all parts of one model in order."""
    parts = sorted(path for path in by_path if _stem(path) == stem)
    for path in parts:
        found = _PART.match(path)
        if found and len(parts) != int(found["count"]):
            raise Failure(
                "source.not_found",
                f"{place} has {len(parts)} of the {int(found['count'])} parts of {stem}",
                hint="its upload is not complete; choose another revision or file",
            )
    return tuple(by_path[path] for path in parts)


def _safetensors(place: str, by_path: Mapping[str, Candidate]) -> Choice:
    weights = [path for path in by_path if path.endswith(".safetensors") and "/" not in path]
    models = sorted({_stem(path) for path in weights if _NO_MODEL.search(path) is None})
    if not models or "config.json" not in by_path:
        lacks = "no safetensors model" if not models else "safetensors but no config.json"
        raise _nothing(place, by_path, lacks)
    stem = "model.safetensors" if "model.safetensors" in models else models[0]
    if len(models) > 1 and stem != "model.safetensors":
        raise Failure(
            "source.ambiguous",
            f"{place} has several safetensors models: {_listed(models)}",
            hint="a folder or repository with one of them is needed",
        )
    files = _whole(place, by_path, stem)
    names = sorted(path for path in by_path if _COMPANIONS.match(path) or path == f"{stem}.index.json")
    return Choice(files=(*files, *(by_path[name] for name in names)), selector="safetensors")


def _nothing(place: str, by_path: Mapping[str, Candidate], lacks: str) -> Failure:
    ggufs, others = _ggufs(by_path), sorted(path for path in by_path if path.endswith((".safetensors", ".bin", ".pt")))
    labels = sorted({label for label in ggufs.values() if label})
    has = f"it has quantisations {_listed(labels)}" if labels else f"it has {_listed([*ggufs, *others])}"
    if not (ggufs or others):
        has = "it has no model files at all"
    return _Absent("source.not_found", f"{place} has {lacks}", hint=has)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown
