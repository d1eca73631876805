"""Reads the headers of a version's files in a process of its own: `python -m node_agent.files.inspect PATH PLACE ...`.

Comes in: pairs of a path within the version and a place on disk, the main file first. Goes out, on standard output, in
lines of at most 64 Ki characters that make one JSON text together: `{"facts_json", "chat_template_sha256",
"chat_template", "template_findings"}`, or with exit code 1 `{"code", "message", "hint"}`. Called by
`node_agent.files.header`, which kills it after a deadline: the files are a stranger's.
"""

import json
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

from core.errors import Failure
from core.formats import chat_template, gguf, magic, model_config, safetensors
from core.formats.chat_template import ChatTemplate

_ADDRESS_SPACE_BYTES = 1024**3
_LINE_CHARACTERS = 65_536
_CONFIG, _TOKENIZER = "config.json", "tokenizer_config.json"
_TEMPLATE, _TEMPLATE_JSON, _MORE_TEMPLATES = "chat_template.jinja", "chat_template.json", "additional_chat_templates/"
_INDEX_END = ".safetensors.index.json"


def main(arguments: list[str]) -> int:
    """Print the facts; return 0, or 1 after printing a failure."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE_BYTES, _ADDRESS_SPACE_BYTES))
    files = dict(zip(arguments[::2], map(Path, arguments[1::2]), strict=True))
    try:
        facts_json, template = read(files)
    except Failure as failure:
        _print({"code": failure.code, "message": failure.message, "hint": failure.hint})
        return 1
    _print(
        {
            "facts_json": facts_json,
            "chat_template_sha256": template.sha256,
            "chat_template": template.text,
            "template_findings": list(template.findings),
        }
    )
    return 0


def _print(answer: Mapping[str, object]) -> None:
    text = json.dumps(answer)  # ASCII without a line's end, so that any cut is one between characters
    for start in range(0, len(text), _LINE_CHARACTERS):
        print(text[start : start + _LINE_CHARACTERS])


def read(files: Mapping[str, Path]) -> tuple[str, ChatTemplate]:
    """Return the JSON of `adapters.contract.ModelFacts` and the chat template of the version that `files` are.

    Raises:
        Failure: `format.refused`, `format.gguf_invalid`, `format.safetensors_invalid`, `format.template_refused`.
    """
    main_file = next(iter(files))
    heads = {path: _head(place) for path, place in files.items()}
    for path, head in heads.items():
        if magic.is_pickled(head):
            raise magic.refused(head, path)
    if magic.model_kind(heads[main_file], main_file) == magic.GGUF:
        return _read_gguf(files, heads)
    return _read_safetensors(files, heads)


def _head(place: Path) -> bytes:
    with place.open("rb") as stream:
        return stream.read(magic.HEAD_BYTES)


def _read_gguf(files: Mapping[str, Path], heads: Mapping[str, bytes]) -> tuple[str, ChatTemplate]:
    headers = []
    for path, place in files.items():
        if magic.kind_of(heads[path]) == magic.GGUF:
            with place.open("rb") as stream:
                headers.append(gguf.read_header(stream, place.stat().st_size))
    # What is neither the model nor a part of it, such as a projector of images, is only checked.
    whole = gguf.joined(headers)
    return whole.facts_json(), chat_template.chosen(whole.chat_templates)


def _read_safetensors(files: Mapping[str, Path], heads: Mapping[str, bytes]) -> tuple[str, ChatTemplate]:
    shards = {}
    for path, place in files.items():
        if path.endswith(".safetensors") or path == next(iter(files)):
            with place.open("rb") as stream:
                shards[path] = safetensors.read_header(stream, place.stat().st_size, path)
    model_config.check_apart(shards)
    for path, place in files.items():
        if path.endswith(_INDEX_END):
            folder = path.rpartition("/")[0]
            prefix = f"{folder}/" if folder else ""
            here = {name.removeprefix(prefix): header for name, header in shards.items() if name.startswith(prefix)}
            model_config.check_index(model_config.read_index(_text(place, model_config.MAX_INDEX_BYTES)), here)
    config = model_config.ModelConfig()
    if _CONFIG in files:
        config = model_config.read_config(_text(files[_CONFIG], model_config.MAX_CONFIG_BYTES))
    tokenizer: Mapping[str, object] = {}
    if _TOKENIZER in files:
        raw = _text(files[_TOKENIZER], model_config.MAX_TOKENIZER_CONFIG_BYTES)
        tokenizer = model_config.read_tokenizer_config(raw)
    facts_json = model_config.facts_json(
        config,
        shards.values(),
        size_bytes=sum(place.stat().st_size for place in files.values()),
        context_length=model_config.tokenizer_context(tokenizer),
    )
    return facts_json, chat_template.chosen(_templates(files, tokenizer))


def _templates(files: Mapping[str, Path], tokenizer: Mapping[str, object]) -> dict[str, str]:
    """Return every template, those of files of their own before the tokenizer's (as transformers prefers them)."""
    limit = chat_template.MAX_TEMPLATE_BYTES
    found: dict[str, str] = {}
    if _TEMPLATE in files:
        found[chat_template.DEFAULT] = _text(files[_TEMPLATE], limit).decode(errors="replace")
    for path, place in files.items():
        if path.startswith(_MORE_TEMPLATES) and path.endswith(".jinja"):
            found[path.removeprefix(_MORE_TEMPLATES).removesuffix(".jinja")] = _text(place, limit).decode(
                errors="replace"
            )
    if _TEMPLATE_JSON in files:
        raw = model_config.read_tokenizer_config(_text(files[_TEMPLATE_JSON], model_config.MAX_CONFIG_BYTES))
        found = {**chat_template.of_json(raw.get("chat_template")), **found}
    return {**chat_template.of_json(tokenizer.get("chat_template")), **found}


def _text(place: Path, limit_bytes: int) -> bytes:
    """Return the bytes of a file, one more than `limit_bytes` at most: enough for its reader to refuse it."""
    with place.open("rb") as stream:
        return stream.read(limit_bytes + 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
