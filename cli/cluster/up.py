"""`slice up`: record the cluster, detach its supervisor, follow the start, and say how to use what runs now."""

import asyncio
import contextlib
import json
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cli.cluster import detached, door, lock, recording, wiring
from cli.cluster.journal import JournalReader, Mark
from cli.cluster.lock import SupervisorLock
from cli.cluster.parts import recorded
from cli.roots import supervisor as supervisor_root
from core.errors import Failure
from core.infra import cluster
from core.infra.cluster import PORTS_PER_CLUSTER, ClusterBlock
from core.infra.entropy import SystemEntropy
from core.infra.settings import Loaded, Settings

_ANSWER_LOOKS = 60  # about a minute: a door is redeployed within ten seconds, more on a busy machine
_LOCK_WAIT_S = 0.3  # a command that only asks holds the lock for moments


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
    recording.claim(request.data_dir)
    data_dir = request.data_dir.resolve()
    loaded = recording.loaded_settings(data_dir, request.flags)
    with SupervisorLock(data_dir) as held:
        if not held.try_hold(_LOCK_WAIT_S):
            return _already_up(request, loaded)
        block = _recorded(request, loaded)
        detached.journal_file(block).unlink(missing_ok=True)
        if request.is_foreground:
            return _in_foreground(request, block, held)
        process = detached.start(block, "supervisor", held)
    detached.follow(detached.journal_file(block), lambda: process.poll() is None, is_plain=request.output == "json")
    _tell(block, request.output, "")
    return 0


def _recorded(request: UpRequest, loaded: Loaded) -> ClusterBlock:
    _check_places(loaded.settings)
    known = cluster.load(request.data_dir)
    is_here = known is not None and not cluster.is_moved(request.data_dir)
    if known is not None and is_here:
        asyncio.run(_clear_dead_door(known))
    block = recording.prepared_block(
        request.data_dir,
        loaded,
        SystemEntropy(),
        living=living_ports(known, loaded.settings) if known is not None and is_here else frozenset(),
    )
    recording.remember_flags(block.data_dir, request.flags)
    return block


def _check_places(wanted: Settings) -> None:
    """See that what the settings name exists, before anything of them is remembered.

    Raises:
        Failure: a file, directory or database cannot be used.
    """
    places = {"--devices": wanted.devices.removeprefix("sim:"), "--wheel-dir": wanted.wheel_dir}
    for flag, place in places.items():
        if place.startswith("/") and not Path(place).exists():
            raise Failure("settings.invalid", f"{place} does not exist", hint=f"check {flag}", param=flag)
    if wanted.database_url:
        from cli.cluster import external_database  # psycopg: only who has a database of their own pays for it

        external_database.check(wanted.database_url)


async def _clear_dead_door(block: ClusterBlock) -> None:
    """End what a killed shim left of a door: its HAProxy would hold the port that the new one needs."""
    with contextlib.suppress(Failure):
        if await door.handle(block) is not None:
            return
    await door.clear(block)


def living_ports(block: ClusterBlock, wanted: Settings) -> frozenset[int]:
    """Return the ports held by parts that a dead supervisor left alive: those are ours to adopt."""
    held: set[int] = set()
    if recorded(block.parts_dir, "controller") is not None:
        held |= {block.controller_port, wanted.node_port, wanted.node_port + 1}
    if door.door_socket(block).exists():
        held.add(block.door_port)
    # Engines and the data plane outlive everything else, and listen in the range that must stay theirs.
    if recorded(block.parts_dir, "node_agent") is not None or any(block.shim_dir.glob("*.sock")):
        held |= set(range(block.base_port, block.base_port + PORTS_PER_CLUSTER))
    return frozenset(held)


def _already_up(request: UpRequest, loaded: Loaded) -> int:
    block = cluster.load(request.data_dir)
    if block is None:
        raise Failure("cluster.start_failed", "a start is under way but has recorded nothing yet", hint="try again")
    wanted, now = loaded.settings, recording.loaded_settings(block.data_dir, {}).settings
    for key, given in request.flags.items():
        if given is not None and getattr(wanted, key) != getattr(now, key):
            raise Failure(
                "cluster.settings_differ",
                f"this cluster runs with {key} {getattr(now, key)!r}, not {getattr(wanted, key)!r}",
                hint="run `slice down` first, or use another --data-dir for a second cluster",
                param=key,
            )
    journal = detached.journal_file(block)
    states = [line.mark for line in JournalReader(journal).new_lines() if line.mark in {Mark.READY, Mark.STOPPING}]
    if states[-1:] == [Mark.STOPPING]:
        raise detached.stopping()
    if not states:
        detached.follow(journal, lambda: lock.is_held(block.data_dir), is_plain=request.output == "json")
    _await_answers(block)
    _tell(block, request.output, "already up: nothing to do")
    return 0


def _await_answers(block: ClusterBlock) -> None:
    """See that what is said to be up answers; wait a while for a part that is just being started again.

    Raises:
        Failure: `cluster.not_running` when it does not.
    """
    probes = {"front door": wiring.door_is_ready, "controller": wiring.controller_is_ready}
    pause = threading.Event()
    for looks in range(_ANSWER_LOOKS):
        silent = [name for name, probe in probes.items() if not asyncio.run(_probed(probe, block))]
        if not silent:
            return
        if looks == 0:
            print(f"up, but the {' and the '.join(silent)} does not answer yet; waiting", file=sys.stderr)
        pause.wait(1.0)
    raise Failure(
        "cluster.not_running",
        f"the supervisor runs, but the {' and the '.join(silent)} does not answer",
        hint="`slice doctor` says more; `slice down` and `slice up` start everything anew",
    )


async def _probed(probe: Callable[[ClusterBlock], Awaitable[bool]], block: ClusterBlock) -> bool:
    return await probe(block)


def _in_foreground(request: UpRequest, block: ClusterBlock, held: SupervisorLock) -> int:
    def follow() -> None:
        # The supervisor below tells the same failure; this thread only shows the way there.
        with contextlib.suppress(Failure):
            detached.follow(detached.journal_file(block), lambda: True, is_plain=True)
            _tell(block, request.output, "")

    threading.Thread(target=follow, daemon=True).start()
    failure = asyncio.run(supervisor_root.supervise(block, held))
    if failure is not None:
        raise failure
    return 0


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
