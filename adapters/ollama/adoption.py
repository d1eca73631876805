"""What a running Ollama says of itself, as values: the half of adoption that decides.

In: the bodies of `GET /api/version` and `GET /api/tags`, as they came over the wire. Out: its version and its models.
Called through the adapter by the node agent, which does the reading and nothing else: nothing of an adopted Ollama is
ever written, no model pulled, created, deleted, loaded or unloaded.
"""

import json
import re

from adapters.contract import Adopted, AdoptedModel
from core.errors import Failure

DEFAULT_ADDRESS = "127.0.0.1:11434"
"""Where Ollama listens unless it is told otherwise (envconfig/config.go)."""

VERSION_PATH, MODELS_PATH = "/api/version", "/api/tags"
_MAX_MODELS = 10_000
_MAX_TEXT = 512
_DIGEST = re.compile(r"^(?:sha256:)?([0-9a-f]{64})\Z")


def adopted(version_body: bytes, tags_body: bytes) -> Adopted:
    """Return what the two answers say; models that run elsewhere (Ollama's cloud) are left out.

    Raises:
        Failure: `request.invalid_json` when they are not what an Ollama answers.
    """
    version = _object(version_body).get("version")
    models = _object(tags_body).get("models")
    if not isinstance(version, str) or not version or not isinstance(models, list | None):
        raise _not_ollama()
    found = [_model(one) for one in (models or [])[:_MAX_MODELS] if isinstance(one, dict)]
    return Adopted(version=version[:_MAX_TEXT], models=tuple(one for one in found if one is not None))


def _model(row: dict[str, object]) -> AdoptedModel | None:
    name = row.get("model") or row.get("name")
    if not isinstance(name, str) or not name or len(name) > _MAX_TEXT or row.get("remote_host"):
        return None
    details = row.get("details")
    known = details if isinstance(details, dict) else {}
    digest, size = _DIGEST.match(str(row.get("digest"))), row.get("size")
    return AdoptedModel(
        name=name,
        sha256=digest[1] if digest else "",
        size_bytes=size if isinstance(size, int) and 0 <= size < 2**63 else 0,
        format=_text(known.get("format")),
        architecture=_text(known.get("family")),
        quantization=_text(known.get("quantization_level")),
    )


def _text(value: object) -> str:
    return value[:_MAX_TEXT] if isinstance(value, str) else ""


def _object(body: bytes) -> dict[str, object]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _not_ollama() from error
    if not isinstance(value, dict):
        raise _not_ollama()
    return value


def _not_ollama() -> Failure:
    return Failure(
        "request.invalid_json",
        "what answers there is no Ollama",
        hint=f"check the address; Ollama listens on {DEFAULT_ADDRESS} unless OLLAMA_HOST says otherwise",
    )
