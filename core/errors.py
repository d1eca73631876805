"""What can go wrong, under fixed codes.

A `Failure` names the thing and the next step, and says whether trying again helps. Edges (REST, gRPC, CLI, front
door) translate it by its `kind`; nothing but its text ever reaches a user. Codes are never changed or reused.
"""

from collections.abc import Mapping
from enum import StrEnum


class Kind(StrEnum):
    """The class of a failure: what an edge needs to choose a status or an exit code."""

    USAGE = "usage"  # the request is wrong in itself
    NOT_FOUND = "not_found"  # the thing named does not exist
    DENIED = "denied"  # no credentials, or not the right ones
    CONFLICT = "conflict"  # the thing's state forbids it
    UNAVAILABLE = "unavailable"  # it may work later
    TOO_LARGE = "too_large"  # a bound was passed
    FAILED = "failed"  # we tried and it went wrong


class Retry(StrEnum):
    """Whether the same call may work again."""

    NEVER = "never"
    LATER = "later"
    NOW = "now"


# The part of a code before the dot is the area, the part after it the condition. One line each, so that a reader sees
# all that can go wrong; `tests/unit/test_errors.py` checks that every code raised in the tree stands here.
CODES: Mapping[str, tuple[Kind, Retry]] = {
    "request.invalid_name": (Kind.USAGE, Retry.NEVER),
    "request.invalid_size": (Kind.USAGE, Retry.NEVER),
    "request.invalid_duration": (Kind.USAGE, Retry.NEVER),
    "request.invalid_json": (Kind.USAGE, Retry.NEVER),
    "request.invalid_field": (Kind.USAGE, Retry.NEVER),
    "request.unknown_field": (Kind.USAGE, Retry.NEVER),
    "request.out_of_range": (Kind.USAGE, Retry.NEVER),
    "request.body_too_large": (Kind.TOO_LARGE, Retry.NEVER),
    "request.body_timeout": (Kind.USAGE, Retry.NOW),
    "request.not_found": (Kind.NOT_FOUND, Retry.NEVER),
    "request.method_not_allowed": (Kind.USAGE, Retry.NEVER),
    "request.idempotency_conflict": (Kind.CONFLICT, Retry.NEVER),
    "request.version_conflict": (Kind.CONFLICT, Retry.NOW),
    "request.usage": (Kind.USAGE, Retry.NEVER),
    "settings.invalid": (Kind.USAGE, Retry.NEVER),
    "settings.unknown_key": (Kind.USAGE, Retry.NEVER),
    "settings.unreadable": (Kind.USAGE, Retry.NEVER),
    "context.not_found": (Kind.NOT_FOUND, Retry.NEVER),
    "auth.missing": (Kind.DENIED, Retry.NEVER),
    "auth.invalid": (Kind.DENIED, Retry.NEVER),
    "auth.key_revoked": (Kind.DENIED, Retry.NEVER),
    "auth.key_expired": (Kind.DENIED, Retry.NEVER),
    "registry.model_not_found": (Kind.NOT_FOUND, Retry.NEVER),
    "registry.version_not_found": (Kind.NOT_FOUND, Retry.NEVER),
    "registry.alias_not_found": (Kind.NOT_FOUND, Retry.NEVER),
    "registry.name_taken": (Kind.CONFLICT, Retry.NEVER),
    "registry.model_in_use": (Kind.CONFLICT, Retry.NEVER),
    "registry.stage_conflict": (Kind.CONFLICT, Retry.NEVER),
    "registry.template_changed": (Kind.CONFLICT, Retry.NEVER),
    "registry.pull_not_found": (Kind.NOT_FOUND, Retry.NEVER),
    "registry.pull_finished": (Kind.CONFLICT, Retry.NEVER),
    "registry.no_files": (Kind.CONFLICT, Retry.NEVER),
    "registry.not_on_node": (Kind.NOT_FOUND, Retry.NEVER),
    "registry.last_copy": (Kind.CONFLICT, Retry.NEVER),
    "source.invalid": (Kind.USAGE, Retry.NEVER),
    "source.unsupported": (Kind.USAGE, Retry.NEVER),
    "source.not_found": (Kind.NOT_FOUND, Retry.NEVER),
    "source.unreachable": (Kind.UNAVAILABLE, Retry.LATER),
    "source.digest_mismatch": (Kind.FAILED, Retry.NEVER),
    "source.not_allowed": (Kind.DENIED, Retry.NEVER),
    "source.needs_token": (Kind.DENIED, Retry.NEVER),
    "source.ambiguous": (Kind.USAGE, Retry.NEVER),
    "source.cancelled": (Kind.FAILED, Retry.NOW),
    "format.refused": (Kind.USAGE, Retry.NEVER),
    "format.gguf_invalid": (Kind.USAGE, Retry.NEVER),
    "format.safetensors_invalid": (Kind.USAGE, Retry.NEVER),
    "format.template_refused": (Kind.USAGE, Retry.NEVER),
    "disk.full": (Kind.UNAVAILABLE, Retry.LATER),
    "deployment.not_found": (Kind.NOT_FOUND, Retry.NEVER),
    "deployment.name_taken": (Kind.CONFLICT, Retry.NEVER),
    "deployment.disabled": (Kind.CONFLICT, Retry.NEVER),
    "deployment.version_conflict": (Kind.CONFLICT, Retry.NOW),
    "replica.not_found": (Kind.NOT_FOUND, Retry.NEVER),
    "replica.move_refused": (Kind.CONFLICT, Retry.LATER),
    "replica.move_given_up": (Kind.CONFLICT, Retry.NEVER),
    "replica.node_silent": (Kind.UNAVAILABLE, Retry.LATER),
    "replica.logs_unavailable": (Kind.UNAVAILABLE, Retry.LATER),
    "node.not_found": (Kind.NOT_FOUND, Retry.NEVER),
    "node.hello_required": (Kind.USAGE, Retry.NEVER),
    "node.protocol_too_old": (Kind.CONFLICT, Retry.NEVER),
    "node.protocol_too_new": (Kind.CONFLICT, Retry.NEVER),
    "node.stale_sequence": (Kind.CONFLICT, Retry.NOW),
    "node.identity_conflict": (Kind.CONFLICT, Retry.NEVER),
    "node.name_taken": (Kind.CONFLICT, Retry.NEVER),
    "node.not_joined": (Kind.CONFLICT, Retry.NEVER),
    "node.already_joined": (Kind.CONFLICT, Retry.NEVER),
    "node.join_line_invalid": (Kind.USAGE, Retry.NEVER),
    "node.join_token_invalid": (Kind.DENIED, Retry.NEVER),
    "node.join_token_used": (Kind.DENIED, Retry.NEVER),
    "node.join_token_expired": (Kind.DENIED, Retry.NEVER),
    "node.join_token_not_found": (Kind.NOT_FOUND, Retry.NEVER),
    "node.join_name_refused": (Kind.DENIED, Retry.NEVER),
    "node.join_limited": (Kind.UNAVAILABLE, Retry.LATER),
    "node.authority_mismatch": (Kind.DENIED, Retry.NEVER),
    "node.csr_refused": (Kind.USAGE, Retry.NEVER),
    "node.certificate_invalid": (Kind.DENIED, Retry.NEVER),
    "node.certificate_limited": (Kind.UNAVAILABLE, Retry.LATER),
    "node.not_reachable": (Kind.UNAVAILABLE, Retry.LATER),
    "node.in_use": (Kind.CONFLICT, Retry.NEVER),
    "node.controller_busy": (Kind.UNAVAILABLE, Retry.LATER),
    "node.not_listening": (Kind.CONFLICT, Retry.NEVER),
    "key.not_found": (Kind.NOT_FOUND, Retry.NEVER),
    "key.name_taken": (Kind.CONFLICT, Retry.NEVER),
    "engine.unknown": (Kind.NOT_FOUND, Retry.NEVER),
    "engine.version_unknown": (Kind.NOT_FOUND, Retry.NEVER),
    "engine.not_installed": (Kind.CONFLICT, Retry.LATER),
    "engine.in_use": (Kind.CONFLICT, Retry.NEVER),
    "engine.below_floor": (Kind.CONFLICT, Retry.NEVER),
    "engine.capability_missing": (Kind.CONFLICT, Retry.NEVER),
    "engine.runtime_unsupported": (Kind.USAGE, Retry.NEVER),
    "engine.provision_failed": (Kind.FAILED, Retry.LATER),
    "engine.setting_invalid": (Kind.USAGE, Retry.NEVER),
    "engine.setting_reserved": (Kind.USAGE, Retry.NEVER),
    "engine.install_failed": (Kind.FAILED, Retry.LATER),
    "engine.remove_failed": (Kind.FAILED, Retry.LATER),
    "engine.format_unsupported": (Kind.USAGE, Retry.NEVER),
    "engine.died_at_start": (Kind.FAILED, Retry.LATER),
    "engine.start_timeout": (Kind.FAILED, Retry.LATER),
    "engine.exited": (Kind.FAILED, Retry.LATER),
    "engine.out_of_memory": (Kind.FAILED, Retry.LATER),
    "engine.memory_not_returned": (Kind.UNAVAILABLE, Retry.LATER),
    "engine.unresponsive": (Kind.FAILED, Retry.LATER),
    "engine.no_free_port": (Kind.UNAVAILABLE, Retry.LATER),
    "container.unavailable": (Kind.CONFLICT, Retry.NEVER),
    "container.not_answering": (Kind.UNAVAILABLE, Retry.LATER),
    "container.image_not_pinned": (Kind.USAGE, Retry.NEVER),
    "container.image_not_found": (Kind.NOT_FOUND, Retry.NEVER),
    "secret.not_found": (Kind.NOT_FOUND, Retry.NEVER),
    "secret.in_use": (Kind.CONFLICT, Retry.NEVER),
    "secret.unreadable": (Kind.CONFLICT, Retry.NEVER),
    "shim.start_failed": (Kind.FAILED, Retry.LATER),
    "shim.lost": (Kind.FAILED, Retry.LATER),
    "node.already_running": (Kind.CONFLICT, Retry.NEVER),
    "node.devices_unreadable": (Kind.USAGE, Retry.NEVER),
    "placement.no_node": (Kind.UNAVAILABLE, Retry.LATER),
    "placement.insufficient_memory": (Kind.UNAVAILABLE, Retry.LATER),
    "placement.engine_unusable": (Kind.CONFLICT, Retry.NEVER),
    "placement.footprint_unknown": (Kind.CONFLICT, Retry.NEVER),
    "door.model_not_ready": (Kind.UNAVAILABLE, Retry.LATER),
    "door.engine_unreachable": (Kind.UNAVAILABLE, Retry.LATER),
    "door.engine_failed": (Kind.FAILED, Retry.LATER),
    "door.engine_busy": (Kind.UNAVAILABLE, Retry.LATER),
    "door.engine_timeout": (Kind.FAILED, Retry.NEVER),
    "door.parameter_unsupported": (Kind.USAGE, Retry.NEVER),
    "door.model_disabled": (Kind.UNAVAILABLE, Retry.LATER),
    "door.engine_refused": (Kind.USAGE, Retry.NEVER),
    "door.context_length_exceeded": (Kind.USAGE, Retry.NEVER),
    "door.endpoint_unsupported": (Kind.USAGE, Retry.NEVER),
    "door.operators_matter": (Kind.DENIED, Retry.NEVER),
    "door.no_routes": (Kind.UNAVAILABLE, Retry.LATER),
    "storage.unavailable": (Kind.UNAVAILABLE, Retry.LATER),
    "storage.schema_newer": (Kind.CONFLICT, Retry.NEVER),
    "storage.migration_changed": (Kind.CONFLICT, Retry.NEVER),
    "storage.extension_missing": (Kind.CONFLICT, Retry.NEVER),
    "cluster.port_taken": (Kind.CONFLICT, Retry.NEVER),
    "cluster.data_dir_unusable": (Kind.DENIED, Retry.NEVER),
    "cluster.path_too_long": (Kind.USAGE, Retry.NEVER),
    "cluster.not_running": (Kind.UNAVAILABLE, Retry.LATER),
    "cluster.install_incomplete": (Kind.CONFLICT, Retry.NEVER),
    "cluster.start_failed": (Kind.FAILED, Retry.LATER),
    "cluster.stop_failed": (Kind.FAILED, Retry.LATER),
    "cluster.settings_differ": (Kind.CONFLICT, Retry.NEVER),
    "cluster.postgres_missing": (Kind.CONFLICT, Retry.NEVER),
    "cluster.postgres_failed": (Kind.FAILED, Retry.LATER),
    "controller.unreachable": (Kind.UNAVAILABLE, Retry.LATER),
    "controller.not_ready": (Kind.UNAVAILABLE, Retry.LATER),
    "internal.unexpected": (Kind.FAILED, Retry.LATER),
}


class Failure(Exception):
    """An expected way to fail: a fixed `code`, one sentence, and the next step in `hint`.

    Raises:
        KeyError: `code` does not stand in `CODES`.
    """

    def __init__(
        self, code: str, message: str, *, hint: str = "", param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        self.kind, self.retry = CODES[code]
        self.code = code
        self.message = message
        self.hint = hint
        self.param = param
        self.retry_after_s = retry_after_s
        super().__init__(message)

    def __str__(self) -> str:
        if not self.hint:
            return self.message
        return f"{self.message}{' ' if self.message.endswith(('.', '?', '!')) else '; '}{self.hint}"

    def as_json(self) -> dict[str, object]:
        """Return the object that the admin API puts under `error` and the CLI prints with `-o json`."""
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "param": self.param,
            "retry": self.retry.value,
        }
