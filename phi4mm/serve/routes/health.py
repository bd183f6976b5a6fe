"""Whether the server lives, takes requests, and what it does."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from phi4mm import __version__
from phi4mm.errors import ClosedError
from phi4mm.serve.metrics import CONTENT_TYPE
from phi4mm.serve.service import Service, service_of

router = APIRouter(tags=["operation"])


@router.get("/health")
async def health(request: Request) -> Response:
    """200 while the engine lives, else 503."""
    return _status(200 if _alive(service_of(request)) else 503)


@router.get("/ready")
async def ready(request: Request) -> Response:
    """200 while requests are taken; 503 while the server shuts down."""
    service = service_of(request)
    return _status(200 if _alive(service) and not service.admission.draining else 503)


@router.get("/version")
async def version(request: Request) -> Response:
    """The version, and what the model runs on."""
    info = service_of(request).model.device_info
    return JSONResponse({"version": __version__, "device": str(info.device), "dtype": str(info.dtype).split(".")[-1]})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """In Prometheus's text format."""
    return Response(service_of(request).metrics.render(), media_type=CONTENT_TYPE)


def _alive(service: Service) -> bool:
    try:
        service.model.stats()
    except ClosedError:
        return False
    return True


def _status(status: int) -> Response:
    return JSONResponse({"status": "ok" if status == 200 else "unavailable"}, status)
