"""The services once they exist: the HTTP server listens before there is a database, so every route asks here first.

`controller.process` sets the parts when this controller begins to lead; until then calls fail in a documented way.
"""

from dataclasses import dataclass
from typing import Any

import grpc

from controller.api.seeing import Seen
from controller.blueprint.service import Blueprints
from controller.deployments.service import Deployments
from controller.engines.service import EngineInstallations
from controller.fleet.logs import LogRelay
from controller.fleet.members import Members
from controller.fleet.service import Fleet
from controller.identity.certificates import Certificates
from controller.identity.joining import Joining
from controller.identity.service import Identity
from controller.identity.tokens import JoinTokens
from controller.leaving.service import Leaving
from controller.ledger.service import Ledger
from controller.reconcile import picture as pictures
from controller.reconcile.loop import ReconcileLoop
from controller.registry.aliases import Aliases
from controller.registry.copies import Copies
from controller.registry.pulls import Pulls
from controller.registry.service import Registry
from controller.registry.stages import Stages
from controller.registry.stores import Stores
from controller.routes.service import Routes
from controller.secrets.service import Secrets
from controller.usage.service import Usage
from core.errors import Failure
from core.infra import postgres

END: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # absent from the stubs
"""What reading a gRPC stream returns when the peer has half-closed it."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything the admin API and the gRPC servicers call."""

    database: postgres.Database
    registry: Registry
    aliases: Aliases
    stages: Stages
    blueprints: Blueprints
    pulls: Pulls
    copies: Copies
    stores: Stores
    deployments: Deployments
    engines: EngineInstallations
    secrets: Secrets
    fleet: Fleet
    leaving: Leaving
    logs: LogRelay
    routes: Routes
    identity: Identity
    certificates: Certificates
    members: Members
    joining: Joining
    tokens: JoinTokens
    ledger: Ledger
    loop: ReconcileLoop
    usage: Usage
    leader_epoch: int
    schema: int
    version: str
    cluster_id: str
    openai_base_url: str

    async def seen(self, connection: postgres.Connection | None = None) -> Seen:
        """Return what one request sees; with `connection` in its snapshot.

        Raises:
            Failure: `storage.unavailable`.
        """
        if connection is not None:
            picture = await pictures.read(connection)
        else:
            async with self.database.snapshot() as own:
                picture = await pictures.read(own)
        return Seen(picture=picture, live=self.fleet.nodes(), in_flight=self.routes.in_flight())


class Stage:
    """Holds the parts from the moment they exist; `failure` says what start-up waits for."""

    def __init__(self) -> None:
        self._parts: Parts | None = None
        self.failure: Failure | None = None

    @property
    def is_ready(self) -> bool:
        """Whether this controller leads and its services exist."""
        return self._parts is not None

    def begin(self, parts: Parts) -> None:
        """Let requests in."""
        self._parts = parts
        self.failure = None

    def parts(self) -> Parts:
        """Return the services.

        Raises:
            Failure: `storage.unavailable` or `controller.not_ready` while the controller starts.
        """
        if self._parts is None:
            raise self.failure or Failure(
                "controller.not_ready", "the controller is starting", hint="try again in a moment", retry_after_s=1
            )
        return self._parts
