"""slice.routes.v1.Routes: the thin edge between a door's stream and the published route table.

Comes in: one bidirectional stream per door. Goes out: whole tables down, reports to `Routes`, usage to
`Usage`, and doors' certificates.
It decides nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import grpc

from controller.api.stage import END, Stage
from controller.api.usage_wire import rows_of
from controller.identity.certificates import Certificates
from controller.routes.model import DoorReport, PublishedTable, Route
from controller.routes.service import Routes
from core.errors import Failure
from core.identities import Role, identity_of
from core.ids import ReplicaId
from core.infra.logs import Log
from protos.slice.routes.v1 import routes_pb2 as pb
from protos.slice.routes.v1 import routes_pb2_grpc

REPORT_DEADLINE_S = 5.0
WRITE_DEADLINE_S = 10.0
_DOOR_ID_MAX = 128


class RoutesServicer(routes_pb2_grpc.RoutesServicer):
    """Serves doors on the control socket."""

    def __init__(self, *, stage: Stage, log: Log) -> None:
        self._stage = stage
        self._log = log
        self._rendered = pb.RouteTable()
        self._rendered_revoked: frozenset[str] = frozenset()

    async def Watch(self, _: AsyncIterator[pb.DoorReport], context: Any) -> None:
        """Serve one door until its stream ends."""
        try:
            parts = self._stage.parts()
            routes = parts.routes
        except Failure as failure:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{failure.code}: {failure.message}")
            return
        report = await _first_report(context)
        if report is None:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "request.invalid_field: the first message must name the door"
            )
            return
        routes.report(report)
        self._log.info("door_watch", door=report.door_id, applied_version=report.applied_version)
        try:
            async with asyncio.TaskGroup() as group:
                writer = group.create_task(
                    self._write(routes, parts.certificates, context), name=f"write-{report.door_id}"
                )
                await _read(routes, report.door_id, context)
                writer.cancel()
        finally:
            self._log.info("door_watch_ended", door=report.door_id)

    async def Certify(self, request: pb.CertifyRequest, context: Any) -> pb.CertifyReply:
        """Give a door a certificate for the data planes of other machines."""
        try:
            certificates = self._stage.parts().certificates
            door = certificates.identity(Role.DOOR, request.door_id)
            if identity_of(door.uri) != door:
                raise Failure("node.csr_refused", f"{request.door_id[:_DOOR_ID_MAX]!r} can stand in no certificate")
            given = await certificates.renew(request.csr_pem, door)
            authority = await certificates.authority.get()
        except Failure as failure:
            self._log.warning("door_not_certified", code=failure.code, message=failure.message)
            return pb.CertifyReply(code=failure.code, message=failure.message)
        self._log.info("door_certified", door=door.name, serial=given.serial)
        return pb.CertifyReply(
            cluster_id=door.cluster_id,
            certificate_pem=given.certificate_pem,
            authority_pem=authority.certificate_pem,
        )

    async def ReportUsage(self, batch: pb.UsageBatch, _: Any) -> pb.UsageReceipt:
        """Store what requests used; a batch that is not all there in the end is answered with a code."""
        try:
            usage = self._stage.parts().usage
            rows = rows_of(batch)
            await usage.take(rows, batch.lost_rows)
        except Failure as failure:
            return pb.UsageReceipt(code=failure.code, message=failure.message)
        if len(rows) < len(batch.rows) or batch.lost_rows:
            self._log.warning(
                "usage_lost",
                door=batch.door_id[:_DOOR_ID_MAX],
                rows=batch.lost_rows,
                unusable=len(batch.rows) - len(rows),
            )
        return pb.UsageReceipt()

    async def _write(self, routes: Routes, certificates: Certificates, context: Any) -> None:
        """Send each new table, and the newest one again when a certificate was revoked."""
        version = -1
        while True:
            table = await routes.next_after(version)
            version, revoked = table.version, certificates.revoked
            if (self._rendered.version, self._rendered_revoked) != (version, revoked):
                self._rendered, self._rendered_revoked = rendered(table, revoked), revoked
            async with asyncio.timeout(WRITE_DEADLINE_S):
                await context.write(self._rendered)
            if await _is_first(certificates.next_revoked(revoked), routes.next_after(version)):
                version = -1


async def _first_report(context: Any) -> DoorReport | None:
    try:
        async with asyncio.timeout(REPORT_DEADLINE_S):
            first = await context.read()
    except TimeoutError:
        return None
    return None if first is END or not first.door_id else _report(first, first.door_id[:_DOOR_ID_MAX])


async def _read(routes: Routes, door_id: str, context: Any) -> None:
    while (message := await context.read()) is not END:
        routes.report(_report(message, door_id))


def _report(message: pb.DoorReport, door_id: str) -> DoorReport:
    return DoorReport(
        door_id=door_id,
        applied_version=message.applied_version,
        loads={ReplicaId(load.replica_id): load.in_flight for load in message.loads},
        demand=dict(message.demand),
    )


async def _is_first(one: Coroutine[Any, Any, object], other: Coroutine[Any, Any, object]) -> bool:
    """Wait until one of two has returned; return whether it was the first of them."""
    waits = asyncio.ensure_future(one), asyncio.ensure_future(other)
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        return waits[0].done()
    finally:
        for wait in waits:
            wait.cancel()


def rendered(published: PublishedTable, revoked: frozenset[str] = frozenset()) -> pb.RouteTable:
    """Return a published table as protobuf, with the certificates that no data plane must show any more."""
    return pb.RouteTable(
        version=published.version,
        routes=[_route(route) for route in published.table.routes],
        keys=[
            pb.KeyEntry(
                kid=key.kid,
                digest=key.digest,
                project=key.project,
                expires_unix_s=key.expires_unix_s,
                is_revoked=key.is_revoked,
            )
            for key in published.table.keys
        ],
        revoked_serials=sorted(revoked),
    )


def _route(route: Route) -> pb.Route:
    return pb.Route(
        public_name=route.public_name,
        deployment=route.deployment,
        served_name=route.served_name,
        engine=route.engine,
        endpoints=list(route.endpoints),
        targets=[
            pb.Target(
                replica_id=target.replica_id,
                incarnation=target.incarnation,
                host=target.host,
                port=target.port,
                engine_key=target.engine_key,
                base_url=target.base_url,
                node_id=target.node_id,
                plane_host=target.plane_host,
                plane_port=target.plane_port,
            )
            for target in route.targets
        ],
        waiting=route.waiting,
        created_unix_s=route.created_unix_s,
        disabled=route.disabled,
        model=route.model,
        version=route.version,
        card=pb.Card(**vars(route.card)),
    )
