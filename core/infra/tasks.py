"""The guarded spawner: background tasks whose death is never silent."""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any

from core.infra.logs import Log


class TaskGuard:
    """Owns tasks that are meant to live as long as the process.

    `eternal` tasks that end, by return or by exception, are logged once and set `failed`, on which the process's main
    function stops loudly. `brief` tasks may end; only their exceptions are logged. Leaving the context cancels all.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closing = False
        self.failed = asyncio.Event()

    def eternal(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start `work`, whose end is a failure of the process."""
        return self._start(name, work, is_eternal=True)

    def brief(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start `work`, whose end is expected."""
        return self._start(name, work, is_eternal=False)

    def _start(self, name: str, work: Coroutine[Any, Any, Any], *, is_eternal: bool) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(done, is_eternal=is_eternal))
        return task

    def _ended(self, task: asyncio.Task[Any], *, is_eternal: bool) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._log.error("task_failed", task=task.get_name(), error=repr(error), exc=error)
        if is_eternal and not self._is_closing:
            self._log.error("eternal_task_ended", task=task.get_name())
            self.failed.set()

    async def __aenter__(self) -> "TaskGuard":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_closing = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
