"""``/v1/models``: the model's names, and its adapters as models of their own."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from phi4mm.serve.errors import ApiError
from phi4mm.serve.service import Service, service_of

router = APIRouter(tags=["models"])
_CREATED = int(time.time())


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """All of them."""
    return JSONResponse({"object": "list", "data": _models(service_of(request))})


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> Response:
    """One of them."""
    for one in _models(service_of(request)):
        if one["id"] == name:
            return JSONResponse(one)
    raise ApiError(404, f"the model {name!r} does not exist", param="model", code="model_not_found")


def _models(service: Service) -> list[dict[str, Any]]:
    config = service.model.model.config
    own = {
        "object": "model",
        "created": _CREATED,
        "owned_by": "phi4mm",
        "max_model_len": config.decoder.max_positions,
    }
    base = [{"id": name, **own, "parent": None} for name in service.options.names]
    return base + [{"id": name, **own, "parent": service.options.names[0]} for name in service.adapters.names]
