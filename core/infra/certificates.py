"""The cluster's own certificate authority, and the requests that nodes and doors make of it.

Comes in: names (`core.identities`), instants. Goes out: PEM texts. Keys are P-256 and never leave the process that made
them but into a 0600 file. The authority is pinned by the SHA-256 of its public key (RFC 7469's way), so that a joining
machine knows the right one before it trusts anybody.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from core.errors import Failure
from core.identities import Identity, identity_of

LIFETIME = timedelta(hours=24)
"""Of a node's and a door's certificate; renewed from the middle of its life on."""
AUTHORITY_LIFETIME = timedelta(days=3650)
BACKDATED = timedelta(minutes=5)
"""Clocks differ: a certificate is valid from before its making."""
_CSR_MAX = 16 * 1024
"""Characters of a request; ours have about 600."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A fresh key and the request for its certificate."""

    key_pem: str = field(repr=False)
    csr_pem: str


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A certificate of ours; `serial` is lower-case hexadecimal."""

    certificate_pem: str
    serial: str
    identity: Identity
    expires_at: datetime


@dataclass(frozen=True, kw_only=True)
class Authority:
    """The authority's key and certificate."""

    key_pem: str = field(repr=False)
    certificate_pem: str

    @property
    def pin(self) -> str:
        """Lower-case hexadecimal SHA-256 of its public key."""
        return pin_of(self.certificate_pem)


def new_authority(cluster_id: str, now: datetime, key_pem: str = "") -> Authority:
    """Return an authority, valid from `now` for ten years, with the key `key_pem` or a new one.

    With the same key it is the same authority: its pin stays, and what it signed before is trusted still.

    Raises:
        ValueError: `key_pem` is no private key on P-256.
    """
    key = _signing_key(key_pem) if key_pem else ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Slice {cluster_id}")])
    usage = {item: False for item in _USAGES} | {"key_cert_sign": True, "crl_sign": True}
    certificate = (
        _builder(name, name, key.public_key(), now, AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(key_pem=_key_pem(key), certificate_pem=_pem(certificate))


def whole_authority(key_pem: str, certificate_pem: str) -> Authority:
    """Return the authority of a key and the certificate that was made of it.

    Raises:
        ValueError: one of the two is damaged, or they do not belong together.
    """
    public = serialization.PublicFormat.SubjectPublicKeyInfo
    key = _signing_key(key_pem).public_key().public_bytes(serialization.Encoding.DER, public)
    if hashlib.sha256(key).hexdigest() != pin_of(certificate_pem):
        raise ValueError("the key is not the certificate's")
    return Authority(key_pem=key_pem, certificate_pem=certificate_pem)


def new_request(identity: Identity) -> Request:
    """Return a fresh key and a request for a certificate that names `identity`."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.name)]))
        .add_extension(_names(identity), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Request(key_pem=_key_pem(key), csr_pem=csr.public_bytes(serialization.Encoding.PEM).decode())


def issued(
    authority: Authority, csr_pem: str, identity: Identity, now: datetime, lifetime: timedelta = LIFETIME
) -> Issued:
    """Return a certificate for exactly `identity`, when that is what the request asks for.

    Raises:
        Failure: `node.csr_refused`.
    """
    csr = _loaded(csr_pem)
    key = csr.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _refused("has a key that is not P-256")
    if _asked(csr) != _names(identity):
        raise _refused(f"asks for other names than those of {identity.uri}")
    root = x509.load_pem_x509_certificate(authority.certificate_pem.encode())
    signer = _signing_key(authority.key_pem)
    # HAProxy reads no URIs: the role stands in the subject as well.
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, identity.name),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, identity.role.value),
        ]
    )
    usage = {item: False for item in _USAGES} | {"digital_signature": True}
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    certificate = (
        _builder(subject, root.subject, key, now, lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(_names(identity), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return Issued(
        certificate_pem=_pem(certificate),
        serial=f"{certificate.serial_number:x}",
        identity=identity,
        expires_at=certificate.not_valid_after_utc,
    )


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a certificate, and for how long; `serial` is lower-case hexadecimal."""

    identity: Identity
    serial: str
    valid_from: datetime
    expires_at: datetime

    def is_due(self, now: datetime) -> bool:
        """Return whether half of its life is over, so that it is to be renewed."""
        return now >= self.valid_from + (self.expires_at - self.valid_from) / 2


def holder_of(certificate_pem: str) -> Holder:
    """Return what a certificate says; its signature is checked by whoever made the connection.

    Raises:
        Failure: `node.certificate_invalid` when it is damaged or names nobody of ours.
    """
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, UnicodeError, x509.ExtensionNotFound):
        uris = []
    identity = identity_of(uris[0]) if len(uris) == 1 else None
    if identity is None:
        raise Failure("node.certificate_invalid", "the certificate is damaged or names nobody of a Slice cluster")
    return Holder(
        identity=identity,
        serial=f"{certificate.serial_number:x}",
        valid_from=certificate.not_valid_before_utc,
        expires_at=certificate.not_valid_after_utc,
    )


def asked_identity(csr_pem: str) -> Identity | None:
    """Return who a certificate request names, or None; `issued` sees that it names nobody besides."""
    try:
        names = _asked(_loaded(csr_pem))
    except Failure:
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier) if names is not None else []
    return identity_of(uris[0]) if len(uris) == 1 else None


def key_digest(csr_pem: str) -> bytes:
    """Return the 32 bytes of SHA-256 of the public key that a certificate request is for.

    Raises:
        Failure: `node.csr_refused` when it is damaged.
    """
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(_loaded(csr_pem).public_key().public_bytes(serialization.Encoding.DER, form)).digest()


def pin_of(certificate_pem: str) -> str:
    """Return the lower-case hexadecimal SHA-256 of a certificate's public key.

    Raises:
        ValueError: it is no certificate.
    """
    key = x509.load_pem_x509_certificate(certificate_pem.encode()).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest()


_USAGES: Sequence[str] = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + lifetime)
    )


def _names(identity: Identity) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri), x509.DNSName(identity.dns_name)])


def _loaded(csr_pem: str) -> x509.CertificateSigningRequest:
    if len(csr_pem) > _CSR_MAX:
        raise _refused(f"is longer than {_CSR_MAX} characters")
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        csr.public_key()
        if not csr.is_signature_valid:
            raise InvalidSignature
    except (ValueError, InvalidSignature, UnsupportedAlgorithm, UnicodeError):
        raise _refused("is damaged or not signed by its own key") from None
    return csr


def _asked(csr: x509.CertificateSigningRequest) -> x509.SubjectAlternativeName | None:
    try:
        return csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return None


def _refused(why: str) -> Failure:
    return Failure("node.csr_refused", f"the certificate request {why}", hint="join again with `slice node join`")


def _signing_key(key_pem: str) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(key_pem.encode(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("not a key on P-256")
    return key


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
