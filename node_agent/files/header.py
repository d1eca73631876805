"""The facts of a model file's header, read by a child process that can be killed.

Called by `node_agent.files.pulls`. The file may be hostile: the child has a bounded address space and 10 s.
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


@dataclass(frozen=True, kw_only=True)
class HeaderFacts:
    """`facts_json` holds the fields of `adapters.contract.ModelFacts`; `template_findings` are sentences for people."""

    facts_json: str
    chat_template_sha256: str
    chat_template: str = ""
    template_findings: tuple[str, ...] = ()


async def read_version_facts(files: Mapping[str, Path], children: Children) -> HeaderFacts:
    """Return the facts of a version: `files` maps each path in it to where its bytes lie, the weights' first.

    Raises:
        Failure: `format.gguf_invalid`, as `read_facts`.
    """
    path, place = next(iter(files.items()))
    if path.endswith(".safetensors"):
        size = sum(file.stat().st_size for name, file in files.items() if name.endswith(".safetensors"))
        return HeaderFacts(
            facts_json=json.dumps({"format": "safetensors", "size_bytes": size}), chat_template_sha256=""
        )
    return await read_facts(place, children)


async def read_facts(path: Path, children: Children) -> HeaderFacts:
    """Return the facts of a GGUF file.

    Raises:
        Failure: `format.gguf_invalid` when it is none, or when reading it takes too long or too much memory.
    """
    try:
        async with asyncio.timeout(_DEADLINE_S):
            done = await children.run(
                (sys.executable, "-I", "-m", "node_agent.files.inspect", str(path)), environment={}
            )
        answer = json.loads(done.output)
        if done.code == 0:
            return HeaderFacts(
                facts_json=str(answer["facts_json"]), chat_template_sha256=str(answer["chat_template_sha256"])
            )
        if answer["code"] in CODES:
            raise Failure(answer["code"], str(answer["message"]), hint=str(answer["hint"]))
    except (TimeoutError, ValueError, KeyError, TypeError):
        pass
    raise Failure(
        "format.gguf_invalid",
        f"the header of {path.name} could not be read within {_DEADLINE_S:g} s and 1 GiB",
        hint="the file is damaged or made to do harm; pull it again from where it should come from",
    )
