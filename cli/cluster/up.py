"""`slice up`: record the cluster, detach its supervisor, follow the start, and say how to use what runs now."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cli.cluster import door, recording
from cli.cluster.following import show_for
from cli.cluster.journal import JournalReader, Mark
from cli.cluster.parts import recorded
from cli.cluster.supervisor import SupervisorLock
from cli.roots import supervisor as supervisor_root
from core.errors import CODES, Failure
from core.infra import cluster
from core.infra.cluster import ClusterBlock
from core.infra.entropy import SystemEntropy
from core.infra.settings import Loaded, process_environment

_FOLLOW_EVERY_S = 0.05


@dataclass(frozen=True, kw_only=True)
class UpRequest:
    """What the command line asked for; `flags` are settings by name, None where not given."""

    data_dir: Path
    flags: Mapping[str, object]
    is_foreground: bool
    output: str  # "text" or "json"


def run(request: UpRequest) -> int:
    """Bring the cluster up, or say that it is; return the exit code.

    Raises:
        Failure: something about the request or this machine forbids it.
    """
    cluster.make_private_dir(request.data_dir)
    lock = SupervisorLock(request.data_dir.resolve())
    holder = lock.holder()
    loaded = recording.loaded_settings(request.data_dir, request.flags)
    if holder is not None:
        return _already_up(request, loaded)
    block = _recorded(request, loaded)
    if request.is_foreground:
        return _in_foreground(request, block)
    journal = journal_file(block)
    journal.unlink(missing_ok=True)
    process = _detach(block)
    _follow(journal, process, is_plain=request.output == "json")
    _tell(block, request.output, "")
    return 0


def journal_file(block: ClusterBlock) -> Path:
    """Return the journal of the cluster's last start."""
    return block.log_dir / "start.jsonl"


def _recorded(request: UpRequest, loaded: Loaded) -> ClusterBlock:
    known = cluster.load(request.data_dir)
    if known is not None and known.runtime_dir.exists():
        asyncio.run(_clear_dead_door(known))
    block = recording.prepared_block(
        request.data_dir, loaded, SystemEntropy(), living=_living(known) if known is not None else frozenset()
    )
    recording.remember_flags(block.data_dir, request.flags)
    return block


async def _clear_dead_door(block: ClusterBlock) -> None:
    """End what a killed shim left of a door: its HAProxy would hold the port that the new one needs."""
    if await door.handle(block) is None:
        await door.clear(block)


def _living(block: ClusterBlock) -> frozenset[int]:
    """Return the ports held by parts that a dead supervisor left alive: those are ours to adopt."""
    held = set()
    if recorded(block.parts_dir, "controller") is not None:
        held.add(block.controller_port)
    if door.door_socket(block).exists():
        held.add(block.door_port)
    return frozenset(held)


def _already_up(request: UpRequest, loaded: Loaded) -> int:
    block = cluster.load(request.data_dir)
    if block is None:
        raise Failure("cluster.start_failed", "a start is under way but has recorded nothing yet", hint="try again")
    wanted = loaded.settings
    now = {"port": block.door_port, "controller_port": block.controller_port, "host": block.host}
    for key, value in now.items():
        if request.flags.get(key) is not None and getattr(wanted, key) != value:
            raise Failure(
                "cluster.settings_differ",
                f"this cluster runs with {key} {value}, not {getattr(wanted, key)}",
                hint="run `slice down` first, or use another --data-dir for a second cluster",
                param=key,
            )
    journal = journal_file(block)
    if not any(line.mark is Mark.READY for line in JournalReader(journal).new_lines()):
        _follow(journal, None, is_plain=request.output == "json")
    _tell(block, request.output, "already up: nothing to do")
    return 0


def _detach(block: ClusterBlock) -> "subprocess.Popen[bytes]":
    with (block.log_dir / "supervisor.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "cli.roots.supervisor", str(block.file)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(process_environment()),
            cwd="/",
            start_new_session=True,
        )


def _in_foreground(request: UpRequest, block: ClusterBlock) -> int:
    journal = journal_file(block)
    journal.unlink(missing_ok=True)
    told = threading.Event()

    def follow() -> None:
        _follow(journal, None, is_plain=True)
        _tell(block, request.output, "")
        told.set()

    threading.Thread(target=follow, daemon=True).start()
    failure = asyncio.run(supervisor_root.supervise(block))
    if failure is not None:
        raise failure
    return 0


def _follow(journal: Path, process: "subprocess.Popen[bytes] | None", *, is_plain: bool) -> None:
    """Show the journal until the cluster is ready.

    Raises:
        Failure: the start was given up, or the supervisor is gone.
    """
    reader = JournalReader(journal)
    show = show_for(is_plain=is_plain)
    pause = threading.Event()
    try:
        while True:
            is_gone = process is not None and process.poll() is not None
            for line in reader.new_lines():
                show.line(line)
                if line.mark is Mark.READY:
                    return
                if line.mark is Mark.ENDED:
                    raise _failure(line.data)
            if is_gone:
                raise Failure(
                    "cluster.start_failed",
                    "the supervisor ended before the cluster was ready",
                    hint=f"its log is {journal.parent / 'supervisor.log'}; `slice doctor` looks further",
                )
            pause.wait(_FOLLOW_EVERY_S)
    except KeyboardInterrupt:
        print(
            "\ninterrupted: the cluster goes on starting; `slice up` follows it again, `slice down` ends it",
            file=sys.stderr,
        )
        raise
    finally:
        show.finish()


def _failure(data: Mapping[str, object]) -> Failure:
    code = str(data.get("code"))
    known = code if code in CODES else "cluster.start_failed"
    return Failure(known, str(data.get("message")), hint=str(data.get("hint") or ""))


def _tell(block: ClusterBlock, output: str, note: str) -> None:
    key_file = block.secret_file("api_key")
    key = key_file.read_text().strip() if key_file.exists() else ""
    facts = {
        "openai_base_url": block.openai_base_url,
        "api_key": key,
        "controller_url": block.controller_url,
        "data_dir": str(block.data_dir),
    }
    if output == "json":
        print(json.dumps(facts))
        return
    model = str(recording.loaded_settings(block.data_dir, {}).settings.starter_model) or "MODEL"
    if note:
        print(note)
    print(_USE.format(**facts, model=model))


_USE = """
  base URL   {openai_base_url}
  API key    {api_key}
  data       {data_dir}

  curl {openai_base_url}/chat/completions -H 'Authorization: Bearer {api_key}' \\
    -H 'Content-Type: application/json' \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'

  from openai import OpenAI
  client = OpenAI(base_url="{openai_base_url}", api_key="{api_key}")
  messages = [{{"role": "user", "content": "Hello!"}}]
  answer = client.chat.completions.create(model="{model}", messages=messages)
  print(answer.choices[0].message.content)
"""
