"""Remote clusters by name: `contexts.json` in the user's configuration directory, mode 0600.

A context holds where a cluster's admin API is and the files that hold its secrets, never a secret itself. `local` is
no entry of the file: it stands for the cluster of the data directory. Called by `cli.connection` and `slice context`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from core.errors import Failure
from core.infra.cluster import make_private_dir, write_private
from core.names import checked_name, did_you_mean

LOCAL = "local"


@dataclass(frozen=True, kw_only=True)
class Context:
    """One remote cluster. An empty `openai_url` means: what the cluster's status says, seen from here."""

    url: str
    token_file: str
    openai_url: str = ""
    key_file: str = ""


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """All contexts and the name of the one in use (`local` when none is)."""

    current: str = LOCAL
    known: Mapping[str, Context] = field(default_factory=dict)

    def get(self, name: str) -> Context:
        """Return the context called `name`.

        Raises:
            Failure: `context.not_found`.
        """
        found = self.known.get(name)
        if found is None:
            raise Failure(
                "context.not_found",
                f"no context {name!r}.{did_you_mean(name, [LOCAL, *self.known])}",
                hint="`slice context list` shows them, `slice context add` makes one",
            )
        return found

    def with_added(self, name: str, context: Context) -> "Contexts":
        """Return these contexts with `name` made or replaced.

        Raises:
            Failure: the name or one of the URLs is malformed, or the name is `local`.
        """
        checked_name("context", name)
        if name == LOCAL:
            raise Failure(
                "request.invalid_name", "'local' always means this machine's cluster", hint="choose another name"
            )
        for url in filter(None, (context.url, context.openai_url)):
            _check_url(url)
        return replace(self, known={**self.known, name: context})

    def with_current(self, name: str) -> "Contexts":
        """Return these contexts with `name` in use.

        Raises:
            Failure: `context.not_found`.
        """
        if name != LOCAL:
            self.get(name)
        return replace(self, current=name)

    def without(self, name: str) -> "Contexts":
        """Return these contexts without `name`; if it was in use, `local` is.

        Raises:
            Failure: `context.not_found`.
        """
        self.get(name)
        rest = {key: value for key, value in self.known.items() if key != name}
        return Contexts(current=LOCAL if self.current == name else self.current, known=rest)


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good:
        raise Failure(
            "request.invalid_field", f"{url!r} is no URL of a server", hint="write http://HOST:PORT or https://HOST"
        )


def load(file: Path) -> Contexts:
    """Return the contexts recorded in `file`; none when there is no file.

    Raises:
        Failure: `settings.unreadable` when it cannot be read or is malformed.
    """
    try:
        values = json.loads(file.read_text())
        known = {str(name): Context(**fields) for name, fields in values["contexts"].items()}
        return Contexts(current=str(values["current"]), known=known)
    except FileNotFoundError:
        return Contexts()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failure(
            "settings.unreadable", f"{file} cannot be read", hint="repair it, or remove it and add the contexts again"
        ) from error


def save(file: Path, contexts: Contexts) -> None:
    """Record `contexts` in `file` at mode 0600.

    Raises:
        Failure: `settings.unreadable` when it cannot be written.
    """
    values = {"current": contexts.current, "contexts": {name: asdict(item) for name, item in contexts.known.items()}}
    try:
        make_private_dir(file.parent)
        write_private(file, json.dumps(values, indent=2) + "\n")
    except (OSError, Failure) as error:
        raise Failure(
            "settings.unreadable",
            f"{file} cannot be written",
            hint="set XDG_CONFIG_HOME to a directory of your own",
        ) from error
