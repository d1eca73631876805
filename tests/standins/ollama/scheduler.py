"""Which models are loaded: one llama.cpp child for each, kept as `keep_alive` says, a bounded queue before them.

Source: ollama/ollama server/sched.go and llm/llama_server.go of 0.33. The real queue holds requests that wait for a
load; here it also holds those that wait for a slot.
"""

import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from tests.standins.llama import Load, Runner
from tests.standins.ollama.errors import ApiError
from tests.standins.ollama.store import Model

FOREVER_S = 2**63 / 1e9
_NO_SHIFT_FROM = 8192  # smaller contexts are shifted when an answer outgrows them, larger ones end it
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(value: object) -> float:
    """Return a keep_alive as seconds: numbers are seconds, texts are durations like "5m", negative is for ever.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return FOREVER_S if value < 0 else float(value)
    text = str(value)
    if re.fullmatch(r"-?\d+", text):
        return seconds(int(text))
    found = _DURATION.findall(text)
    if not found or "".join(number + unit for number, unit in found) != text.lstrip("-"):
        raise ValueError(f'time: invalid duration "{text}"')
    return FOREVER_S if text.startswith("-") else sum(float(number) * _UNITS[unit] for number, unit in found)


class Loaded:
    """One runner and who uses it."""

    def __init__(self, model: Model, runner: Runner, slots: int) -> None:
        self.model = model
        self.runner = runner
        self.slots = threading.Semaphore(slots)
        self.users = 0
        self.keep_alive_s = 0.0
        self.expires_at = 0.0

    @property
    def expires(self) -> str:
        left = min(self.expires_at - time.monotonic(), 3.15e9)
        return (datetime.now(UTC) + timedelta(seconds=max(0.0, left))).isoformat().replace("+00:00", "Z")


class Scheduler:
    """Owner of the runners; called from every request's thread."""

    def __init__(self, *, context: int, parallel: int, max_loaded: int, max_queue: int, keep_alive_s: float) -> None:
        self.context = context
        self._parallel = parallel
        self._max_loaded = max_loaded or 3
        self._max_queue = max_queue
        self._keep_alive_s = keep_alive_s
        self._lock = threading.Condition()
        self._loaded: dict[str, Loaded] = {}
        self._waiting = 0
        self._is_closed = False
        threading.Thread(target=self._expire, daemon=True).start()

    @contextmanager
    def use(self, model: Model, options: dict, keep_alive: object) -> Iterator[Loaded]:
        """Give a loaded runner of `model` with a free slot for one request.

        Raises:
            ApiError: 503 when too many wait; 500 when the model cannot be loaded.
        """
        keep_s = self._keep_alive_s if keep_alive is None else seconds(keep_alive)
        with self._lock:
            if self._waiting >= self._max_queue:
                raise ApiError(503, "server busy, please try again.  maximum pending requests exceeded")
            self._waiting += 1
        try:
            entry = self._entry(model, int(options.get("num_ctx") or self.context))
            entry.slots.acquire()
        finally:
            with self._lock:
                self._waiting -= 1
        try:
            yield entry
        finally:
            entry.slots.release()
            self._release(entry, keep_s)

    def unload(self, model: Model) -> None:
        with self._lock:
            entry = self._loaded.get(model.digest)
            if entry is not None:
                entry.expires_at = entry.keep_alive_s = 0.0
                self._lock.notify_all()

    def loaded(self) -> list[Loaded]:
        with self._lock:
            return [entry for entry in self._loaded.values() if entry.runner.is_alive]

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            for entry in self._loaded.values():
                entry.runner.stop()
            self._loaded.clear()

    def _entry(self, model: Model, context: int) -> Loaded:
        with self._lock:
            entry = self._loaded.get(model.digest)
            if entry is not None and (not entry.runner.is_alive or entry.runner.load.context != context):
                self._lock.wait_for(lambda: entry.users == 0 or not entry.runner.is_alive)
                self._drop(entry)
                entry = None
            if entry is None:
                self._make_room()
                entry = self._load(model, context)
            entry.users += 1
            return entry

    def _make_room(self) -> None:
        while len(self._loaded) >= self._max_loaded:
            self._lock.wait_for(lambda: any(entry.users == 0 for entry in self._loaded.values()))
            idle = [entry for entry in self._loaded.values() if entry.users == 0]
            self._drop(min(idle, key=lambda entry: entry.keep_alive_s))

    def _load(self, model: Model, context: int) -> Loaded:
        is_embedding = bool(model.config["pooling"])
        load = Load(
            name="llama-server",
            model_path=str(model.path),
            context=context,
            parallel=self._parallel,
            batch=min(512, context) if not is_embedding else context,
            context_shift=context < _NO_SHIFT_FROM,
            embedding=is_embedding,
        )
        runner = Runner(load)
        if not runner.wait_until_ready():
            runner.stop()
            raise ApiError(500, f"llama runner process has terminated: exit status {runner.process.returncode}")
        print(f'level=INFO msg="llama-server started" model={model.path}', file=sys.stderr, flush=True)
        entry = Loaded(model, runner, self._parallel)
        self._loaded[model.digest] = entry
        return entry

    def _release(self, entry: Loaded, keep_s: float) -> None:
        with self._lock:
            entry.users -= 1
            entry.keep_alive_s = keep_s
            entry.expires_at = time.monotonic() + keep_s
            self._lock.notify_all()

    def _drop(self, entry: Loaded) -> None:
        entry.runner.stop()
        self._loaded.pop(entry.model.digest, None)

    def _expire(self) -> None:
        with self._lock:
            while not self._is_closed:
                now = time.monotonic()
                for entry in [e for e in self._loaded.values() if e.users == 0 and e.expires_at <= now]:
                    self._drop(entry)
                nearest = min((e.expires_at for e in self._loaded.values() if e.users == 0), default=FOREVER_S)
                self._lock.wait(min(max(0.0, nearest - now), 3600.0))
