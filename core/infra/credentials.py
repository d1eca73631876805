"""What one process proves itself with to others: its key, its certificate, and the authority that it believes.

Comes in: PEM texts. Goes out: `DIR/{key.pem,certificate.pem,authority.pem}`, 0600. DIR is a link to a directory that is
never changed once it is linked, so a renewal replaces all three at once: whoever reads has the old ones or the new
ones, never a key of one and a certificate of the other. Written by `slice node join` and the node agent's renewal.
"""

import contextlib
import os
import shutil
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from core.errors import Failure
from core.identities import Identity
from core.infra import certificates, cluster
from core.infra.certificates import Holder

FILES = ("key.pem", "certificate.pem", "authority.pem")
_READ_AGAIN = 3


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """Three PEM texts that belong together; `authority_pem` may hold several roots."""

    key_pem: str = field(repr=False)
    certificate_pem: str
    authority_pem: str

    @property
    def holder(self) -> Holder:
        """Who they are of, and for how long.

        Raises:
            Failure: `node.certificate_invalid`.
        """
        return certificates.holder_of(self.certificate_pem)


def load(directory: Path) -> Credentials | None:
    """Return what lies in `directory`, None when nothing was ever stored there.

    Raises:
        Failure: `node.certificate_invalid` when a file is missing or cannot be read.
    """
    failed: OSError | None = None
    for _ in range(_READ_AGAIN):
        try:
            # Resolved once: all three files are of one renewal, whatever is linked meanwhile.
            place = directory.resolve(strict=True)
            key, certificate, authority = ((place / name).read_text() for name in FILES)
            return Credentials(key_pem=key, certificate_pem=certificate, authority_pem=authority)
        except FileNotFoundError as error:
            if not directory.is_symlink() and not directory.exists():
                return None
            failed = error
        except (OSError, UnicodeError) as error:
            raise _unreadable(directory) from error
    raise _unreadable(directory) from failed


def store(directory: Path, given: Credentials) -> None:
    """Put `given` in the place of what `directory` held, all at once; only then the older ones go.

    Raises:
        OSError: the disk does not take them; what was there is still there.
    """
    fresh = directory.with_name(f"{directory.name}-{given.holder.serial}")
    cluster.make_private_dir(fresh)
    for name, text in zip(FILES, (given.key_pem, given.certificate_pem, given.authority_pem), strict=True):
        cluster.write_private(fresh / name, text)
    link = directory.with_name(f".{directory.name}.{os.getpid()}.new")
    link.unlink(missing_ok=True)
    link.symlink_to(fresh.name)
    try:
        link.rename(directory)
    finally:
        link.unlink(missing_ok=True)
    _sync(directory.parent)
    for old in directory.parent.glob(f"{directory.name}-*"):
        if old != fresh:
            shutil.rmtree(old, ignore_errors=True)


def remove(directory: Path) -> None:
    """Remove what `store` wrote."""
    directory.unlink(missing_ok=True)
    for old in directory.parent.glob(f"{directory.name}-*"):
        shutil.rmtree(old, ignore_errors=True)


def checked(given: Credentials, identity: Identity, now: datetime) -> Credentials:
    """Return `given` when it is what was asked for: of this identity and key, signed by the authority, valid now.

    Raises:
        Failure: `node.certificate_invalid`, naming what is wrong.
    """
    holder = given.holder
    if holder.identity != identity:
        raise _invalid(f"is of {holder.identity.uri}, not of {identity.uri}")
    if holder.expires_at <= now or holder.valid_from > now:
        raise Failure("node.certificate_invalid", f"the certificate {clock_fault(holder, now)}")
    certificate = x509.load_pem_x509_certificate(given.certificate_pem.encode())
    try:
        key = serialization.load_pem_private_key(given.key_pem.encode(), None)
    except ValueError:
        raise _invalid("has no key") from None
    if key.public_key() != certificate.public_key():
        raise _invalid("is of another key")
    if not is_signed(given.certificate_pem, given.authority_pem):
        raise _invalid("is not signed by the cluster's authority")
    return given


def clock_fault(holder: Holder, now: datetime) -> str:
    """Return in words why a certificate is not valid at `now`; "" when it is."""
    if holder.valid_from > now:
        hours = (holder.valid_from - now).total_seconds() / 3600
        return f"is not yet valid: this host's clock is {hours:.1f} h behind"
    if holder.expires_at <= now:
        hours = (now - holder.expires_at).total_seconds() / 3600
        return f"ran out {hours:.1f} h ago by this host's clock"
    return ""


def is_signed(certificate_pem: str, authority_pem: str) -> bool:
    """Return whether one of the roots of `authority_pem` has signed a certificate."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
        roots = x509.load_pem_x509_certificates(authority_pem.encode())
    except ValueError:
        return False
    for root in roots:
        with contextlib.suppress(ValueError, TypeError, InvalidSignature):
            certificate.verify_directly_issued_by(root)
            return True
    return False


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _invalid(why: str) -> Failure:
    return Failure(
        "node.certificate_invalid", f"the certificate {why}", hint="join again: `slice node join LINE --again`"
    )


def _unreadable(directory: Path) -> Failure:
    return Failure(
        "node.certificate_invalid",
        f"the certificate in {directory} cannot be read",
        hint="join again: `slice node join LINE --again`",
    )
