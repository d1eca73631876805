"""One HTTPS (or, near by, HTTP) GET to an engine that is not ours, and nothing but its status.

Called by `node_agent.runtimes.external`. The name is resolved once, every address is judged by `core.origins`, and the
connection goes to a judged address: a name that changes its mind leads nowhere. Certificates are checked against the
system's authorities (SSL_CERT_FILE adds others). Redirects are told, not followed.
"""

import asyncio
import contextlib
import ipaddress
import socket
import ssl

from core.origins import Origin, address_fault
from node_agent.probe import ProbeError, status_from

_TLS_WORDS = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate cannot be trusted",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
}


class RemoteProbe:
    """Probes remote engines; the TLS context is made at the first that needs one."""

    def __init__(self) -> None:
        self._context: ssl.SSLContext | None = None

    async def status_of(self, origin: Origin, path: str, key: str, timeout_s: float) -> int:
        """Return the status with which `path` below `origin` answers within `timeout_s` seconds.

        Raises:
            ProbeError: no address that may be asked, no connection, a certificate that is not trusted, or no HTTP.
        """
        until = asyncio.get_running_loop().time() + timeout_s
        try:
            async with asyncio.timeout_at(until):
                return await self._get(origin, path, key, until)
        except TimeoutError:
            raise ProbeError(f"no answer within {timeout_s:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise ProbeError(f"its certificate cannot be trusted: {error.verify_message}") from None
        except ssl.SSLError as error:
            raise ProbeError(_TLS_WORDS.get(error.reason or "", "the TLS handshake failed")) from None
        except socket.gaierror:
            raise ProbeError(f"the name {origin.host} cannot be resolved") from None
        except UnicodeError:
            raise ProbeError(f"{origin.host} is no name of a host") from None
        except OSError as error:
            raise ProbeError(error.strerror or "the connection failed") from None

    async def _get(self, origin: Origin, path: str, key: str, until: float) -> int:
        reader, writer = await self._connected(origin, until)
        try:
            lines = [
                f"GET {origin.prefix}{path} HTTP/1.1",
                f"Host: {origin.authority}",
                "Accept: application/json",
                "Connection: close",
                *([f"Authorization: Bearer {key}"] if key else []),
            ]
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
            await writer.drain()
            return await status_from(reader)
        finally:
            # Not waited for: a peer that never answers our farewell must not hold the next probe.
            writer.transport.abort()

    async def _connected(self, origin: Origin, until: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        # Each address gets its share of the time that is left: one that swallows everything leaves some to the next.
        loop = asyncio.get_running_loop()
        context = await self._tls() if origin.is_tls else None
        name = origin.host if origin.is_tls else None
        addresses = await _judged(origin)
        for tried, address in enumerate(addresses[:-1]):
            share_s = (until - loop.time()) / (len(addresses) - tried)
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(share_s):
                    return await asyncio.open_connection(address, origin.port, ssl=context, server_hostname=name)
        return await asyncio.open_connection(addresses[-1], origin.port, ssl=context, server_hostname=name)

    async def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = await asyncio.to_thread(ssl.create_default_context)
        return self._context


async def _judged(origin: Origin) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
    places = [str(place[0]) for _, _, _, _, place in found]
    faults = [address_fault(ipaddress.ip_address(place.split("%")[0]), is_tls=origin.is_tls) for place in places]
    allowed = [place for place, fault in zip(places, faults, strict=True) if not fault]
    if not allowed:
        raise ProbeError(f"{origin.host} {faults[0] if faults else 'has no address'}")
    return allowed
