"""What one front door needs to know, as a value that travels as JSON.

Comes in: a JSON file written by the composition root. Goes out: `DoorConfig`. Called by `serve_host` (which starts Ray)
and by every Serve replica (which reads the copy in the runtime directory). It must hold no default that settings own.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass

from core.errors import Failure


@dataclass(frozen=True, kw_only=True)
class DoorConfig:
    """One host's front door; sizes in bytes, times in seconds, paths absolute.

    `control_target` is a gRPC target (`unix:/path`), `token` the bearer token of the Routes service, `table_file` where
    the last route table is kept (0600), `ports` the names of `core.infra.cluster.PORTS` resolved to port numbers.
    """

    cluster_id: str
    door_id_prefix: str
    host: str
    port: int
    replicas: int
    control_target: str
    token: str
    key_pepper_hex: str
    table_file: str
    body_limit_bytes: int
    first_byte_timeout_s: float
    idle_timeout_s: float
    ray_dir: str
    ray_token_file: str
    ports: Mapping[str, int]
    log_dir: str
    version: str

    def to_json(self) -> str:
        """Return the text that `from_json` reads; it holds secrets, so it is written 0600."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "DoorConfig":
        """Return the configuration in `text`.

        Raises:
            Failure: `settings.invalid` when it is no JSON object, or fields are missing, unknown or of a wrong type.
        """
        try:
            values = json.loads(text)
            config = cls(**values)
        except (ValueError, TypeError) as error:
            raise Failure("settings.invalid", "the front door's configuration is malformed") from error
        for item in dataclasses.fields(cls):
            if not _fits(getattr(config, item.name), item.type):
                raise Failure("settings.invalid", f"the front door's {item.name} has a wrong type", param=item.name)
        return config


def _fits(value: object, kind: object) -> bool:
    if isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, int | float)
    if kind is str or kind is int:
        return isinstance(value, str) if kind is str else isinstance(value, int)
    return isinstance(value, dict) and all(isinstance(port, int) for port in value.values())
