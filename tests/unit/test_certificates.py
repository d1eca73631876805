"""The cluster's authority: who gets which certificate, and what others make of it."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from core.errors import Failure
from core.identities import Identity, Role, identity_of
from core.infra import certificates

NOW = datetime(2026, 11, 25, tzinfo=UTC)
NODE = Identity(cluster_id="clu_1", role=Role.NODE, name="nod_0a1b")
OTHER = Identity(cluster_id="clu_1", role=Role.NODE, name="nod_other")


@pytest.fixture(scope="module")
def authority() -> certificates.Authority:
    return certificates.new_authority("clu_1", NOW)


def test_a_node_gets_a_certificate_that_names_it_and_nobody_else(authority: certificates.Authority) -> None:
    request = certificates.new_request(NODE)
    given = certificates.issued(authority, request.csr_pem, NODE, NOW)
    holder = certificates.holder_of(given.certificate_pem)
    assert (holder.identity, holder.serial, holder.expires_at) == (NODE, given.serial, NOW + timedelta(hours=24))


def test_a_request_for_somebody_elses_name_is_refused(authority: certificates.Authority) -> None:
    with pytest.raises(Failure, match="other names") as caught:
        certificates.issued(authority, certificates.new_request(OTHER).csr_pem, NODE, NOW)
    assert caught.value.code == "node.csr_refused"


def test_a_request_with_a_weak_or_other_key_is_refused(authority: certificates.Authority) -> None:
    for key in (rsa.generate_private_key(65537, 1024), ec.generate_private_key(ec.SECP192R1())):
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(NODE.uri), x509.DNSName(NODE.dns_name)])
        csr = x509.CertificateSigningRequestBuilder(x509.Name([])).add_extension(names, False)
        pem = csr.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
        with pytest.raises(Failure, match="P-256"):
            certificates.issued(authority, pem, NODE, NOW)


@pytest.mark.parametrize("text", ["", "nonsense", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", "\ud800"])
def test_a_damaged_request_is_refused_in_words(authority: certificates.Authority, text: str) -> None:
    with pytest.raises(Failure, match="damaged"):
        certificates.issued(authority, text, NODE, NOW)


def test_a_certificate_is_due_when_half_its_life_is_over(authority: certificates.Authority) -> None:
    given = certificates.issued(authority, certificates.new_request(NODE).csr_pem, NODE, NOW)
    holder = certificates.holder_of(given.certificate_pem)
    assert not holder.is_due(NOW + timedelta(hours=11))
    assert holder.is_due(NOW + timedelta(hours=13))


def test_the_pin_is_of_the_key_and_differs_between_authorities(authority: certificates.Authority) -> None:
    assert authority.pin == certificates.pin_of(authority.certificate_pem)
    assert authority.pin != certificates.new_authority("clu_1", NOW).pin


def test_openssl_accepts_the_chain_and_the_name(authority: certificates.Authority, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    fresh = certificates.new_authority("clu_1", now)
    request = certificates.new_request(NODE)
    (tmp_path / "key").write_text(request.key_pem)
    (tmp_path / "certificate").write_text(certificates.issued(fresh, request.csr_pem, NODE, now).certificate_pem)
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    client_side = ssl.create_default_context(cadata=fresh.certificate_pem)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(incoming, outgoing, server_hostname=NODE.dns_name)
    server = server_side.wrap_bio(outgoing, incoming, server_side=True)
    for _ in range(3):
        for end in (client, server):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert client.getpeercert() is not None


@pytest.mark.parametrize(
    "uri", ["", "slice://c/node/", "slice://c/king/x", "slice://c/node/x/y", "https://c/node/x", "slice://c/node/x\n"]
)
def test_other_uris_name_nobody(uri: str) -> None:
    assert identity_of(uri) is None


def test_a_uri_and_its_identity_are_one() -> None:
    assert identity_of(NODE.uri) == NODE
