"""What earlier runs of a loop did: one JSON line a round, so that the next run goes on after the last whole one."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

Round = TypeVar("Round")


class Rounds(Generic[Round]):
    """The rounds of one loop, kept in `file`; `kind` is their dataclass."""

    def __init__(self, file: Path, kind: type[Round]) -> None:
        self.file = file
        self._kind = kind

    def done(self) -> list[Round]:
        """Return the rounds that were done; a line that was cut off in the middle is none."""
        rounds: list[Round] = []
        for line in self.file.read_text().splitlines() if self.file.exists() else ():
            try:
                rounds.append(self._kind(**json.loads(line)))
            except (ValueError, TypeError):
                break
        return rounds

    def keep(self, rounds: list[Any]) -> None:
        """Write all `rounds`."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.file.with_suffix(".new")
        fresh.write_text("".join(json.dumps(asdict(one)) + "\n" for one in rounds))
        fresh.replace(self.file)

    def forget(self) -> None:
        """Begin anew the next time."""
        self.file.unlink(missing_ok=True)
