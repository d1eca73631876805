"""The file server on a real unix socket: what it gives, what it refuses, how fast, and how it ends."""

import http.client
import io
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.ids import Sha256
from core.infra.clock import SystemClock
from core.infra.logs import Log
from node_agent.files import asked
from node_agent.files.asked import Ask, Refusal
from node_agent.files.pace import Pace
from node_agent.files.serving import FileServer
from node_agent.files.store import FileStore, StoredFile
from tests.node_agent.benches import sha256
from tests.waiting import until

DATA = bytes(os.urandom(300_000))
DIGEST = Sha256(sha256(DATA))


def put(store: FileStore, root: Path, data: bytes) -> Sha256:
    half = root / "half"
    half.write_bytes(data)
    digest = Sha256(sha256(data))
    store.put(half, StoredFile(sha256=digest, size_bytes=len(data)))
    return digest


@contextmanager
def serving(tmp_path: Path, **more: object) -> Iterator[FileServer]:
    clock = SystemClock()
    store = FileStore(tmp_path / "store")
    put(store, tmp_path, DATA)
    server = FileServer(
        path=tmp_path / "files.sock",
        store=store,
        monotonic=clock.monotonic,
        log=Log("test", clock, io.StringIO()),
        **{"bytes_per_s": 0, **more},
    )
    server.start()
    try:
        yield server
    finally:
        server.stop()


def dialled(tmp_path: Path) -> socket.socket:
    line = socket.socket(socket.AF_UNIX)
    line.settimeout(10)
    line.connect(str(tmp_path / "files.sock"))
    return line


def answered(
    tmp_path: Path, path: str = f"{asked.PATH}{DIGEST}", method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("peer")
    connection.sock = dialled(tmp_path)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_a_file_of_the_store_comes_whole_with_its_digest_as_validator(tmp_path: Path) -> None:
    with serving(tmp_path):
        status, headers, body = answered(tmp_path)
    assert (status, body) == (200, DATA)
    assert (headers["etag"], headers["content-length"]) == (f'"{DIGEST}"', str(len(DATA)))


def test_the_socket_is_for_our_own_user_alone_and_goes_with_its_server(tmp_path: Path) -> None:
    (tmp_path / "files.sock").write_text("left by a dead one")
    with serving(tmp_path):
        assert stat.S_IMODE((tmp_path / "files.sock").stat().st_mode) == 0o600
    assert not (tmp_path / "files.sock").exists()


@pytest.mark.parametrize(
    ("asked_for", "expected"),
    [
        ("bytes=0-99", (0, 100)),
        ("bytes=299990-", (299_990, 300_000)),
        ("bytes=-5", (299_995, 300_000)),
        ("bytes=10-999999999", (10, 300_000)),
        ("bytes=0-299999", (0, 300_000)),
    ],
)
def test_a_range_comes_as_a_part(tmp_path: Path, asked_for: str, expected: tuple[int, int]) -> None:
    with serving(tmp_path):
        status, headers, body = answered(tmp_path, range=asked_for, if_range=f'"{DIGEST}"')
    start, end = expected
    assert (status, body) == (206, DATA[start:end])
    assert headers["content-range"] == f"bytes {start}-{end - 1}/{len(DATA)}"


@pytest.mark.parametrize(
    "headers",
    [{"range": "bytes=0-99", "if_range": '"another"'}, {"range": "lines=1-2"}, {"range": "bytes=0-1,5-6"}],
    ids=["of another content", "of another unit", "several"],
)
def test_a_range_that_is_not_meant_brings_the_whole_file(tmp_path: Path, headers: dict[str, str]) -> None:
    with serving(tmp_path):
        assert answered(tmp_path, **headers)[::2] == (200, DATA)


def test_a_range_past_the_end_is_refused_with_the_size(tmp_path: Path) -> None:
    with serving(tmp_path):
        status, headers, _ = answered(tmp_path, range="bytes=300000-")
    assert (status, headers["content-range"]) == (416, "bytes */300000")


def test_a_look_has_a_head_and_no_body(tmp_path: Path) -> None:
    with serving(tmp_path):
        status, headers, body = answered(tmp_path, method="HEAD")
    assert (status, headers["content-length"], body) == (200, str(len(DATA)), b"")


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/", "GET", 404),
        ("/slice/files/", "GET", 404),
        (f"/slice/files/{'0' * 64}", "GET", 404),
        (f"/slice/files/{DIGEST.upper()}", "GET", 404),
        (f"/slice/files/{DIGEST}.facts.json", "GET", 404),
        (f"/slice/files/../{DIGEST}", "GET", 404),
        (f"/slice/files/{DIGEST}?x=1", "GET", 404),
        (f"/slice/files/{DIGEST}", "POST", 405),
        (f"/slice/files/{DIGEST}", "DELETE", 405),
    ],
)
def test_nothing_else_is_there(tmp_path: Path, path: str, method: str, status: int) -> None:
    with serving(tmp_path):
        got, _, body = answered(tmp_path, path, method)
    assert (got, body) == (status, b"")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01 not http\r\n\r\n",
        b"GET /slice/files/x\r\n\r\n",
        b"GET " + b"/" * 20_000 + b" HTTP/1.1\r\n\r\n",
        f"GET {asked.PATH}{DIGEST} HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello".encode(),
        f"GET {asked.PATH}{DIGEST} HTTP/1.1\r\nbroken header\r\n\r\n".encode(),
    ],
    ids=["no http", "no version", "too long", "with a body", "broken header"],
)
def test_what_is_no_request_is_refused(tmp_path: Path, sent: bytes) -> None:
    with serving(tmp_path), dialled(tmp_path) as line:
        line.sendall(sent)
        try:
            assert line.recv(100).startswith(b"HTTP/1.1 400 ")
        except ConnectionResetError:  # it was closed over bytes that nobody read
            assert len(sent) > asked.HEAD_BYTES or b"content-length" in sent
        assert answered(tmp_path)[0] == 200, "and the server goes on"


def test_a_name_that_leads_out_of_the_store_is_not_followed(tmp_path: Path) -> None:
    digest = "1" * 64
    with serving(tmp_path):
        (tmp_path / "secret").write_bytes(b"secret")
        link = FileStore(tmp_path / "store").path_of(Sha256(digest))
        link.parent.mkdir(parents=True)
        link.symlink_to(tmp_path / "secret")
        assert answered(tmp_path, f"{asked.PATH}{digest}")[0] == 404


def test_more_than_so_many_at_once_are_told_to_come_again(tmp_path: Path) -> None:
    with serving(tmp_path, connections=2, bytes_per_s=1_000_000):
        held = [dialled(tmp_path) for _ in range(2)]
        for line in held:  # begun, and kept by the pace
            line.sendall(f"GET {asked.PATH}{DIGEST} HTTP/1.1\r\n\r\n".encode())
            assert line.recv(20)
        status, headers, _ = answered(tmp_path)
        assert (status, headers["retry-after"]) == (503, "1")
        for line in held:
            line.close()
        until(lambda: answered(tmp_path)[0] == 200)


def test_the_bandwidth_is_kept_by_all_together(tmp_path: Path) -> None:
    with serving(tmp_path, bytes_per_s=1_000_000):
        since, bodies = time.monotonic(), list[bytes]()
        threads = [threading.Thread(target=lambda: bodies.append(answered(tmp_path)[2])) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - since
    assert bodies == [DATA, DATA]
    assert 0.35 < took < 3.0, "600 kB at 1 MB/s, of which a tenth of a second may go at once"


def test_the_end_does_not_wait_for_a_peer_that_takes_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, bytes_per_s=10_000) as server, dialled(tmp_path) as line:
        line.sendall(f"GET {asked.PATH}{DIGEST} HTTP/1.1\r\n\r\n".encode())
        assert line.recv(20)
        since = time.monotonic()
        server.stop()
        assert time.monotonic() - since < 2.0


@given(st.integers(1, 10**9), st.lists(st.tuples(st.floats(0, 0.05), st.integers(1, 10**7)), max_size=30))
def test_no_more_than_the_rate_ever_leaves(rate: int, sends: list[tuple[float, int]]) -> None:
    now = 100.0
    pace, begun, total = Pace(rate, lambda: now), now, 0
    for pause, count in sends:
        now += pause
        leaves_at = now + pace.take(count)
        # What was sent before this chunk has had its time, but for the tenth of a second that may be saved up.
        assert total <= rate * (leaves_at - begun + 0.1) * 1.000001
        total += count


@given(st.binary(max_size=300))
def test_any_head_is_an_ask_or_a_refusal(head: bytes) -> None:
    found = asked.ask_of(head)
    assert isinstance(found, Refusal) or found.digest


@given(st.integers(1, 1000), st.text("bytes=0123456789-, ", max_size=20))
def test_a_part_lies_within_the_file(size: int, text: str) -> None:
    part = asked.part_of(Ask(digest=DIGEST, is_head=False, range_text=text), size)
    assert part is None or 0 <= part[0] < part[1] <= size
