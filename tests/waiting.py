"""Waiting for a condition with a deadline: the only way tests wait."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable


def until(condition: Callable[[], object], timeout_s: float = 20.0, what: str = "") -> None:
    """Wait until `condition` holds.

    Raises:
        AssertionError: it did not within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain for {what or condition}"
        pause.wait(0.02)


async def until_async(condition: Callable[[], Awaitable[object]], timeout_s: float = 20.0, what: str = "") -> None:
    """Wait until the awaited `condition` holds.

    Raises:
        AssertionError: it did not within `timeout_s`.
    """
    try:
        async with asyncio.timeout(timeout_s):
            while not await condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"waited {timeout_s} s in vain for {what or condition}") from None
