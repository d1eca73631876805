"""The HTTP calls that make an engine ready after it answers its probe, in order, each made until it has succeeded.

Comes in: an adapter's `HttpStep`s and the engine's key. Goes out: why it is not ready yet, or nothing. Called by
`node_agent.runner` between the first passed probe and `ready`. A call blocks for minutes, in a thread of its own: the
event loop's own few threads are what heartbeats are made in.
"""

import asyncio
import http.client
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from adapters.contract import HttpStep

_MAX_ANSWER_BYTES = 1024**2


class Provisioning:
    """How far one spawn's steps are; a step that was done is not made again."""

    def __init__(self, steps: Sequence[HttpStep], key: str) -> None:
        self._steps = list(steps)
        self._key = key
        self._done = 0

    async def advance(self, host: str, port: int) -> str:
        """Make the remaining steps at `host:port`; return "" when all are done, else what went wrong in a sentence."""
        while self._done < len(self._steps):
            step = self._steps[self._done]
            status = await _threaded(partial(_made, step, host, port, self._key))
            if status not in step.statuses:
                said = f"answers {status}" if status else "does not answer"
                return f"{step.method} {step.path} {said}"
            self._done += 1
        return ""


async def _threaded(work: Callable[[], int]) -> int:
    pool = ThreadPoolExecutor(1, thread_name_prefix="provision")
    try:
        return await asyncio.get_running_loop().run_in_executor(pool, work)
    finally:
        pool.shutdown(wait=False)


def _made(step: HttpStep, host: str, port: int, key: str) -> int:
    """Make one call and return its status, 0 when there was none. Blocks."""
    connection = http.client.HTTPConnection(host, port, timeout=step.timeout_s)
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
    try:
        body = None if step.body is None else json.dumps(step.body)
        connection.request(step.method, step.path, body, headers)
        answer = connection.getresponse()
        answer.read(_MAX_ANSWER_BYTES)
        return answer.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
