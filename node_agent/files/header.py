"""The facts of a version's headers, read by a child process that can be killed.

Called by `node_agent.files.pulls`. The files may be hostile: the child has a bounded address space and 10 s.
"""

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.errors import CODES, Failure
from node_agent.subprocesses import Children

_DEADLINE_S = 10.0
_ANSWER_CHARACTERS = 8 * 1024**2  # a template of 256 KiB, each character escaped, has 3 Mi
_ARGUMENTS_BYTES = 1024**2  # of the 2 MiB that Linux takes
_LOOKED_AT = (
    ".gguf",
    ".safetensors",
    ".safetensors.index.json",
    "config.json",
    "tokenizer_config.json",
    ".jinja",
    "chat_template.json",
)


@dataclass(frozen=True, kw_only=True)
class HeaderFacts:
    """What a version's headers say; `facts_json` holds the fields of `adapters.contract.ModelFacts`.

    `chat_template` is the default template, of at most 256 KiB, `template_findings` a sentence for each oddity of any
    template.
    """

    facts_json: str
    chat_template_sha256: str
    chat_template: str = ""
    template_findings: tuple[str, ...] = ()


async def read_facts(path: Path, children: Children) -> HeaderFacts:
    """Return the facts of a version of one file.

    Raises:
        Failure: as for `read_version_facts`.
    """
    return await read_version_facts({path.name: path}, children)


async def read_version_facts(files: Mapping[str, Path], children: Children) -> HeaderFacts:
    """Return the facts of a version: `files` maps paths within it to places on disk, the main file first.

    Raises:
        Failure: `format.refused`, `format.template_refused`, `format.gguf_invalid` or `format.safetensors_invalid`;
            one of the last two also when reading takes too long or too much memory.
    """
    main_file = next(iter(files))
    said: list[str] = []

    def keep(line: str) -> None:
        if sum(map(len, said)) <= _ANSWER_CHARACTERS:
            said.append(line.rstrip("\n"))

    try:
        async with asyncio.timeout(_DEADLINE_S):
            done = await children.run(
                (sys.executable, "-I", "-m", "node_agent.files.inspect", *_arguments(files)),
                environment={},
                on_line=keep,
            )
        answer = json.loads("".join(said))
        if done.code == 0:
            return HeaderFacts(
                facts_json=str(answer["facts_json"]),
                chat_template_sha256=str(answer["chat_template_sha256"]),
                chat_template=str(answer["chat_template"]),
                template_findings=tuple(str(finding) for finding in answer["template_findings"]),
            )
        if answer["code"] in CODES:
            raise Failure(answer["code"], str(answer["message"]), hint=str(answer["hint"]))
    except (TimeoutError, ValueError, KeyError, TypeError):
        pass
    is_safetensors = main_file.endswith(".safetensors")
    raise Failure(
        "format.safetensors_invalid" if is_safetensors else "format.gguf_invalid",
        f"the header of {main_file} could not be read within {_DEADLINE_S:g} s and 1 GiB",
        hint="the file is damaged or made to do harm; pull it again from where it should come from",
    )


def _arguments(files: Mapping[str, Path]) -> list[str]:
    """Return path and place of each file as the child takes them, the main file first, as many as fit.

    Those that are looked into come before those that are only looked at for a pickle's signature.
    """
    main_file = next(iter(files))
    rest = sorted(path for path in files if path != main_file)
    ordered = [main_file, *sorted(rest, key=lambda path: not path.endswith(_LOOKED_AT))]
    found: list[str] = []
    size = 0
    for path in ordered:
        size += len(path.encode()) + len(bytes(files[path])) + 2
        if size > _ARGUMENTS_BYTES:
            raise Failure(
                "format.refused",
                f"the model has {len(files)} files with longer names than can be looked at",
                hint="name the one file that is wanted, or a folder with the model alone",
            )
        found += [path, str(files[path])]
    return found
