"""A thousand sessions by mTLS on one controller, and two storms of hellos; the clients are on the same machine.

In: nothing but this machine. Out: tables. Called by `python -m bench sessions`; nothing is a test. The controller and
PostgreSQL are the processes that `slice up` starts, from the same parts, without the front door and a node agent.
`SLICE_BENCH_NODES` (1000), `SLICE_BENCH_SECONDS` (300) and `SLICE_BENCH_CLIENTS` (processes, 3) change its size.
"""

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import psycopg

from bench.report import Section, percentile
from cli.cluster import parts, recording, wiring
from core.infra import cluster
from core.infra.cluster import ClusterBlock
from core.infra.entropy import SystemEntropy
from core.infra.processes import family
from tests.controller.remote import free_ports
from tests.system.cluster import free_port_pair
from tests.waiting import until_async

NODES = int(os.environ.get("SLICE_BENCH_NODES", "1000"))
SECONDS = float(os.environ.get("SLICE_BENCH_SECONDS", "300"))
PROCESSES = int(os.environ.get("SLICE_BENCH_CLIENTS", "3"))
_STORM_S = 180.0
_MINTS_AT_ONCE = 8


def measured() -> list[Section]:
    """Return the tables."""
    home = Path(tempfile.mkdtemp(prefix="sl-bench-"))
    home.chmod(0o700)
    try:
        return asyncio.run(_measured(home))
    finally:
        shutil.rmtree(home, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Use:
    """CPU seconds since a process began (its dead children counted), and bytes of memory."""

    cpu_s: float
    rss_bytes: int
    pss_bytes: int


@dataclass(kw_only=True)
class Storm:
    """Seconds from `began` until the first and the last session was open, all were ready, and all had their orders."""

    began: float
    opened: list[float] = field(default_factory=list)
    applied: list[float] = field(default_factory=list)
    ready_s: float = 0.0
    controller_cpu_s: float = 0.0
    postgres_cpu_s: float = 0.0
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def open_s(self) -> tuple[float, float, float]:
        """First, median, last."""
        ordered = sorted(at - self.began for at in self.opened)
        return ordered[0], percentile(ordered, 0.5), ordered[-1]


class Bench:
    """One PostgreSQL, one controller, and the processes of the clients."""

    def __init__(self, home: Path) -> None:
        self.home = home
        door, nodes = free_port_pair(), free_ports()
        data = home / "data"
        recording.claim(data)
        (data / "slice.toml").write_text(
            f'port = {door}\ncontroller_port = {door + 1}\nnode_host = "127.0.0.1"\nnode_port = {nodes}\n'
        )
        loaded = recording.loaded_settings(data, {})
        self.block: ClusterBlock = recording.prepared_block(data, loaded, SystemEntropy(), living=frozenset())
        self.heartbeat_s = loaded.settings.heartbeat_s
        self.target = f"127.0.0.1:{nodes}"
        self.postgres, self.controller = wiring.parts_of(self.block, loaded.settings)[:2]
        self.clients: list[Process] = []

    async def start(self) -> None:
        """Start PostgreSQL and the controller."""
        for part in (self.postgres, self.controller):
            await part.start()
            await until_async(part.is_ready, 60.0, part.name)

    async def stop(self) -> None:
        """End everything that was started here."""
        for client in self.clients:
            if client.returncode is None:
                client.kill()
            await client.wait()
        for part, word in ((self.controller, signal.SIGTERM), (self.postgres, signal.SIGINT)):
            process = parts.recorded(self.block.parts_dir, part.name)
            if process is not None:
                await parts.stop_process(process, word, 20.0)
        shutil.rmtree(self.block.runtime_dir, ignore_errors=True)

    def pid(self, part: parts.Part) -> int:
        """Return the pid of a part that runs."""
        process = parts.recorded(self.block.parts_dir, part.name)
        assert process is not None, part.last_words()
        return process.pid

    def use(self, pid: int) -> Use:
        """Return what a process and its descendants have taken."""
        cpu_s, rss, pss = 0.0, 0, 0
        for item in family(frozenset({pid})):
            try:
                times = psutil.Process(item.pid).cpu_times()
                rolled = Path(f"/proc/{item.pid}/smaps_rollup").read_text()
            except (psutil.Error, OSError):
                continue
            cpu_s += times.user + times.system + times.children_user + times.children_system
            rss, pss = rss + _bytes(rolled, "Rss"), pss + _bytes(rolled, "Pss")
        return Use(cpu_s=cpu_s, rss_bytes=rss, pss_bytes=pss)

    def uses(self) -> dict[str, Use]:
        """Return what each side takes."""
        clients = [self.use(client.pid) for client in self.clients]
        return {
            "controller": self.use(self.pid(self.controller)),
            "PostgreSQL": self.use(self.pid(self.postgres)),
            "clients": Use(
                cpu_s=sum(one.cpu_s for one in clients),
                rss_bytes=sum(one.rss_bytes for one in clients),
                pss_bytes=sum(one.pss_bytes for one in clients),
            ),
        }

    async def say(self, word: str) -> list[dict[str, Any]]:
        """Say a word to every client and return the answers."""
        for client in self.clients:
            assert client.stdin is not None
            client.stdin.write(f"{word}\n".encode())

        async def answer(client: Process) -> dict[str, Any]:
            assert client.stdout is not None
            line = await client.stdout.readline()
            assert line, "a process of clients has ended"
            found: dict[str, Any] = json.loads(line)
            return found

        return list(await asyncio.gather(*(answer(client) for client in self.clients)))


async def _measured(home: Path) -> list[Section]:
    bench = Bench(home)
    try:
        await bench.start()
        async with aiohttp.ClientSession(
            base_url=bench.block.controller_url,
            headers={"Authorization": f"Bearer {cluster.read_secret(bench.block, 'operator_token')}"},
        ) as admin:
            return await _run(bench, admin)
    except AssertionError:
        _say((bench.block.log_dir / "controller.log").read_text()[-3000:])
        raise
    finally:
        await bench.stop()


async def _run(bench: Bench, admin: aiohttp.ClientSession) -> list[Section]:
    joined = await _joined(bench, admin)
    began = time.monotonic()
    await bench.say("dial")
    first = await _storm(bench, admin, began)
    _say(f"first storm: {first.ready_s:.1f} s")
    before, since = bench.uses(), await _last_event(bench)
    await bench.say("tell")
    started = time.monotonic()
    await asyncio.sleep(SECONDS)  # what is measured is a span of time
    took_s = time.monotonic() - started
    answers, after = await bench.say("tell"), bench.uses()
    losses = await _losses(bench, since)
    acks = [value for answer in answers for value in answer["acks_ms"]]
    broken = sum((Counter(answer["broken"]) for answer in answers), Counter[str]())
    _say(f"{took_s:.0f} s: {len(acks)} acks, p99 {percentile(acks, 0.99):.1f} ms, {dict(losses)}, {dict(broken)}")
    second, second_losses = await _killed(bench, admin)
    _say(f"second storm: {second.ready_s:.1f} s")
    return [
        joined,
        _storms(first, second, second_losses),
        _steady(bench, acks, losses, broken, took_s),
        _costs(before, after, took_s),
    ]


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


async def _joined(bench: Bench, admin: aiohttp.ClientSession) -> Section:
    gate = asyncio.Semaphore(_MINTS_AT_ONCE)

    async def minted(number: int) -> dict[str, Any]:
        async with gate, admin.post("/api/v1/nodes/tokens", json={"ttl_s": 3600}) as answer:
            assert answer.status < 300, await answer.text()
            line = (await answer.json())["line"]
        return {"number": number, "node_id": f"nod_bench{number:04d}", "name": f"bench-{number:04d}", "line": line}

    began = time.monotonic()
    nodes = await asyncio.gather(*(minted(number) for number in range(NODES)))
    minted_s, began = time.monotonic() - began, time.monotonic()
    for index in range(PROCESSES):
        file = bench.home / f"clients{index}.json"
        told = {
            "cluster_id": bench.block.cluster_id,
            "authority_pem": bench.block.secret_file("authority.pem").read_text(),
            "target": bench.target,
            "directory": str(bench.home),
            "nodes": nodes[index::PROCESSES],
        }
        file.write_text(json.dumps(told))
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.session_clients", str(file), stdin=PIPE, stdout=PIPE, limit=256 * 1024**2
        )
        bench.clients.append(client)
    cpu = bench.uses()
    answers = await bench.say("join")
    joined_s, used = time.monotonic() - began, bench.uses()
    _say(f"joined {NODES} in {joined_s:.1f} s")
    per_s = NODES / joined_s
    return Section(
        title=f"{NODES} machines join",
        method=f"Each by a token of its own and the Join call over a TLS connection of its own, "
        f"{PROCESSES} processes with 8 at once; key, request and the files of the certificate included.",
        header=("figure", "value"),
        rows=(
            ("tokens made (admin API)", f"{minted_s:.1f} s"),
            ("all joined", f"{joined_s:.1f} s, {per_s:.0f}/s"),
            ("one join, median / maximum", f"{answers[0]['p50_ms']:.0f} / {max(a['max_ms'] for a in answers):.0f} ms"),
            ("CPU of controller", f"{used['controller'].cpu_s - cpu['controller'].cpu_s:.1f} s"),
            ("CPU of PostgreSQL", f"{used['PostgreSQL'].cpu_s - cpu['PostgreSQL'].cpu_s:.1f} s"),
        ),
    )


async def _storm(bench: Bench, admin: aiohttp.ClientSession, began: float, cpu_s: float | None = None) -> Storm:
    """Wait until every node is ready; `cpu_s` is what the controller had used at `began`."""
    storm = Storm(began=began)
    controller, postgres = bench.pid(bench.controller), bench.use(bench.pid(bench.postgres)).cpu_s
    cpu_s = bench.use(controller).cpu_s if cpu_s is None else cpu_s

    async def is_over() -> bool:
        for answer in await bench.say("tell"):
            storm.opened += [at for at in answer["opened"] if at >= began]
            storm.applied += [at for at in answer["applied"] if at >= began]
            storm.refused.update(answer["refused"])
        if not storm.ready_s and await _ready(admin) == NODES:
            storm.ready_s = time.monotonic() - began
            storm.controller_cpu_s = bench.use(controller).cpu_s - cpu_s
            storm.postgres_cpu_s = bench.use(bench.pid(bench.postgres)).cpu_s - postgres
        await asyncio.sleep(0.2)  # looking costs the controller something itself
        return bool(storm.ready_s) and len(storm.applied) >= NODES

    try:
        await until_async(is_over, _STORM_S, f"{NODES} nodes")
    finally:
        _say(f"opened {len(storm.opened)}, had orders {len(storm.applied)}, refused {dict(storm.refused)}")
    return storm


async def _ready(admin: aiohttp.ClientSession) -> int:
    try:
        async with admin.get("/metrics") as answer:
            lines = (await answer.text()).splitlines()
    except aiohttp.ClientError:
        return 0
    found = [line for line in lines if line.startswith('slice_nodes{state="ready"}')]
    return int(float(found[0].split()[-1])) if found else 0


async def _killed(bench: Bench, admin: aiohttp.ClientSession) -> tuple[Storm, Counter[str]]:
    since, was = await _last_event(bench), bench.pid(bench.controller)
    os.kill(was, signal.SIGKILL)
    await bench.controller.ended()
    await asyncio.sleep(2.0)  # so that all nodes have noticed
    began = time.monotonic()
    await bench.controller.start()
    storm = await _storm(bench, admin, began, cpu_s=0.0)
    return storm, await _losses(bench, since)


async def _last_event(bench: Bench) -> int:
    return (await _asked(bench, "SELECT coalesce(max(seq), 0) FROM controller.event"))[0][0]  # type: ignore[no-any-return]


async def _losses(bench: Bench, since: int) -> Counter[str]:
    """Return how many transitions to suspect and lost, and turns of the brake, the ledger has since event `since`."""
    rows = await _asked(
        bench,
        "SELECT kind, count(*) FROM controller.event WHERE seq > %(since)s"
        " AND kind IN ('node_suspect', 'node_lost', 'node_offline', 'node_brake') GROUP BY kind",
        since=since,
    )
    return Counter(dict(rows))


async def _asked(bench: Bench, query: Any, **values: object) -> list[Any]:
    url = cluster.read_secret(bench.block, "database_url")
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        return await (await connection.execute(query, values)).fetchall()


def _storms(first: Storm, second: Storm, losses: Counter[str]) -> Section:
    def row(name: str, storm: Storm) -> tuple[str, ...]:
        times = " / ".join(f"{value:.1f}" for value in storm.open_s)
        refused = ", ".join(f"{code} {count}" for code, count in sorted(storm.refused.items())) or "none"
        return (
            name,
            f"{times} s",
            f"**{storm.ready_s:.1f} s**",
            f"{sorted(storm.applied)[NODES - 1] - storm.began:.1f} s",
            f"{storm.controller_cpu_s:.1f} s",
            f"{storm.postgres_cpu_s:.1f} s",
            refused,
        )

    lost = ", ".join(f"{kind} {count}" for kind, count in sorted(losses.items())) or "none"
    return Section(
        title=f"Storms of {NODES} hellos",
        method="First: all dial at once a controller that runs. Second: SIGKILL to the controller, two seconds in "
        "which all notice, and from the start of its next process on; the nodes dial with their own back-off. Open: "
        "the node has its HelloAck. Ready: as /metrics tells. Orders: the desired set has come. CPU is until all are "
        f"ready, in the second storm with the controller's start. Transitions recorded in the second storm: {lost}.",
        header=(
            "storm",
            "open: first / median / last",
            "all ready",
            "all have orders",
            "CPU controller",
            "CPU PostgreSQL",
            "refusals",
        ),
        rows=(row("first", first), row("after SIGKILL", second)),
    )


def _steady(bench: Bench, acks: list[float], losses: Counter[str], broken: Counter[str], took_s: float) -> Section:
    lost = ", ".join(f"{kind} {count}" for kind, count in sorted(losses.items())) or "0"
    ends = ", ".join(f"{why} {count}" for why, count in sorted(broken.items())) or "0"
    return Section(
        title=f"{NODES} sessions for {took_s:.0f} s",
        method=f"Each session is the node agent's own loop with its own channel, TCP connection and TLS handshake: a "
        f"heartbeat every {bench.heartbeat_s:g} s (10 % jitter), the whole observation (5 replicas, 3 files, 4 "
        "engines) every 5 s, 5 devices. An acknowledgement's latency is from before the heartbeat is written to when "
        "the node's loop has read the answer, the clients' own waiting for a core included.",
        header=("figure", "value", "bar"),
        rows=(
            ("acknowledgements", str(len(acks)), f"{NODES / bench.heartbeat_s * took_s:.0f} expected"),
            ("latency p50", f"{percentile(acks, 0.5):.1f} ms", ""),
            ("latency p99", f"{percentile(acks, 0.99):.1f} ms", "500 ms"),
            ("latency max", f"{max(acks):.1f} ms", ""),
            ("suspect, lost or offline", lost, "0"),
            ("sessions broken", ends, "0"),
        ),
    )


def _costs(before: dict[str, Use], after: dict[str, Use], took_s: float) -> Section:
    rows = []
    for name, use in after.items():
        per_s = (use.cpu_s - before[name].cpu_s) / took_s * 1000
        rows.append(
            (
                name,
                f"{per_s:.0f} ms/s",
                f"{per_s * 1000 / NODES:.0f} ms/s",
                f"{use.rss_bytes / 2**20:.0f} MiB",
                f"{use.pss_bytes / 2**20:.0f} MiB",
            )
        )
    return Section(
        title="What they cost",
        method="CPU over those seconds from /proc, RSS and PSS at their end, each with its child processes.",
        header=("who", "CPU", "CPU per 1,000 sessions", "RSS", "PSS"),
        rows=tuple(rows),
    )


def _bytes(rolled: str, name: str) -> int:
    return next((int(line.split()[1]) * 1024 for line in rolled.splitlines() if line.startswith(f"{name}:")), 0)
