"""Engines' binaries out of strangers' files: archives that lie, servers that lead away, digests that differ."""

import http.server
import io
import json
import os
import ssl
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import Failure
from node_agent.engines import unpack
from tests.node_agent import wheels

PROGRAM = b"#!/bin/sh\necho demoserve version 2.1\n"


def archive(path: Path, *members: tuple[str, object]) -> Path:
    """Write a .tar.gz of (name, content): bytes are a file, `("link", target)` and the like are other things."""
    with tarfile.open(path, "w:gz") as out:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size, info.mode = len(content), 0o755
                out.addfile(info, io.BytesIO(content))
                continue
            kind, target = content  # type: ignore[misc]
            info.type = {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "pipe": tarfile.FIFOTYPE}[kind]
            info.linkname = target
            out.addfile(info)
    return path


def taken(tmp_path: Path, source: str) -> dict[str, str]:
    place = tmp_path / "place"
    place.mkdir()
    return dict(unpack.taken(source, place, "demoserve"))


def code_of(tmp_path: Path, source: str) -> str:
    with pytest.raises(Failure) as caught:
        taken(tmp_path, source)
    assert not (tmp_path / "place" / ".whole").exists()
    return caught.value.code


def test_a_plain_program_is_taken_and_its_digest_told(tmp_path: Path) -> None:
    given = tmp_path / "anything"
    given.write_bytes(PROGRAM)
    found = taken(tmp_path, f"file:{given}")
    assert found == {"digest": wheels.sha256(PROGRAM), "executable": "bin/demoserve"}
    assert os.access(tmp_path / "place/bin/demoserve", os.X_OK)


def test_an_archive_is_unpacked_with_its_libraries_and_their_links(tmp_path: Path) -> None:
    given = archive(
        tmp_path / "demo.tgz",
        ("demo-2.1/lib/libcudart.so.12.8", b"\x7fELFlib"),
        ("demo-2.1/lib/libcudart.so.12", ("link", "libcudart.so.12.8")),
        ("demo-2.1/bin/demoserve", PROGRAM),
        ("demo-2.1/bin/lib", ("link", "../lib")),
    )
    assert taken(tmp_path, f"file:{given}")["executable"] == "demo-2.1/bin/demoserve"
    assert (tmp_path / "place/demo-2.1/bin/lib/libcudart.so.12").read_bytes() == b"\x7fELFlib"


@pytest.mark.parametrize(
    "members",
    [
        pytest.param([("/etc/demoserve", PROGRAM)], id="absolute"),
        pytest.param([("../demoserve", PROGRAM)], id="parent"),
        pytest.param([("a/../../demoserve", PROGRAM)], id="parent-inside"),
        pytest.param([("out", ("link", "/etc")), ("out/demoserve", PROGRAM)], id="absolute-link"),
        pytest.param([("out", ("link", "..")), ("out/demoserve", PROGRAM)], id="link-up"),
        pytest.param([("in", ("link", ".")), ("in/demoserve", PROGRAM)], id="through-a-link"),
        pytest.param([("x/y/a", ("link", "../..")), ("b", ("link", "x/y/a/.."))], id="chain-of-links"),
        pytest.param([("demoserve", ("hard", "/etc/passwd"))], id="hard-link"),
        pytest.param([("demoserve", ("pipe", ""))], id="pipe"),
        pytest.param([("readme", b"nothing")], id="no-program"),
        pytest.param([("a", PROGRAM), ("a", PROGRAM)], id="twice"),
        pytest.param([("a", PROGRAM), ("a/demoserve", PROGRAM)], id="below-a-file"),
    ],
)
def test_an_archive_that_leads_outside_or_holds_odd_things_is_refused(
    tmp_path: Path, members: list[tuple[str, object]]
) -> None:
    given = archive(tmp_path / "demo.tar.gz", *members)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert code_of(tmp_path, f"file:{given}") == "format.refused"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "place"])


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    given = archive(tmp_path / "demo.tar.gz", ("demoserve", os.urandom(100_000)))
    given.write_bytes(given.read_bytes()[:50_000])
    assert code_of(tmp_path, f"file:{given}") == "format.refused"


def test_an_archive_with_too_many_things_is_refused(tmp_path: Path) -> None:
    given = archive(tmp_path / "demo.tgz", ("a", b""), ("b", b""), ("demoserve", PROGRAM))
    with given.open("rb") as stream, pytest.raises(Failure, match="too much"):
        unpack.unpack(stream, tmp_path, max_members=2)


@pytest.mark.parametrize("name", ["demo.zip", "demo.tar.zst", "demo.deb"])
def test_other_archives_are_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK")
    assert code_of(tmp_path, f"file:{tmp_path / name}") == "format.refused"


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo").write_bytes(b"hello")
    assert code_of(tmp_path, f"file:{tmp_path / 'demo'}") == "format.refused"


def test_another_digest_is_refused_before_anything_is_unpacked(tmp_path: Path) -> None:
    given = archive(tmp_path / "demo.tgz", ("demoserve", PROGRAM))
    assert code_of(tmp_path, f"file:{given}#file={'0' * 64}") == "source.digest_mismatch"
    assert not list((tmp_path / "place").iterdir())


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("file:/nowhere/at/all", "source.not_found"),
        ("file:/dev/zero", "source.not_found"),
        ("https://example.invalid/demo.tgz", "source.invalid"),
        ("hf:org/name", "source.unsupported"),
    ],
)
def test_a_source_that_cannot_be_taken_says_why(tmp_path: Path, source: str, code: str) -> None:
    assert code_of(tmp_path, source) == code


# -- https ------------------------------------------------------------------------------------------------------------


class Files(http.server.BaseHTTPRequestHandler):
    content = PROGRAM

    def do_GET(self) -> None:
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:1/demoserve")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path == "/demoserve":
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.content)))
            self.end_headers()
            self.wfile.write(self.content)
        elif self.path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.content) + 1))
            self.end_headers()
            self.wfile.write(self.content)
        else:
            self.send_error(404)

    def log_message(self, format: str, *arguments: object) -> None:
        return


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    made = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    files = ("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"), "-subj", "/CN=localhost")
    names = ("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    subprocess.run([*made, *files, *names], check=True, capture_output=True, timeout=30)
    return folder


@pytest.fixture
def server(certificate: Path) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    running.socket = context.wrap_socket(running.socket, server_side=True)
    running.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that trusts us not hangs up
    thread = threading.Thread(target=running.serve_forever, args=(0.05,))
    thread.start()
    yield f"https://localhost:{running.server_port}"
    running.shutdown()
    thread.join()
    running.server_close()


def by_child(tmp_path: Path, source: str, trusted: Path | None, hosts: str = "") -> tuple[int, dict[str, str]]:
    (tmp_path / "place").mkdir()
    asked = {"source": source, "place": str(tmp_path / "place"), "executable": "demoserve"}
    order = json.dumps({**asked, "source_hosts": hosts})
    environment = {"SSL_CERT_FILE": str(trusted / "cert.pem")} if trusted else {}
    done = subprocess.run(
        [sys.executable, "-I", "-m", "node_agent.engines.unpack", order],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def test_a_program_comes_over_https_when_its_digest_is_right(tmp_path: Path, server: str, certificate: Path) -> None:
    source = f"{server}/demoserve#file={wheels.sha256(PROGRAM)}"
    code, answer = by_child(tmp_path, source, certificate, server)
    assert (code, answer["executable"]) == (0, "bin/demoserve")


@pytest.mark.parametrize(
    ("path", "is_trusted", "code"),
    [
        ("demoserve", False, "source.unreachable"),
        ("missing", True, "source.not_found"),
        ("away", True, "source.not_allowed"),
        ("cut", True, "source.unreachable"),
    ],
)
def test_a_server_that_is_not_right_is_an_error_in_words(
    tmp_path: Path, server: str, certificate: Path, path: str, is_trusted: bool, code: str
) -> None:
    source = f"{server}/{path}#file={wheels.sha256(PROGRAM + b'x')}"
    ended, answer = by_child(tmp_path, source, certificate if is_trusted else None, server)
    assert (ended, answer["code"]) == (1, code)


def test_a_private_address_that_no_operator_named_is_refused(tmp_path: Path, server: str, certificate: Path) -> None:
    source = f"{server}/demoserve#file={wheels.sha256(PROGRAM)}"
    ended, answer = by_child(tmp_path, source, certificate)
    assert (ended, answer["code"]) == (1, "source.not_allowed")
    assert "source_hosts" in answer["hint"]
