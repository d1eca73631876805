"""Request bodies of the admin API, checked once at the edge: unknown fields are refused, texts are clean."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_VERSION = r"^[A-Za-z0-9][A-Za-z0-9.+!_-]{0,63}$"
_TEN_YEARS_S = 10 * 365 * 86400
_BIGINT_MAX = 2**63 - 1

Name = Annotated[str, Field(min_length=1, max_length=200)]
Expected = Annotated[int, Field(ge=0, le=_BIGINT_MAX)] | None
Replicas = Annotated[int, Field(ge=0, le=1000)]
EngineVersion = Annotated[str, Field(pattern=_VERSION)]
Words = Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=32)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Answer = Literal["not_found", "unavailable"]


class Body(BaseModel):
    """What every body has in common."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def clean(cls, value: Any) -> Any:
        """Refuse texts that PostgreSQL cannot hold: NUL and lone surrogates, however deep."""
        _check_clean(value, 0)
        return value


def _check_clean(value: Any, depth: int) -> None:
    if depth > 16:
        raise ValueError("it is nested too deeply")
    if isinstance(value, str):
        if "\x00" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError("a text has characters that are none")
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check_clean(key, depth + 1)
            _check_clean(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_clean(inner, depth + 1)


class PullBody(Body):
    """POST /pulls: `source` null means the catalogue's, `name` null what the source suggests, `engine` null any."""

    name: Name | None = None
    source: Annotated[str, Field(min_length=1, max_length=2000)] | None = None
    engine: Name | None = None


class CollectBody(Body):
    """POST /store/gc: `node` null means all of them; `older_than_s` counts from the last use."""

    node: Name | None = None
    older_than_s: Annotated[int, Field(ge=0, le=_TEN_YEARS_S)] = 0
    dry_run: bool = False


class ExpectBody(Body):
    """Any DELETE: only at this resource version; null is any."""

    resource_version: Expected = None


class CopyBody(Body):
    """POST /models/{name}/copy: `version` null means the newest."""

    to: Name
    version: Annotated[int, Field(ge=1, le=999_999_999)] | None = None
    resource_version: Expected = None


class PlaceBody(Body):
    """POST /models/{name}/copies: `version` null means the newest; `from` makes it a move off that node."""

    to: Name
    version: Annotated[int, Field(ge=1, le=999_999_999)] | None = None
    away_from: Annotated[Name | None, Field(alias="from")] = None


class AliasBody(Body):
    """PUT /aliases/{name}: `model` may name a version, as `m@v2`, whose chat template `approve_template` approves."""

    model: Name
    approve_template: Digest | None = None
    resource_version: Expected = None


class StageBody(Body):
    """PUT /models/{name}/versions/{number}/stage; `approve_template` is the SHA-256 of the version's chat template."""

    stage: Literal["candidate", "staging", "production", "retired"]
    reason: Annotated[str, Field(max_length=1000)] = ""
    approve_template: Digest | None = None
    resource_version: Expected = None


class DeploymentBody(Body):
    """POST /deployments: null name means the model's, null engine the first that serves it and has what is required.

    `model` may name a version, as `m@v2`.
    """

    name: Name | None = None
    model: Name
    engine: Name | None = None
    engine_version: EngineVersion | None = None
    replicas: Replicas = 1
    settings: dict[str, Any] = Field(default_factory=dict)
    requires: Words = Field(default_factory=list)
    is_enabled: bool = True
    disabled_answer: Answer = "unavailable"
    runtime: Annotated[str, Field(max_length=40)] | None = None
    image: Annotated[str, Field(max_length=400)] = ""
    node: Annotated[str, Field(max_length=200)] = ""
    secret: Annotated[str, Field(max_length=200)] = ""


class DeploymentPatch(Body):
    """PATCH /deployments/{name}: absent fields stay; settings are merged, null takes one back to its default."""

    replicas: Replicas | None = None
    settings: dict[str, Any] | None = None
    version: Annotated[int, Field(ge=1, le=999_999_999)] | None = None
    engine_version: EngineVersion | None = None
    requires: Words | None = None
    is_enabled: bool | None = None
    disabled_answer: Answer | None = None
    approve_template: Digest | None = None
    if_generation: Expected = None
    resource_version: Expected = None


class DeploymentCopyBody(Body):
    """POST /deployments/{name}/copy: settings are merged over the source's, null `replicas` means as many."""

    to: Name
    settings: dict[str, Any] = Field(default_factory=dict)
    replicas: Replicas | None = None
    resource_version: Expected = None


class DrainBody(Body):
    """POST /nodes/{name}/drain: `force` also stops what nothing can take the place of."""

    force: bool = False


class MoveBody(Body):
    """POST /replicas/{id}/move."""

    node: Name


class KeyBody(Body):
    """POST /keys: null means until it is revoked."""

    name: Name
    expires_in_s: Annotated[int, Field(ge=1, le=_TEN_YEARS_S)] | None = None


class JoinTokenBody(Body):
    """POST /nodes/tokens: null name means any; without `is_approving` who joins waits for an approval."""

    ttl_s: Annotated[int, Field(ge=10, le=7 * 86400)] = 600
    labels: dict[str, str] = Field(default_factory=dict, max_length=32)
    name: Name | None = None
    is_approving: bool = True


_Version = Annotated[str, Field(pattern=_VERSION)]
_Source = Annotated[str, Field(min_length=1, max_length=2000)]


class EngineInstallBody(Body):
    """POST /engines/{name}/install: null version means the default, null node all of them."""

    version: _Version | None = None
    node: Name | None = None
    source: _Source | None = None
    allow_unlisted: bool = False
    accept_risk: bool = False


class EngineRemoveBody(Body):
    """POST /engines/{name}/remove: `force` also takes what new or idle deployments would run."""

    version: _Version
    node: Name | None = None
    force: bool = False


class EngineUpgradeBody(EngineInstallBody):
    """POST /engines/{name}/upgrade: the deployments to move are `all` that ran the old default, `none`, or a list."""

    version: _Version
    deployments: Literal["all", "none"] | Annotated[list[Name], Field(max_length=1000)] = "all"


class EngineRollbackBody(Body):
    """POST /engines/{name}/rollback."""

    deployments: Literal["all", "none"] | Annotated[list[Name], Field(max_length=1000)] = "all"
    accept_risk: bool = False


class EngineAdoptBody(Body):
    """POST /engines/{name}/adopt: null node means the only one there is."""

    node: Name | None = None
    url: Annotated[str, Field(min_length=1, max_length=200)]


class SecretBody(Body):
    """PUT /secrets/{name}."""

    value: Annotated[str, Field(min_length=1, max_length=8192, repr=False)]
