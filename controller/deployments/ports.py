"""What deployments need of others in the controller: versions, secrets, installations, engine versions, templates."""

from typing import Protocol

from adapters.contract import Adapter
from controller.exchange import DeployableVersion
from core.infra import postgres


class Versions(Protocol):
    """Where model versions come from; the controller's registry implements it."""

    async def deployable(
        self, connection: postgres.Connection, name: str, formats: frozenset[str] | None = None
    ) -> DeployableVersion:
        """Return the version that `name` means: `m@v2`, or the newest of `m`, of one of `formats` if there is one.

        Raises:
            Failure: `request.invalid_name`, `registry.model_not_found`, `registry.version_not_found`.
        """

    async def ensure_remote(self, connection: postgres.Connection, name: str) -> None:
        """Register `name` as a model that lies elsewhere, unless there is a model or an alias of that name.

        Raises:
            Failure: `request.invalid_name`, `registry.name_taken`.
        """

    async def version(self, connection: postgres.Connection, version_id: str) -> DeployableVersion:
        """Return one version by its id.

        Raises:
            Failure: `registry.version_not_found`.
        """


class SecretHolder(Protocol):
    """Where the keys of external engines are; the controller's secrets implement it."""

    async def hold(self, connection: postgres.Connection, name: str) -> None:
        """Keep the secret `name` for the transaction.

        Raises:
            Failure: `secret.not_found`, `secret.unreadable`.
        """


class Installations(Protocol):
    """Which versions of engines the nodes have; the controller's fleet implements it."""

    def installed_versions(self, engine: str) -> frozenset[str]:
        """Return every version of `engine` that some node says it has."""


class EngineVersions(Protocol):
    """Which version of an engine a deployment runs; the controller's engine installations implement it."""

    async def chosen(self, connection: postgres.Connection, adapter: Adapter, asked: str | None) -> str:
        """Return the version for a deployment that asks for `asked` (None: the default).

        Raises:
            Failure: `engine.below_floor`.
        """


class TemplateCheck(Protocol):
    """Whether a deployment may go to a version with another chat template; the controller's registry implements it."""

    async def checked(
        self, connection: postgres.Connection, before_id: str, after_id: str, *, approve: str | None, command: str
    ) -> str:
        """Return the digest that `approve` newly approves, "" where nothing has to be approved.

        Raises:
            Failure: `registry.template_changed`.
        """
