"""Lists one repository of a Hugging Face hub: `python -m node_agent.files.hub_list` and four words.

Comes in: the hub's endpoint, the repository, a revision and the file of a token, the last two may be "". Goes out, line
by line: `{"slice": "file", ...}` for each file, then `{"slice": "commit", ...}`; or `{"slice": "failure", "code",
"message", "hint"}` and exit code 1. Called by `node_agent.files.hub`, which kills it after a deadline: what a hub
answers is a stranger's.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_session
from huggingface_hub import errors as hub_errors

_ADDRESS_SPACE_BYTES = 512 * 1024**2
_CPU_S = 60
_ANSWER_MAX_BYTES = 64 * 1024**2
_TIMEOUT_S = 30.0
_MAX_FILES = 20_000


class _TooLarge(Exception):
    pass


def main(arguments: list[str]) -> int:
    """Print the listing; return 0, or 1 after printing a failure."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE_BYTES, _ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    endpoint, repository, revision, token_file = arguments
    try:
        token = Path(token_file).read_text().strip() if token_file else ""
        _bound(endpoint)
        api = HfApi(endpoint=endpoint, token=token or False)
        info = api.model_info(repository, revision=revision or None, files_metadata=True, timeout=_TIMEOUT_S)
        siblings = info.siblings or []
        if len(siblings) > _MAX_FILES:
            raise _TooLarge
        for sibling in siblings:
            _say(
                slice="file",
                path=sibling.rfilename,
                size=sibling.size,
                sha256=sibling.lfs.sha256 if sibling.lfs else "",
                git_sha1="" if sibling.lfs else sibling.blob_id or "",
            )
        _say(slice="commit", commit=info.sha or "")
    except Exception as error:  # noqa: BLE001 - the program's outermost frame: said in one line, never as a traceback
        _say(slice="failure", **_failure(error, repository, revision))
        return 1
    return 0


def _say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def _bound(endpoint: str) -> None:
    """Make the hub's client refuse to be led away from `endpoint`, and answers without end."""
    session = get_session()

    def only_here(request: Any) -> None:
        if not f"{request.url}/".startswith(f"{endpoint.rstrip('/')}/"):
            raise PermissionError

    def not_too_large(response: Any) -> None:
        length = response.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > _ANSWER_MAX_BYTES:
            raise _TooLarge

    hooks = session.event_hooks
    session.event_hooks = {
        "request": [*hooks.get("request", []), only_here],
        "response": [*hooks.get("response", []), not_too_large],
    }


def _failure(error: Exception, repository: str, revision: str) -> dict[str, str]:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", 0)
    match error:
        case hub_errors.GatedRepoError():
            return {
                "code": "source.needs_token",
                "message": f"{repository} is gated",
                "hint": "accept its terms on the hub and name a file (mode 0600) with a token in hf_token_file",
            }
        case hub_errors.RevisionNotFoundError():
            return {
                "code": "source.not_found",
                "message": f"{repository} has no revision {revision!r}",
                "hint": "name a branch, a tag or a commit of 40 hexadecimal digits",
            }
        case hub_errors.RepositoryNotFoundError():
            return {
                "code": "source.not_found",
                "message": f"the hub has no repository {repository} that we may see",
                "hint": "check the name; for a private one set hf_token_file",
            }
        case hub_errors.HFValidationError() | hub_errors.BadRequestError():
            return {
                "code": "source.invalid",
                "message": f"{repository!r} is no name on a hub",
                "hint": "write ORG/NAME",
            }
        case PermissionError():
            return {
                "code": "source.not_allowed",
                "message": "the hub leads to another host",
                "hint": "check hf_endpoint",
            }
        case _TooLarge() | MemoryError():
            return {
                "code": "source.invalid",
                "message": f"the hub's answer about {repository} is too large",
                "hint": "",
            }
        case _ if status in (401, 403):
            return {"code": "source.needs_token", "message": "the hub refuses us", "hint": "check hf_token_file"}
    said = f"answers with status {status}" if status else "cannot be reached or answers nonsense"
    return {"code": "source.unreachable", "message": f"the hub {said}", "hint": "check the network and hf_endpoint"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
