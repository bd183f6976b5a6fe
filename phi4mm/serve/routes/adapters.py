"""Load and unload LoRA adapters while the server runs (vLLM's endpoints)."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from phi4mm.errors import AdapterError
from phi4mm.serve.errors import ApiError, bad_request
from phi4mm.serve.service import service_of

router = APIRouter(tags=["adapters"])
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$"  # names stand in URLs, logs and metrics


class LoadRequest(BaseModel):
    """``lora_path`` is a folder under the server's root for adapters, relative to it or absolute."""

    model_config = ConfigDict(strict=True)
    lora_name: str = Field(pattern=_NAME)
    lora_path: str = Field(min_length=1, max_length=4096)


class UnloadRequest(BaseModel):
    model_config = ConfigDict(strict=True)
    lora_name: str = Field(min_length=1, max_length=128)


@router.post("/v1/load_lora_adapter")
async def load(request: Request) -> Response:
    """Load an adapter from a folder; it is in use with the next request that names it, and after a restart."""
    service = service_of(request)
    with service.admission.enter() as ticket:
        asked = await service.read_json(request, LoadRequest, ticket)
        if asked.lora_name in {*service.options.names, "auto", "none"}:
            raise bad_request(f"{asked.lora_name!r} is the model's own name", "lora_name")
        if asked.lora_name in service.adapters.names:
            raise bad_request(f"adapter {asked.lora_name!r} is loaded already; unload it first", "lora_name")
        await asyncio.to_thread(service.adapters.load, asked.lora_name, asked.lora_path)
    return JSONResponse({"status": "loaded", "lora_name": asked.lora_name})


@router.post("/v1/unload_lora_adapter")
async def unload(request: Request) -> Response:
    """Unload an adapter that was loaded by request, once the requests that use it have ended."""
    service = service_of(request)
    with service.admission.enter() as ticket:
        asked = await service.read_json(request, UnloadRequest, ticket)
        try:
            await asyncio.to_thread(service.adapters.unload, asked.lora_name)  # it may wait for long
        except AdapterError as error:
            raise ApiError(404, str(error), param="lora_name", code="adapter_not_found") from error
    return JSONResponse({"status": "unloaded", "lora_name": asked.lora_name})
