"""Which hosts a source may lead to, and that what was checked is what gets connected to."""

import datetime
import io
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Failure
from core.infra.clock import SystemClock
from core.infra.logs import Log
from node_agent.files.download import Downloader
from node_agent.files.http_get import HttpGet
from node_agent.files.lines import PublicLines, is_spared
from node_agent.files.reach import Origin, Reach, is_public, origin_of, origins_from_text
from node_agent.files.transfer import Remote, Watch
from tests.fakes import web
from tests.node_agent.benches import QUICK, sha256

DATA = b"some bytes of a model" * 100
REFUSED = "the source leads to an address that is not public, or not over https"


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "240.0.0.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::10.0.0.1", "2002:7f00:1::", "2002:a9fe:a9fe::1"),
        *("2001:0:4136:e378:8000:63bf:f5ff:fffe", "localhost", "", "1.2.3"),
    ],
)
def test_an_address_that_is_not_public_is_known(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1"]
)
def test_a_public_address_is_known(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_the_same_inside_an_ipv6_one(address) -> None:
    assert is_public(f"::ffff:{address}") == is_public(str(address))
    assert is_public(f"64:ff9b::{address}") == is_public(str(address))


@pytest.mark.parametrize("addresses", [["10.0.0.1"], ["1.1.1.1", "10.0.0.1"], ["::1"], ["169.254.169.254"]], ids=str)
def test_a_name_with_one_address_inside_is_refused_whole_with_the_same_words(addresses: list[str]) -> None:
    reach = Reach(resolve=lambda host, port: addresses)
    with pytest.raises(Failure) as caught:
        reach.addresses(origin_of("https://models.example/x"))
    assert (caught.value.code, caught.value.message) == ("source.not_allowed", REFUSED)
    assert "models.example" not in str(caught.value)


def test_a_name_that_leads_nowhere_may_be_tried_later() -> None:
    def resolve(host: str, port: int) -> list[str]:
        raise socket.gaierror

    with pytest.raises(Failure) as caught:
        Reach(resolve=resolve).addresses(origin_of("https://models.example/x"))
    assert caught.value.code == "source.unreachable"


def test_what_an_operator_configured_is_reached_whatever_its_address() -> None:
    reach = Reach(trusted=origins_from_text("http://mirror.lan:8080, hub.lan"), resolve=lambda host, port: ["10.0.0.1"])
    assert reach.addresses(origin_of("http://mirror.lan:8080/x")) == ["10.0.0.1"]
    assert reach.addresses(origin_of("https://hub.lan/x")) == ["10.0.0.1"]
    assert reach.url_of("mirror.lan:8080", "a") == "http://mirror.lan:8080/a"
    assert reach.url_of("hub.lan", "a") == "https://hub.lan/a"
    for other in ("http://hub.lan/x", "https://mirror.lan:8080/x", "http://mirror.lan/x"):
        with pytest.raises(Failure):
            reach.addresses(origin_of(other))


@pytest.mark.parametrize("text", ["ftp://host", "http://", "https://user@host", "http://host:port", "a b"])
def test_a_host_to_trust_that_is_none_is_a_fault_of_the_settings(text: str) -> None:
    if text == "a b":
        text = "https://[::1"
    with pytest.raises(Failure) as caught:
        origins_from_text(text)
    assert caught.value.code == "settings.invalid"


@given(st.text(max_size=60))
def test_any_text_is_an_origin_or_a_failure(text: str) -> None:
    for url in (text, f"https://{text}", f"https://host/{text}"):
        try:
            assert origin_of(url).scheme in {"http", "https"}
        except Failure as failure:
            assert failure.code == "source.not_allowed"  # noqa: PT017 - either way is right


@pytest.mark.parametrize(
    ("spared", "is_so"),
    [("*", True), ("models.example", True), (".example", True), ("example", True), ("les.example", False), ("", False)],
)
def test_hosts_that_no_proxy_names_are_spared(spared: str, is_so: bool) -> None:
    assert is_spared("models.example", f"other, {spared}") == is_so


# -- over TLS ---------------------------------------------------------------------------------------------------------


def certificate(directory: Path, name: str) -> Path:
    """Write a certificate for `name`, signed by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    today = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(today)
        .not_valid_after(today + datetime.timedelta(days=3650))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = directory / f"{name}.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(built.public_bytes(serialization.Encoding.PEM) + secret)
    return file


@contextmanager
def secure_site(directory: Path, name: str) -> Iterator[tuple[web.Site, Path]]:
    file = certificate(directory, name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    with web.site(tls=context) as site:
        site.put("/model", DATA)
        yield site, file


async def fetched(reach: Reach, url: str, place: Path, environment: dict[str, str]) -> str:
    clock = SystemClock()
    lines = PublicLines(reach=reach, environment=environment, bounds=QUICK)
    http = HttpGet(lines=lines, bounds=QUICK, monotonic=clock.monotonic)
    downloader = Downloader(http=http, monotonic=clock.monotonic, log=Log("test", clock, io.StringIO()))
    watch = Watch(admit=lambda more: None, told=lambda done, total: None, look=lambda head: None)
    try:
        return await downloader.fetch(Remote(name="model", url=url), place, watch)
    finally:
        downloader.close()


async def test_the_address_that_was_checked_is_connected_to_under_the_hosts_name(tmp_path: Path) -> None:
    with secure_site(tmp_path, "models.test") as (site, bundle):
        asked: list[str] = []

        def resolve(host: str, port: int) -> list[str]:
            asked.append(host)
            return ["127.0.0.1"]

        origin = Origin(scheme="https", host="models.test", port=site.port)
        url = f"https://models.test:{site.port}/model"
        reach = Reach(trusted=[origin], resolve=resolve)
        assert await fetched(reach, url, tmp_path / "x", {"SSL_CERT_FILE": str(bundle)}) == sha256(DATA)
        assert set(asked) == {"models.test"}  # a name that no resolver knows: nothing else was looked up
        assert {one.host for one in site.seen} == {f"models.test:{site.port}"}


@pytest.mark.parametrize("fault", ["unknown authority", "other name"])
async def test_a_certificate_that_is_not_the_hosts_is_refused(tmp_path: Path, fault: str) -> None:
    with secure_site(tmp_path, "models.test") as (site, bundle):
        name = "other.test" if fault == "other name" else "models.test"
        origin = Origin(scheme="https", host=name, port=site.port)
        reach = Reach(trusted=[origin], resolve=lambda host, port: ["127.0.0.1"])
        environment = {"SSL_CERT_FILE": str(bundle)} if fault == "other name" else {}
        with pytest.raises(Failure, match="certificate") as caught:
            await fetched(reach, f"https://{name}:{site.port}/model", tmp_path / "x", environment)
        assert caught.value.code == "source.unreachable"
        assert site.seen == []


@contextmanager
def proxy(target: int) -> Iterator[tuple[int, list[bytes]]]:
    """Serve CONNECT on loopback, always to the same port; yields its own port and the heads it got."""
    heads: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += client.recv(1)
            heads.append(head)
            client.sendall(b"HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n")
            with client, socket.create_connection(("127.0.0.1", target)) as server:
                back = threading.Thread(target=pump, args=(server, client))
                back.start()
                pump(client, server)
                back.join()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1], heads
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


async def test_a_proxy_is_asked_for_public_hosts_by_name_after_a_look_at_their_addresses(tmp_path: Path) -> None:
    with secure_site(tmp_path, "models.test") as (site, bundle), proxy(site.port) as (port, heads):
        environment = {"SSL_CERT_FILE": str(bundle), "HTTPS_PROXY": f"http://me:word@127.0.0.1:{port}"}
        reach = Reach(resolve=lambda host, port: ["1.1.1.1"])
        assert await fetched(reach, "https://models.test/model", tmp_path / "x", environment) == sha256(DATA)
        assert heads[0].startswith(b"CONNECT models.test:443 HTTP/1.1\r\n")
        assert b"Proxy-Authorization: Basic bWU6d29yZA==\r\n" in heads[0]
        before = len(heads)
        inside = Reach(resolve=lambda host, port: ["10.0.0.1"])
        with pytest.raises(Failure) as caught:
            await fetched(inside, "https://models.test/model", tmp_path / "y", environment)
        assert caught.value.code == "source.not_allowed"
        assert len(heads) == before
