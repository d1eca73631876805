"""Two real node agents, the fake engine, a real door and a steady stream of requests: moves and drains fail none."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import openai

from adapters.registry import adapter
from tests.controller.cluster import DOOR, Cluster
from tests.controller.test_leaving import Boxes
from tests.controller.test_reconcile import until_state
from tests.gateway.conftest import RunningDoor, door_config, running_door
from tests.node_agent.nodes import Node, free_ports
from tests.waiting import until_async

TOKENS = 8
SLOW_TOKENS = 300
CLIENTS = 6
MESSAGES: Any = [{"role": "user", "content": "hi"}]


class Crowd:
    """Clients that ask one after another, every other one for a stream; `failures` says what went wrong."""

    def __init__(self, door: RunningDoor, key: str) -> None:
        self.served = 0
        self.failures: Counter[str] = Counter()
        self._client = door.client(key, timeout=20.0)
        self._is_over = False
        self._tasks: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def asking(self) -> AsyncIterator["Crowd"]:
        async with self._client, asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(self._ask(is_streamed=bool(number % 2)))
            try:
                yield self
            finally:
                self._is_over = True

    async def until_served(self, more: int) -> None:
        """Wait until so many more requests have been answered."""
        goal = self.served + more

        async def are_served() -> bool:
            return self.served >= goal or bool(self.failures)

        await until_async(are_served, timeout_s=30, what=f"{more} more answers")

    async def _ask(self, *, is_streamed: bool) -> None:
        while not self._is_over:
            try:
                count = await self.answer(TOKENS) if is_streamed else await self._whole()
            except openai.OpenAIError as error:
                self.failures[f"{type(error).__name__}: {error}"] += 1
                continue
            if count == TOKENS:
                self.served += 1
            else:
                self.failures[f"{count} of {TOKENS} tokens"] += 1

    async def answer(self, tokens: int) -> int:
        """Return how many tokens one streamed answer had; it must have ended by itself."""
        stream = await self._client.chat.completions.create(
            model="fake", messages=MESSAGES, max_tokens=tokens, stream=True, stream_options={"include_usage": True}
        )
        counted = 0
        async for chunk in stream:
            counted = chunk.usage.completion_tokens if chunk.usage else counted
        return counted

    async def _whole(self) -> int:
        answer = await self._client.chat.completions.create(model="fake", messages=MESSAGES, max_tokens=TOKENS)
        return answer.usage.completion_tokens if answer.usage else 0


@asynccontextmanager
async def two_nodes_and_a_door(cluster: Cluster, tmp_path: Path) -> AsyncIterator[tuple[Boxes, RunningDoor, str]]:
    first, _ = free_ports(16)
    async with AsyncExitStack() as stack:
        for number, name in enumerate("ab"):
            folder = tmp_path / name
            folder.mkdir()
            node = Node(folder)
            stack.push_async_callback(node.close)
            ports = (first + 8 * number, first + 8 * number + 8)
            await node.start(node_name=name, control_target=f"unix:{cluster.socket}", engine_ports=ports)
        config = door_config(
            tmp_path, control_target=f"unix:{cluster.socket}", token=DOOR, key_pepper_hex=b"pepper".hex()
        )
        door = await stack.enter_async_context(running_door(config, {"fake": adapter("fake").dialect}.get))
        key = (await cluster.ok("POST", "keys", {"name": "test"}))["key"]
        boxes = await stack.enter_async_context(Boxes(cluster))
        for name in "ab":
            await boxes.until(f"nodes/{name}", lambda one: one["state"] == "ready", f"node {name}")
        yield boxes, door, key


async def deploy(cluster: Cluster, replicas: int = 1) -> None:
    wish = {"model": "fake", "engine": "fake", "replicas": replicas, "settings": {"token_delay_ms": 20.0}}
    await cluster.ok("POST", "deployments", wish)
    await until_state(cluster, "fake", "ready")


async def answers(cluster: Cluster, crowd: Crowd) -> None:
    async def is_routed() -> bool:
        try:
            return await crowd.answer(1) == 1
        except openai.APIStatusError:
            return False

    await until_async(is_routed, what="the door's first answer")


async def test_a_replica_moves_there_and_back_and_no_request_fails(cluster: Cluster, tmp_path: Path) -> None:
    async with two_nodes_and_a_door(cluster, tmp_path) as (boxes, door, key):
        await deploy(cluster)
        crowd = Crowd(door, key)
        await answers(cluster, crowd)
        async with crowd.asking():
            await crowd.until_served(CLIENTS)
            for _ in range(2):
                (old,) = await boxes.replicas()
                here, there = (old["node"], "b") if old["node"] == "a" else (old["node"], "a")
                await cluster.ok("POST", f"replicas/{old['id']}/move", {"node": there})
                await boxes.until_on(there, 1)
                # It begins while the old one alone serves, and goes on when that one is taken out of the routes.
                long = asyncio.create_task(crowd.answer(SLOW_TOKENS))
                await boxes.until_on(here, 0)
                (new,) = await boxes.until_on(there, 1)
                assert new["id"] != old["id"]
                assert await long == SLOW_TOKENS, "a stream that began on the old one ends by itself"
                await crowd.until_served(2 * CLIENTS)
        assert crowd.failures == Counter()
        assert crowd.served >= 5 * CLIENTS


async def test_a_node_with_several_replicas_is_drained_and_no_request_fails(cluster: Cluster, tmp_path: Path) -> None:
    async with two_nodes_and_a_door(cluster, tmp_path) as (boxes, door, key):
        await deploy(cluster, replicas=3)
        crowd = Crowd(door, key)
        await answers(cluster, crowd)
        async with crowd.asking():
            await crowd.until_served(CLIENTS)
            for leaving, other in ("ab", "ba"):
                await cluster.ok("POST", f"nodes/{leaving}/drain")
                await boxes.until_on(leaving, 0)
                assert len(await boxes.on(other)) == 3
                await crowd.until_served(CLIENTS)
                await cluster.ok("POST", f"nodes/{leaving}/uncordon")
        assert crowd.failures == Counter()
        kinds = await boxes.kinds()
        assert kinds.count("node_drained") == 2


async def test_a_drain_that_is_ended_half_way_fails_no_request(cluster: Cluster, tmp_path: Path) -> None:
    async with two_nodes_and_a_door(cluster, tmp_path) as (boxes, door, key):
        await deploy(cluster)
        crowd = Crowd(door, key)
        await answers(cluster, crowd)
        (old,) = await boxes.replicas()
        here, there = (old["node"], "b") if old["node"] == "a" else (old["node"], "a")
        async with crowd.asking():
            await crowd.until_served(CLIENTS)
            await cluster.ok("POST", f"nodes/{here}/drain")
            await boxes.until_on(there, 1)
            await cluster.ok("POST", f"nodes/{here}/uncordon")

            async def is_at_rest() -> bool:
                left = await boxes.replicas()
                return [one["desired"] for one in left] == ["run"] and left[0]["leaving"] is None

            await until_async(is_at_rest, what="one replica again")
            await crowd.until_served(CLIENTS)
        assert crowd.failures == Counter()
