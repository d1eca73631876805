"""A certificate authority of our own, and TLS in front of a plain HTTP server, for tests of remote engines."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    """`file` is its certificate, to be named by SSL_CERT_FILE; `context` serves as localhost and 127.0.0.1."""

    def __init__(self, directory: Path, *, names: tuple[str, ...] = ("localhost", "127.0.0.1")) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.file = directory / "authority.pem"
        key, name = ec.generate_private_key(ec.SECP256R1()), _named("Slice test authority")
        root = _builder(name, name, key).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        root = root.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        authority = root.sign(key, hashes.SHA256())
        self.file.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
        own = ec.generate_private_key(ec.SECP256R1())
        leaf = _builder(_named(names[0]), name, own).add_extension(_alternatives(names), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
        certificate = leaf.add_extension(issuer, critical=False).sign(key, hashes.SHA256())
        chain = directory / "server.pem"
        chain.write_bytes(
            own.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(chain)


def _named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
    )


def _alternatives(names: tuple[str, ...]) -> x509.SubjectAlternativeName:
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(found)


@contextlib.contextmanager
def swallowing_first(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make `localhost` two addresses, the first of which takes connections to `port` and never says a word."""
    places = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port)) for host in ("127.0.0.2", "127.0.0.1")]
    with socket.create_server(("127.0.0.2", port)), monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", lambda *_args, **_more: places)
        yield


@contextlib.asynccontextmanager
async def in_front_of(port: int, context: ssl.SSLContext, *, listen: int = 0) -> AsyncIterator[int]:
    """Serve TLS on a port of loopback (`listen`, or a free one) and pass everything on to the plain `port`."""
    links: set[asyncio.StreamWriter] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        links.add(writer)
        try:
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.transport.abort()
            return
        links.add(back_writer)
        await asyncio.gather(pump(reader, back_writer), pump(back_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", listen, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for link in links:
            link.transport.abort()
