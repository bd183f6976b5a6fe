"""The page at ``/``, and the files that it is made of.

The page has no build step, takes nothing from elsewhere and uses the public endpoints alone. The headers keep it so:
only its own scripts and styles run, and it connects to this server only.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, JSONResponse, Response

from phi4mm.checkpoint.source import locate
from phi4mm.serve.errors import ApiError
from phi4mm.serve.service import Service, service_of

router = APIRouter(include_in_schema=False)
FOLDER = Path(__file__).parent.parent / "page"
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; media-src 'self' blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # asked again each time, by the ETag
}
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class PageFile:
    """One of the page's files."""

    content: bytes
    media_type: str
    etag: str


@cache
def page_files() -> dict[str, PageFile]:
    """The page's files by name; a request can name no other."""
    files = {}
    for path in sorted(FOLDER.iterdir()):
        if path.suffix in _TYPES:
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            files[path.name] = PageFile(content, _TYPES[path.suffix], etag)
    return files


@router.get("/")
async def page(request: Request) -> Response:
    """The page."""
    return _response(request, page_files()["index.html"])


@router.get("/static/samples/index.json")
async def sample_list(request: Request) -> Response:
    """``{"samples": [...]}``: what ``assets/samples`` has, if it goes with the model that is served."""
    return JSONResponse({"samples": _samples(service_of(request))}, headers=HEADERS)


@router.get("/static/samples/{name}")
async def sample(request: Request, name: str) -> Response:
    """One of the bundled recordings and pictures."""
    if not any(name in (one["image"], one["audio"]) for one in _samples(service_of(request))):
        raise _missing()
    return FileResponse(locate(None).folder / "samples" / name, headers=HEADERS)


@router.get("/static/{name}")
async def static(request: Request, name: str) -> Response:
    """One of the page's files."""
    found = page_files().get(name)
    if found is None:
        raise _missing()
    return _response(request, found)


def _response(request: Request, file: PageFile) -> Response:
    headers = HEADERS | {"etag": file.etag}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)


def _samples(service: Service) -> list[dict[str, str | None]]:
    """Samples with their ``image``, ``audio`` and ``question``; none where another checkpoint is served."""
    return _bundled_samples() if service.options.model.source is None else []


@cache
def _bundled_samples() -> list[dict[str, str | None]]:
    folder = locate(None).folder / "samples"
    rows: list[dict[str, str]] = []
    for name in ("pictures.jsonl", "manifest.jsonl"):
        rows += map(json.loads, (folder / name).read_text(encoding="utf-8").splitlines())
    names = {"image": "image_filepath", "audio": "audio_filepath", "question": "question"}
    return [{ours: row.get(theirs) for ours, theirs in names.items()} for row in rows]


def _missing() -> ApiError:
    return ApiError(404, "there is no such file")
