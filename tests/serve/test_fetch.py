"""Remote media: refused by default, and never from a network that is not public."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import openai
import pytest

from phi4mm.api import Phi4MM
from phi4mm.serve.errors import ApiError
from phi4mm.serve.fetch import Fetcher, is_public
from phi4mm.serve.options import FetchOptions, Security, ServeOptions
from tests.serve.conftest import SAMPLES, running

PUBLIC = "93.184.215.14"
PICTURE = (SAMPLES / "shapes.png").read_bytes()


class Web:
    """A network of names and answers, on one local server.

    Attributes:
        connections: address, port and TLS name of each connection.
        requests: the heads of all requests.
    """

    def __init__(self, names: dict[str, list[Sequence[str]]], pages: dict[str, bytes]) -> None:
        self._names = names
        self._pages = pages
        self.connections: list[tuple[str, int, str | None]] = []
        self.requests: list[str] = []

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        answers = self._names[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    async def connect(
        self, address: str, port: int, server_name: str | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.connections.append((address, port, server_name))
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        return await asyncio.open_connection(*server.sockets[0].getsockname())

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.requests.append(head)
        writer.write(self._pages[head.split()[1]])
        await writer.drain()
        writer.close()

    def fetcher(self, domains: Sequence[str] = (), **options: float) -> Fetcher:
        return Fetcher(FetchOptions(**options), domains, resolve=self.resolve, connect=self.connect)  # type: ignore[arg-type]

    def fetch(self, url: str, domains: Sequence[str] = (), **options: float) -> bytes:
        return asyncio.run(self.fetcher(domains, **options).fetch(url, "image_url"))


def page(content: bytes, head: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {head}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


def redirect(url: str) -> bytes:
    return page(b"", f"302 Found\r\nLocation: {url}")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1",
        "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::", "2001:db8::1", "not an address",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)
    web = Web({"a.example": [[address]], "b.example": [[PUBLIC, address]]}, {"/": page(b"")})
    for host in ("a.example", "b.example"):
        with pytest.raises(ApiError, match="not on the public internet"):
            web.fetch(f"http://{host}/")
    assert web.connections == []


def test_addresses_that_are_public() -> None:
    assert all(map(is_public, (PUBLIC, "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:93.184.215.14")))


def test_a_file_comes_from_the_address_that_was_checked() -> None:
    web = Web({"a.example": [[PUBLIC], ["127.0.0.1"]]}, {"/x%20y?q=1": page(b"content")})
    assert web.fetch("https://A.example/x y?q=1#part") == b"content"
    assert web.connections == [(PUBLIC, 443, "a.example")]
    assert "host: a.example\r\n" in web.requests[0].lower()
    # The same name again: it resolves differently now, and is refused.
    with pytest.raises(ApiError, match="not on the public internet"):
        web.fetch("https://a.example/x y?q=1")


def test_redirects_are_checked_anew() -> None:
    names: dict[str, list[Sequence[str]]] = {"a.example": [[PUBLIC]], "inner.example": [["192.168.0.1"]]}
    pages = {
        "/": redirect("/next"),
        "/next": redirect("//a.example:8080/file"),
        "/file": page(b"content"),
        "/inner": redirect("http://inner.example/"),
        "/local": redirect("file:///etc/passwd"),
        "/loop": redirect("/loop"),
        "/missing": page(b"", "404 Not Found"),
    }
    web = Web(names, pages)
    assert web.fetch("http://a.example/") == b"content"
    assert [port for _, port, _ in web.connections] == [80, 80, 8080]
    for path, words in (
        ("/inner", "not on the public internet"),
        ("/local", "expected a URL of http or https"),
        ("/loop", "redirected more than 3 times"),
        ("/missing", "answers 404"),
    ):
        with pytest.raises(ApiError, match=words):
            web.fetch(f"http://a.example{path}")


def test_bounds_and_domains() -> None:
    names: dict[str, list[Sequence[str]]] = {host: [[PUBLIC]] for host in ("a.example", "b.a.example", "evila.example")}
    silent = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5000
    web = Web(names, {"/": page(b"x" * 5000), "/silent": silent, "/broken": b"no http at all\r\n\r\n", "/late": b""})
    with pytest.raises(ApiError, match="over 4999 bytes"):
        web.fetch("http://a.example/", max_bytes=4999)
    with pytest.raises(ApiError, match="over 100 bytes"):
        web.fetch("http://a.example/silent", max_bytes=100)
    with pytest.raises(ApiError, match="cannot be fetched"):
        web.fetch("http://a.example/broken")
    assert len(web.fetch("http://b.a.example/", ["a.example"])) == 5000
    with pytest.raises(ApiError, match="domain"):
        web.fetch("http://evila.example/", ["a.example"])
    for url in ("ftp://a.example/", "http://user@a.example/", "http:///", "http://[::1", "javascript:1", "/x"):
        with pytest.raises(ApiError, match="URL"):
            web.fetch(url)


def test_a_server_that_is_slow_is_given_up() -> None:
    class Slow(Web):
        async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
            await asyncio.sleep(1)
            writer.close()

    with pytest.raises(ApiError, match=r"no file in 0\.1 s"):
        Slow({"a.example": [[PUBLIC]]}, {}).fetch("http://a.example/", seconds=0.1)


def test_chat_with_urls(bundled: Phi4MM) -> None:
    web = Web({"a.example": [[PUBLIC]], "inner.example": [["10.0.0.1"]]}, {"/a.png": page(PICTURE)})

    def ask(client: openai.OpenAI, url: str) -> str | None:
        part = {"type": "image_url", "image_url": {"url": url}}
        content = [{"type": "text", "text": "What is this?"}, part]
        reply = client.chat.completions.create(model="phi4mm", messages=[{"role": "user", "content": content}])  # type: ignore[list-item,misc]
        return reply.choices[0].message.content

    with running(bundled, ServeOptions(security=Security(allow_urls=True)), fetcher=web.fetcher()) as server:
        expected = bundled.chat("What is this?", images=[PICTURE]).text
        assert ask(server.client(), "http://a.example/a.png") == expected
        with pytest.raises(openai.PermissionDeniedError, match="not on the public internet"):
            ask(server.client(), "http://inner.example/a.png")
