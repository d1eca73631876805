"""Ports and the health probe, on real loopback sockets."""

import asyncio
import os
import socket

import pytest

from core.errors import Failure
from core.infra.processes import ProcessMark, mark
from node_agent import measure, probe
from node_agent.ports import HOST, Ports
from tests.node_agent import nodes


def test_a_port_somebody_listens_on_is_passed_over() -> None:
    first, last = nodes.free_ports(3)
    ports = Ports(range(first, last))
    with socket.socket() as stranger:
        stranger.bind((HOST, first))
        stranger.listen()
        assert ports.take() == first + 1
        assert ports.take() == first + 2
        with pytest.raises(Failure, match="no port"):
            ports.take()
        ports.give_back(first + 1)
        assert ports.take() == first + 1


def test_an_adopted_port_is_not_given_again_and_a_returned_one_comes_last() -> None:
    first, last = nodes.free_ports(3)
    ports = Ports(range(first, last))
    ports.claim(first + 1)
    assert ports.take() == first
    ports.give_back(first)
    assert ports.take() == first + 2
    assert ports.take() == first


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", 200),
        (b"HTTP/1.1 503 Loading\r\n\r\n", 503),
        (b"SSH-2.0-OpenSSH\r\n", "does not speak HTTP"),
        (b"", "does not speak HTTP"),
        (b"x" * 200_000, "no end"),
        (None, "no answer within"),
    ],
    ids=["ready", "loading", "not HTTP", "closed", "endless line", "silent"],
)
async def test_a_probe_tells_an_answer_from_noise(answer: bytes | None, outcome: int | str) -> None:
    release = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await release.wait()
        else:
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    port = server.sockets[0].getsockname()[1]
    try:
        if isinstance(outcome, int):
            assert await probe.status_of(HOST, port, "/health", 2) == outcome
        else:
            with pytest.raises(probe.ProbeError, match=outcome):
                await probe.status_of(HOST, port, "/health", 0.2 if answer is None else 2)
    finally:
        release.set()
        server.close()
        await server.wait_closed()


async def test_a_probe_of_nobody_fails() -> None:
    first, _ = nodes.free_ports(1)
    with pytest.raises(probe.ProbeError):
        await probe.status_of(HOST, first, "/health", 2)


def test_only_our_own_tree_counts_as_the_listener() -> None:
    me = mark(os.getpid())
    assert me is not None
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert measure.is_listener_ours(port, [me])
        assert not measure.is_listener_ours(port, [ProcessMark(pid=2**30, start_ticks=1)])
    assert measure.pss_bytes([me]) > 1_000_000
