"""The cluster's authority as two 0600 files beside the other secrets, made when somebody first needs a certificate.

Goes in: the directory. Comes out: the authority. The key is the truth: its certificate can be made again, the key
cannot, and without it every node has to join anew.
"""

import asyncio
from pathlib import Path

from core.clock import Clock
from core.errors import Failure
from core.infra import certificates, cluster
from core.infra.certificates import Authority

KEY_FILE = "authority_key.pem"
CERTIFICATE_FILE = "authority.pem"


class AuthorityFiles:
    """Reads the files once; makes them once."""

    def __init__(self, directory: Path, *, cluster_id: str, clock: Clock) -> None:
        self._directory = directory
        self._cluster_id = cluster_id
        self._clock = clock
        self._making = asyncio.Lock()
        self._authority: Authority | None = None

    async def get(self) -> Authority:
        """Return the authority, made now if there is none.

        Raises:
            Failure: `cluster.data_dir_unusable` when the files are damaged, do not belong together, or cannot be made.
        """
        async with self._making:
            if self._authority is None:
                self._authority = await asyncio.to_thread(self._read_or_made)
            return self._authority

    def _read_or_made(self) -> Authority:
        key_file, certificate_file = self._directory / KEY_FILE, self._directory / CERTIFICATE_FILE
        try:
            key_pem, certificate_pem = _text(key_file), _text(certificate_file)
            if key_pem and certificate_pem:
                return certificates.whole_authority(key_pem, certificate_pem)
            if certificate_pem:
                raise ValueError("its key is missing")
            made = certificates.new_authority(self._cluster_id, self._clock.now(), key_pem)
            cluster.write_private(key_file, made.key_pem)
            cluster.write_private(certificate_file, made.certificate_pem)
        except (OSError, ValueError) as error:
            why = (error.strerror or "error") if isinstance(error, OSError) else str(error).partition("\n")[0][:200]
            raise Failure(
                "cluster.data_dir_unusable",
                f"the cluster's authority {certificate_file} cannot be used: {why}",
                hint=f"restore it and {KEY_FILE} from a backup; if both are lost, delete what is left: "
                "then every node has to join again",
            ) from error
        return made


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""
