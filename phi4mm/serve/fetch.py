"""Media from remote addresses, where the operator allows it: never from the server's own network.

A name is resolved once, every address of it must be public, and the connection goes to one of these addresses, so that
a name which resolves differently the second time gains nothing. Redirects are followed by the same rules.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

import h11

from phi4mm.serve.errors import ApiError, bad_request
from phi4mm.serve.options import FetchOptions

MOST_REDIRECTS = 3
_READ = 64 * 1024
_REDIRECTS = (301, 302, 303, 307, 308)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
Connect = Callable[[str, int, str | None], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a name."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


async def connect(
    address: str, port: int, server_name: str | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to an address, encrypted where ``server_name`` is given, whose certificate it must show."""
    context = None if server_name is None else ssl.create_default_context()
    return await asyncio.open_connection(address, port, ssl=context, server_hostname=server_name)


@dataclass(frozen=True)
class _Target:
    host: str
    port: int
    secure: bool
    header: str
    path: str


class Fetcher:
    """Fetches files by http and https.

    Args:
        options: bounds of size and time, the latter of all hops together.
        domains: the only ones to fetch from, with those below them; none: any.
        resolve, connect: replaced in tests.
    """

    def __init__(
        self,
        options: FetchOptions,
        domains: Sequence[str] = (),
        *,
        resolve: Resolve = resolve,
        connect: Connect = connect,
    ) -> None:
        self._options = options
        self._domains = tuple(domain.lower().strip(".") for domain in domains)
        self._resolve = resolve
        self._connect = connect

    async def fetch(self, url: str, param: str) -> bytes:
        """The content of a URL.

        Args:
            param: the field that has it, for errors.

        Raises:
            ApiError: it is not allowed, cannot be had, or is too large or too slow.
        """
        try:
            async with asyncio.timeout(self._options.seconds):
                for _ in range(MOST_REDIRECTS + 1):
                    status, location, content = await self._get(url, param)
                    if status == 200:
                        return content
                    if status not in _REDIRECTS or not location:
                        raise bad_request(f"{param}: the URL's server answers {status}", param)
                    url = urljoin(url, location)
        except TimeoutError as error:
            raise bad_request(f"{param}: the URL gave no file in {self._options.seconds:g} s", param) from error
        except (OSError, ssl.SSLError, h11.RemoteProtocolError, asyncio.IncompleteReadError) as error:
            raise bad_request(f"{param}: the URL cannot be fetched ({type(error).__name__})", param) from error
        raise bad_request(f"{param}: the URL is redirected more than {MOST_REDIRECTS} times", param)

    async def _get(self, url: str, param: str) -> tuple[int, str | None, bytes]:
        target = self._target(url, param)
        address = await self._address(target, param)
        reader, writer = await self._connect(address, target.port, target.host if target.secure else None)
        try:
            return await self._exchange(target, reader, writer, param)
        finally:
            writer.close()

    def _target(self, url: str, param: str) -> _Target:
        try:
            parts: SplitResult = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise bad_request(f"{param}: is not a URL", param) from error
        if parts.scheme not in ("http", "https") or not host or parts.username is not None:
            raise bad_request(f"{param}: expected a URL of http or https, without a user name", param)
        secure = parts.scheme == "https"
        try:
            name = host if ":" in host else host.rstrip(".").encode("idna").decode("ascii").lower()
        except UnicodeError as error:
            raise bad_request(f"{param}: the URL's host is not a name", param) from error
        if self._domains and not any(name == domain or name.endswith(f".{domain}") for domain in self._domains):
            raise ApiError(403, f"{param}: the URL's domain is not among those that this server allows", param=param)
        shown = f"[{name}]" if ":" in name else name
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        quoted = "".join(
            char if "!" <= char <= "~" else "".join(f"%{byte:02X}" for byte in char.encode()) for char in path
        )
        return _Target(
            name, port or (443 if secure else 80), secure, shown if port is None else f"{shown}:{port}", quoted
        )

    async def _address(self, target: _Target, param: str) -> str:
        """One of the addresses of a host, all of which must be public."""
        addresses = await self._resolve(target.host, target.port)
        if not addresses or not all(map(is_public, addresses)):
            raise ApiError(403, f"{param}: the URL's host is not on the public internet", param=param)
        return addresses[0]

    async def _exchange(
        self, target: _Target, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, param: str
    ) -> tuple[int, str | None, bytes]:
        wire = h11.Connection(h11.CLIENT)
        headers = [("Host", target.header), ("User-Agent", "phi4mm"), ("Accept-Encoding", "identity")]
        request = h11.Request(method="GET", target=target.path, headers=[*headers, ("Connection", "close")])
        writer.write((wire.send(request) or b"") + (wire.send(h11.EndOfMessage()) or b""))
        await writer.drain()
        status, location, content = 0, None, bytearray()
        while True:
            happened = wire.next_event()
            if happened is h11.NEED_DATA:
                wire.receive_data(await reader.read(_READ))
            elif isinstance(happened, h11.Response):
                status = happened.status_code
                found = [value for name, value in happened.headers if name == b"location"]
                location = found[0].decode("latin-1") if found else None
                if status != 200:
                    return status, location, b""
            elif isinstance(happened, h11.Data):
                content += happened.data
                if len(content) > self._options.max_bytes:
                    raise ApiError(413, f"{param}: the URL's file is over {self._options.max_bytes} bytes", param=param)
            elif isinstance(happened, h11.EndOfMessage | h11.ConnectionClosed):
                return status, location, bytes(content)


def is_public(address: str) -> bool:
    """Whether an address, and the IPv4 address within it if there is one, is one of the public internet."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in _NAT64:
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if any(one is not None and not is_public(str(one)) for one in inner):
            return False
    return ip.is_global and not ip.is_multicast
