"""What an operator configured of the places that models come from.

Made by the composition root, handed to `node_agent.files` by `node_agent.agent`.
"""

import stat
from dataclasses import dataclass
from pathlib import Path

from core.errors import Failure
from node_agent.files.http_get import Token
from node_agent.files.reach import Origin, origin_of, origins_from_text

HF_ENDPOINT = "https://huggingface.co"
OLLAMA_REGISTRY = "https://registry.ollama.ai"


@dataclass(frozen=True, kw_only=True)
class SourceOrigins:
    """Hub, registry and trusted hosts, as in the settings of the same names; `room_timeout_s` is how long a pull waits
    for a full disk.
    """

    hf_endpoint: str = HF_ENDPOINT
    hf_token_file: str = ""
    ollama_registry: str = OLLAMA_REGISTRY
    source_hosts: str = ""
    room_timeout_s: float = 86400.0

    def trusted(self) -> tuple[Origin, ...]:
        """Return the origins that may be reached whatever their address: all that somebody configured.

        Raises:
            Failure: `settings.invalid`.
        """
        named = [url for url in (self.hf_endpoint, self.ollama_registry) if url not in (HF_ENDPOINT, OLLAMA_REGISTRY)]
        return origins_from_text(",".join([*named, self.source_hosts]))

    def hub_token(self) -> Token | None:
        """Return the hub's token, for the hub's origin alone; None when none is configured. Blocks.

        Raises:
            Failure: `settings.invalid` when its file cannot be read, others may read it, or it holds no token.
        """
        if not self.hf_token_file:
            return None
        file = Path(self.hf_token_file)
        try:
            mode = stat.S_IMODE(file.stat().st_mode)
            secret = file.read_text().strip()
        except (OSError, UnicodeDecodeError):
            raise _bad_token(file, "cannot be read") from None
        if mode & 0o077:
            raise _bad_token(file, f"has mode {mode:04o}: others may read it")
        if not secret.isascii() or not secret.isprintable() or " " in secret or not 0 < len(secret) < 1000:
            raise _bad_token(file, "holds no token")
        return Token(origin=origin_of(self.hf_endpoint), secret=secret)


def _bad_token(file: Path, what: str) -> Failure:
    return Failure(
        "settings.invalid", f"hf_token_file {file} {what}", hint="one line, mode 0600", param="hf_token_file"
    )
