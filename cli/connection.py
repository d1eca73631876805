"""Which cluster a command talks to: its URL, its operator token and its front door.

The flags, the environment and the two files that may answer (`DATA/cluster.json`, `contexts.json`) come in; a
`Connection` goes out. Called by `cli.reach`. It opens no socket.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import platformdirs

from cli import contexts
from cli.contexts import LOCAL, Context
from cli.invocation import Invocation
from core.errors import Failure
from core.infra import cluster, joined
from core.infra.joined import NodeBlock

_WILDCARDS = frozenset({"0.0.0.0", "::", "[::]"})  # noqa: S104 - recognised here, not bound
_LOOPBACKS = frozenset({"127.0.0.1", "::1", "localhost"}) | _WILDCARDS


@dataclass(frozen=True, kw_only=True)
class Connection:
    """One cluster as seen from here.

    `openai_url` is empty when only the cluster's status can tell. `key_file` holds the API key of the front door.
    `unreachable_hint` is the next step when nobody answers.
    """

    name: str
    controller_url: str
    token: str
    openai_url: str
    key_file: Path | None
    unreachable_hint: str


def data_dir_of(given: Path | None, environment: Mapping[str, str]) -> Path:
    """Return the data directory: the flag, SLICE_DATA_DIR, or the platform's place for user data."""
    chosen = given or (Path(environment["SLICE_DATA_DIR"]) if environment.get("SLICE_DATA_DIR") else None)
    return (chosen or platformdirs.user_data_path("slice")).expanduser()


def contexts_file() -> Path:
    """Return where contexts are recorded."""
    return platformdirs.user_config_path("slice") / "contexts.json"


def chosen_context(invocation: Invocation, current: str) -> str:
    """Return the name of the context to use.

    The order: 1 `--context`, 2 `--data-dir`, 3 SLICE_CONTEXT, 4 SLICE_DATA_DIR, 5 the one set by `slice context use`.

    Raises:
        Failure: `request.usage` when both flags are given and disagree.
    """
    if invocation.context and invocation.data_dir and invocation.context != LOCAL:
        raise Failure(
            "request.usage",
            "--context and --data-dir name two clusters",
            hint="give one of them",
        )
    if invocation.context:  # 1
        return invocation.context
    if invocation.data_dir:  # 2
        return LOCAL
    if invocation.environment.get("SLICE_CONTEXT"):  # 3
        return invocation.environment["SLICE_CONTEXT"]
    return LOCAL if invocation.environment.get("SLICE_DATA_DIR") else current  # 4, 5


def connection(invocation: Invocation) -> Connection:
    """Return the cluster that `invocation` asks for.

    Raises:
        Failure: there is no such context or cluster, or its token cannot be read.
    """
    # A flag or a variable that settles it spares the file, so a broken file cannot stop a local cluster.
    is_local = invocation.data_dir is not None or invocation.context == LOCAL
    recorded = contexts.Contexts() if is_local else contexts.load(contexts_file())
    name = chosen_context(invocation, recorded.current)
    if name == LOCAL:
        return _local(data_dir_of(invocation.data_dir, invocation.environment))
    return _remote(name, recorded.get(name))


def _local(data_dir: Path) -> Connection:
    block = cluster.load(data_dir)
    node = joined.load(data_dir) if block is None else None
    if node is not None:
        raise Failure(
            "cluster.not_running",
            f"this machine is node {node.node_name} of a cluster; its controller is at {node.controller_host}",
            hint="run this there, or let this machine talk to its admin API: `slice context add NAME --url URL "
            "--token-file FILE`, then `slice context use NAME`",
        )
    if block is None:
        raise Failure(
            "cluster.not_running",
            f"there is no cluster in {data_dir}",
            hint="`slice up` starts one; --data-dir or --context names another",
        )
    return Connection(
        name=LOCAL,
        controller_url=callable_url(block.controller_url),
        token=cluster.read_secret(block, "operator_token"),
        openai_url=callable_url(block.openai_base_url),
        key_file=block.secret_file("api_key"),
        unreachable_hint="`slice up` starts the cluster; `slice doctor` says what is wrong",
    )


def _remote(name: str, context: Context) -> Connection:
    try:
        token = Path(context.token_file).expanduser().read_text().strip()
    except OSError as error:
        raise Failure(
            "auth.missing",
            f"the token file {context.token_file} of context {name!r} cannot be read: {error.strerror}",
            hint=f"copy the cluster's secrets/operator_token there, or `slice context add {name}` anew",
        ) from error
    return Connection(
        name=name,
        controller_url=context.url.rstrip("/"),
        token=token,
        openai_url=context.openai_url.rstrip("/"),
        key_file=Path(context.key_file).expanduser() if context.key_file else None,
        unreachable_hint=f"check that the cluster of context {name!r} runs; `slice context list` shows its URL",
    )


def local_node(invocation: Invocation) -> NodeBlock | None:
    """Return this machine's node when `invocation` asks for the directory of a machine that joined, else None.

    Raises:
        Failure: `cluster.data_dir_unusable`, or the flags disagree.
    """
    is_local = invocation.data_dir is not None or invocation.context == LOCAL
    current = LOCAL if is_local else contexts.load(contexts_file()).current
    if chosen_context(invocation, current) != LOCAL:
        return None
    return joined.load(data_dir_of(invocation.data_dir, invocation.environment))


def callable_url(url: str) -> str:
    """Return `url` with a wildcard listening address replaced by loopback: nobody can be called at 0.0.0.0."""
    host = urlsplit(url).hostname or ""
    return url.replace(f"//{host}", "//127.0.0.1", 1) if host in _WILDCARDS else url


def door_url(connection: Connection, reported: str) -> str:
    """Return the front door's base URL, given what the cluster's status `reported`.

    A remote cluster that listens on its own loopback or on every address reports a host that means nothing here:
    then the host of its admin API is taken, with the reported port.
    """
    if connection.openai_url:
        return connection.openai_url
    host = urlsplit(connection.controller_url).hostname or "127.0.0.1"
    parts = urlsplit(reported)
    if (parts.hostname or "") not in _LOOPBACKS or host in _LOOPBACKS:
        return callable_url(reported)
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}:{parts.port or 80}{parts.path}"


def api_key(connection: Connection, given: str | None, environment: Mapping[str, str]) -> str:
    """Return the front door's key: `--key`, SLICE_API_KEY, or the one that the cluster's key file holds.

    Raises:
        Failure: `auth.missing` when there is none.
    """
    named = given or environment.get("SLICE_API_KEY", "")
    if named:
        return named
    try:
        if connection.key_file is not None:
            return connection.key_file.read_text().strip()
    except OSError:
        pass  # the failure below says what to do
    raise Failure(
        "auth.missing",
        "there is no API key for the front door",
        hint="`slice key create NAME` makes one; give it with --key or SLICE_API_KEY",
    )


def local_data_dir(invocation: Invocation) -> Path:
    """Return the data directory of a command that works on this machine's cluster alone.

    Raises:
        Failure: `request.usage` when a remote context was named.
    """
    if invocation.context not in {None, LOCAL}:
        raise Failure(
            "request.usage",
            f"context {invocation.context!r} is another machine's cluster",
            hint="run this on that machine, or leave --context away",
        )
    return data_dir_of(invocation.data_dir, invocation.environment)
