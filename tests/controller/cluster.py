"""A whole controller in this process, on a real port and a real unix socket, and clients of it.

Used by fixtures and tests; `stop` and `start` restart the controller on the same database, as a supervisor would.
"""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import psycopg

from controller.fleet.admission import Bounds
from controller.process import Controller, ControllerConfig
from core.infra.clock import SystemClock
from core.infra.entropy import SystemEntropy
from core.infra.logs import Log
from tests.waiting import until_async

OPERATOR, NODE, DOOR = "operator-token", "node-token", "door-token"


class Cluster:
    """One controller over one database."""

    def __init__(
        self,
        url: str,
        runtime: Path,
        *,
        heartbeat_s: float = 0.2,
        drain_timeout_s: float = 10.0,
        port: int = 0,
        disk_pressure_bytes: int = 0,
        node_port: int = 0,
        own_node_id: str = "",
        bounds: Bounds = Bounds(),  # noqa: B008 - frozen
    ) -> None:
        self.socket = runtime / "control.sock"
        self.node_port = node_port
        self.url = url
        self.log = io.StringIO()
        self._config = ControllerConfig(
            cluster_id="clu_test",
            database_url=url,
            host="127.0.0.1",
            port=port,
            control_socket=self.socket,
            operator_token=OPERATOR,
            node_token=NODE,
            door_token=DOOR,
            key_pepper=b"pepper",
            engine_seed=b"seed",
            secret_key=b"k" * 32,
            openai_base_url="http://127.0.0.1:1/v1",
            heartbeat_s=heartbeat_s,
            drain_timeout_s=drain_timeout_s,
            cpu_memory_reserve_bytes=0,
            version="0.0.test",
            secrets_dir=runtime,
            disk_pressure_bytes=disk_pressure_bytes,
            node_host="127.0.0.1" if node_port else "",
            node_port=node_port,
            own_node_id=lambda: own_node_id,
            hellos=bounds,
        )
        self._stop = asyncio.Event()
        self._starts = 0
        self._task: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None
        self.controller: Controller | None = None

    async def __aenter__(self) -> "Cluster":
        self._session = aiohttp.ClientSession()
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()
        await self.stop()

    async def start(self) -> None:
        """Start a controller; it listens when this returns."""
        self._stop = asyncio.Event()
        self._starts += 1
        self.controller = Controller(
            self._config, clock=SystemClock(), entropy=SystemEntropy(), log=Log("controller", SystemClock(), self.log)
        )
        self._task = asyncio.create_task(self.controller.run_until(self._stop))

    async def stop(self) -> None:
        """End the controller and wait for it."""
        if self._task is not None:
            self._stop.set()
            task, self._task = self._task, None
            await task

    async def ended(self) -> None:
        """Wait until the controller ends by itself; its failure is raised here."""
        assert self._task is not None
        task, self._task = self._task, None
        async with asyncio.timeout(20):
            await task

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Any]:
        """Lend a connection of one's own to its database."""
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            yield connection

    @property
    def base(self) -> str:
        assert self.controller is not None
        return f"http://127.0.0.1:{self.controller.http.port}"

    async def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str | None = OPERATOR,
        raw: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any]:
        """Return status and decoded body (text where it is no JSON)."""
        assert self._session is not None
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        data = raw if raw is not None else json.dumps(body).encode() if body is not None else None
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        body_file = None if data is None else io.BytesIO(data)
        async with self._session.request(method, self.base + path, data=body_file, headers=sent) as answer:
            text = await answer.text()
            is_json = answer.headers.get("content-type", "").startswith("application/json")
            return answer.status, json.loads(text) if is_json and text else text

    async def get(self, path: str) -> Any:
        """Return the body of a GET below /api/v1 that must succeed."""
        status, body = await self.request("GET", f"/api/v1/{path}")
        assert status == 200, body
        return body

    async def ok(self, method: str, path: str, body: object = None) -> Any:
        """Return the body of a call below /api/v1 that must succeed."""
        status, answer = await self.request(method, f"/api/v1/{path}", body)
        assert status < 300, answer
        return answer

    async def ready(self) -> None:
        """Wait until the controller leads and its socket is there."""

        async def is_ready() -> bool:
            assert self._task is not None
            if self._task.done():
                self._task.result()
            is_open = not self.node_port or self.log.getvalue().count('"nodes_may_join"') == self._starts
            return (await self.request("GET", "/health"))[0] == 200 and self.socket.exists() and is_open

        await until_async(is_ready, what="the controller")
