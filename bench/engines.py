"""What engines cost under Slice: load, memory foreseen and measured, cancellation, adoption, a pull of what is here.

In: a cluster with four engines serving one model. Out: tables. Called by `python -m bench engines`; nothing is a test.
"""

import subprocess
import time
import urllib.request
from pathlib import Path

from adapters import registry
from bench.report import Section, spread
from core.apikeys import engine_key
from core.ids import ReplicaId
from core.infra import cluster
from core.infra.processes import family
from core.units import text_from_bytes
from tests.contract.watching import idle_after_s, until_low_s
from tests.fakes.hub import Hub
from tests.ggufs import write_random_llama
from tests.system.cluster import Running, free_port_pair, kill
from tests.system.four_engines import ENGINES, pid, states
from tests.waiting import until

RUNS = 3  # a fifth exit within a quarter of an hour would be a crash loop
STREAMS = 20
_STORY = [{"role": "user", "content": "Write a very long story about the sea."}]


def measured(running: Running, hub: Hub) -> list[Section]:
    """Return all tables; `hub` is the one that the cluster's settings name."""
    return [_memory(running), _loads(running), _cancellations(running), _adoptions(running), _pulls(running, hub)]


def _memory(running: Running) -> Section:
    for name in ENGINES:
        _asked(running, name)
    rows = []
    for name, engine in ENGINES.items():
        (replica,) = running.replicas(name)
        foreseen = running.admin(f"deployments/{name}")["footprint"]
        until(lambda name=name: running.replicas(name)[0]["memory_bytes"] > 0, 30.0, f"the memory of {name}")
        rows.append(
            (
                f"{engine} {replica['engine_version']}",
                text_from_bytes(foreseen["total_bytes"]),
                text_from_bytes(running.replicas(name)[0]["memory_bytes"]),
            )
        )
    return Section(
        title="Memory foreseen and measured, after one request",
        method="The deployment's footprint (the promise) and the PSS of the replica's process tree as the node agent "
        "reports it. SmolLM2-135M; GGUF Q4_1 for llama.cpp and the Ollama stand-in (which is llama.cpp underneath), "
        "BF16 safetensors for vLLM and transformers.",
        header=("engine", "foreseen", "measured"),
        rows=tuple(rows),
    )


def _loads(running: Running) -> Section:
    rows = []
    for name, engine in ENGINES.items():
        loads = []
        for _ in range(RUNS):
            before = pid(running, name)
            kill(before)
            until(
                lambda n=name, b=before: states(running, n) == ["ready"] and pid(running, n) not in (0, b), 300.0, name
            )
            loads.append(float(running.replicas(name)[0]["load_s"]))
        rows.append((engine, *spread(loads, "s"), str(len(loads))))
    return Section(
        title="Spawn to ready, provisioning included, the other three engines resident",
        method="`load_s` of the replica after its engine was killed with SIGKILL and restarted by the node agent.",
        header=("engine", "median", "minimum", "maximum", "runs"),
        rows=tuple(rows),
    )


def _cancellations(running: Running) -> Section:
    rows = []
    for name, engine in ENGINES.items():
        took = []
        for _ in range(STREAMS):
            stream = running.client().chat.completions.create(
                model=name, messages=_STORY, max_tokens=1500, stream=True, temperature=0
            )
            chunks = iter(stream)
            for _ in range(3):
                next(chunks)
            members = list(family(frozenset({pid(running, name)})))
            stream.close()
            if engine == "vllm":
                took.append(until_low_s(lambda n=name: _running_requests(running, n), 0, 30.0) * 1000)
            else:
                took.append(idle_after_s(members, 30.0) * 1000)
        rows.append((engine, *spread(took, "ms", 0), "300 ms"))
    return Section(
        title="Cancellation reaching the engine",
        method=f"{STREAMS} streams each, through the front door of the running cluster. From the close of the client's "
        "connection after the third chunk to the last quarter second in which the engine's process tree uses less "
        "than a tenth of a core (sampled every 10 ms, /proc ticks of 10 ms). vLLM's processes spin for a second after "
        "every step, cut or not: of vLLM it is its own count of running requests that falls to 0.",
        header=("engine", "median", "minimum", "maximum", "bar"),
        rows=tuple(rows),
    )


def _running_requests(running: Running, name: str) -> float | None:
    (replica,) = running.replicas(name)
    key = engine_key(bytes.fromhex(cluster.read_secret(running.block, "engine_seed")), ReplicaId(replica["id"]))
    request = urllib.request.Request(f"http://{replica['address']}/metrics", headers={"Authorization": f"Bearer {key}"})
    metric = registry.adapter(replica["engine"]).metrics["slice_engine_requests_running"]
    with urllib.request.urlopen(request, timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(metric)), None)


def _asked(running: Running, name: str) -> None:
    running.client().chat.completions.create(model=name, messages=_STORY, max_tokens=8, temperature=0)


def _adoptions(running: Running) -> Section:
    times, places = [], running.data_dir.parent / "somebody"
    port = free_port_pair()
    url = f"http://127.0.0.1:{port}"
    environment = {
        **running.environment(),
        "HOME": str(places),
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": str(places / "models"),
        "OLLAMA_NOPRUNE": "1",
    }
    places.mkdir(exist_ok=True)
    server = subprocess.Popen(
        ["ollama", "serve"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: _answers(f"{url}/api/version"), 30.0, "their Ollama")
        digest = running.json("show", "smollm2")["versions"][0]["files"][0]["sha256"]
        blob = running.block.node_dir / "store" / "sha256" / digest[:2] / digest
        _post(f"{url}/api/blobs/sha256:{digest}", blob.read_bytes())
        _post(f"{url}/api/create", b'{"model": "theirs", "files": {"m.gguf": "sha256:%s"}}' % digest.encode())
        before = _tree(places / "models")
        for _ in range(RUNS):
            began = time.perf_counter()
            running.slice("engine", "adopt", "ollama", "--url", url)
            until(lambda: "theirs" in running.slice("list", "-o", "name").stdout, 30.0, "their model to be listed")
            running.slice("deploy", "theirs")
            until(lambda: _can_ask(running, "theirs"), 60.0, "their model to answer")
            times.append(time.perf_counter() - began)
            running.slice("undeploy", "theirs")
            until(lambda: running.replicas("theirs") == [], 30.0, "it to be gone")
            running.slice("engine", "adopt", "ollama", "--url", url, "--end")
            running.slice("rm", "theirs", "--force")
        is_untouched = _tree(places / "models") == before
    finally:
        server.terminate()
        server.wait(30)
    return Section(
        title="Adopting a running Ollama (stand-in): from the command to the first answer",
        method=f"{RUNS} runs: `slice engine adopt`, wait until `slice list` names the model, `slice deploy`, ask "
        "through the front door until it answers. Three CLI starts (about 0.2 s each) are included. Their store (names,"
        f" sizes, times of change) afterwards: {'untouched' if is_untouched else 'CHANGED'}.",
        header=("figure", "median", "minimum", "maximum", "bar"),
        rows=(("adopt to first answer", *spread(times, "s"), "5 s"),),
    )


def _pulls(running: Running, hub: Hub) -> Section:
    weights = write_random_llama(running.data_dir.parent / "hub.gguf", seed=3).read_bytes()
    commit = hub.repository("org/tiny").commit({"tiny.gguf": weights})
    source = f"hf:org/tiny@{commit}:tiny.gguf"
    running.slice("pull", "tiny", "--source", source)
    first = hub.requests()
    times = []
    for number in range(RUNS):
        began = time.perf_counter()
        running.slice("pull", f"tiny-{number}", "--source", source)
        times.append(time.perf_counter() - began)
    later = hub.requests() - first
    return Section(
        title="Pull of a file that is in the store already",
        method=f"`slice pull` of a pinned source of a hub on loopback, {RUNS} times under new names. The hub saw "
        f"{first} requests for the first pull and {later} for all the others.",
        header=("figure", "median", "minimum", "maximum", "requests"),
        rows=(("a later pull, CLI start included", *spread(times, "s"), str(later)),),
    )


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False


def _post(url: str, body: bytes) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, body, method="POST"), timeout=120) as reply:
        reply.read()


def _can_ask(running: Running, name: str) -> bool:
    try:
        _asked(running, name)
    except Exception:  # noqa: BLE001 - whatever it says, it does not serve yet
        return False
    return True


def _tree(directory: Path) -> list[tuple[str, int, int]]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
