"""The other side of the contract suite: a node agent, a front door, and the small controller between them.

`python -m tests.contract.stage_process DIRECTORY` is a process of its own, so that the suite's threads and gRPC's
event loop never meet. In: one JSON object a line on stdin (`Stage.handle` lists them). Out: one a line on stdout. What
a controller decides is decided by the suite; this process only carries it: the desired set down to the real node
agent, and what the node agent reports ready up into the real door's route table, with the real adapters' dialects. It
ends, and every engine with it, when its stdin does.
"""

import asyncio
import base64
import json
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from adapters.registry import adapter, adapters
from node_agent.launching import settings_of
from protos.slice.node.v1 import node_pb2
from protos.slice.routes.v1 import routes_pb2
from tests.gateway.conftest import KEY, RoutesServer, RunningDoor, door_config, running_door, serving_routes
from tests.node_agent import controllers
from tests.node_agent.nodes import Node

FIRST_BYTE_S = 180.0
"""A model on a busy CPU takes its time; what is slow here must not look like a hang."""
IDLE_S = 60.0


class SmallController(controllers.Controller):
    """The node's controller; whatever it hears may change the door's routes."""

    def __init__(self, routes: RoutesServer) -> None:
        super().__init__()
        self._routes = routes
        self._shown: list[routes_pb2.Route] | None = None

    async def _hear(self, message: node_pb2.NodeMessage, send: Any) -> None:
        await super()._hear(message, send)
        self.show()

    def show(self) -> None:
        """Tell the door of every wanted replica, and where the ready ones are."""
        routes = routes_of(self.desired.replicas if self.desired else (), self.replica)
        if routes != self._shown:
            self._shown = routes
            self._routes.push(*routes)


def routes_of(wants: Any, report_of: Any) -> list[routes_pb2.Route]:
    """Return one route for each wanted replica, with a target when it is ready."""
    routes = []
    for want in wants:
        if want.desired != "run":
            continue
        report = report_of(want.replica_id)
        is_ready = report is not None and report.state == "ready"
        targets = [_target(want, report)] if is_ready else []
        routes.append(
            routes_pb2.Route(
                public_name=want.deployment,
                deployment=want.deployment,
                served_name=want.served_name,
                engine=want.engine,
                endpoints=sorted(one.value for one in adapter(want.engine).endpoints(settings_of(want))),
                targets=targets,
                waiting="" if is_ready else f"its engine is {report.state if report else 'unknown'}",
            )
        )
    return routes


def _target(want: node_pb2.ReplicaWant, report: node_pb2.ReplicaReport) -> routes_pb2.Target:
    return routes_pb2.Target(
        replica_id=want.replica_id,
        incarnation=report.incarnation,
        host=report.host,
        port=report.port,
        engine_key=want.engine_key,
        base_url=report.base_url,
    )


class Stage:
    """What the suite may ask for."""

    def __init__(self, node: Node, controller: SmallController, routes: RoutesServer, door: RunningDoor) -> None:
        self._node = node
        self._controller = controller
        self._routes = routes
        self._door = door

    async def handle(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Do what `asked["do"]` names: `want` a desired set, `look` at everything, `start` or `end` the node agent."""
        match asked["do"]:
            case "want":
                desired = node_pb2.Desired.FromString(base64.b64decode(asked["desired"]))
                self._controller.desired = desired
                self._controller.show()
                await self._controller.want(desired)
                return {}
            case "look":
                return self._seen()
            case "start":
                await self._node.start()
                return {}
            case "end":
                return {"code": await self._node.end(signal.Signals(asked["signal"]))}
        raise ValueError(asked)

    def _seen(self) -> dict[str, Any]:
        observed = self._controller.observed[-1] if self._controller.observed else node_pb2.Observed()
        inventory = self._controller.hellos[-1].inventory if self._controller.hellos else node_pb2.Inventory()
        last = self._routes.last
        return {
            "observed": base64.b64encode(observed.SerializeToString()).decode(),
            "inventory": base64.b64encode(inventory.SerializeToString()).decode(),
            "hellos": len(self._controller.hellos),
            "is_applied": last is not None and last.applied_version == self._routes.table.version,
        }

    @property
    def facts(self) -> dict[str, Any]:
        """What the suite must know before it asks anything."""
        return {
            "data_dir": str(self._node.data_dir),
            "agent_log": str(self._node.log),
            "door_port": self._door.port,
            "door_key": KEY,
        }


async def main() -> None:
    """Serve until stdin ends."""
    directory = Path(sys.argv[1])
    changes = json.loads(sys.argv[2])
    async with AsyncExitStack() as stack:
        node = Node(directory, **changes)
        stack.push_async_callback(node.close)
        routes = RoutesServer()
        routes_socket = node.runtime / "routes.sock"
        await stack.enter_async_context(serving_routes(routes_socket, routes))
        controller = SmallController(routes)
        await stack.enter_async_context(controllers.serving(node.control, controller))
        config = door_config(
            directory, control_target=f"unix:{routes_socket}", first_byte_timeout_s=FIRST_BYTE_S, idle_timeout_s=IDLE_S
        )
        dialects = {one.name: one.dialect for one in adapters()}
        door = await stack.enter_async_context(running_door(config, dialects.get))
        await node.start(engine_start_timeout_s=600.0)
        stage = Stage(node, controller, routes, door)
        _say(stage.facts)
        async for line in _lines():
            _say(await stage.handle(json.loads(line)))


async def _lines() -> Any:
    reader = asyncio.StreamReader(limit=2**24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
