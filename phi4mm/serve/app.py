"""The app: every router, and what stands around them all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from phi4mm import __version__
from phi4mm.serve import errors
from phi4mm.serve.auth import KeyCheck
from phi4mm.serve.metrics import Metrics
from phi4mm.serve.middleware import QUIET, BodyLimit, RequestContext
from phi4mm.serve.openai import chat, completions, models, realtime, responses, transcriptions
from phi4mm.serve.options import ServeOptions
from phi4mm.serve.origins import OriginCheck, is_local
from phi4mm.serve.routes import adapters, health, page, tokenize
from phi4mm.serve.service import Service

ROUTERS = (
    chat.router,
    completions.router,
    responses.router,
    realtime.router,
    transcriptions.router,
    models.router,
    adapters.router,
    tokenize.router,
    health.router,
)


def make_app(service: Service) -> FastAPI:
    """An ASGI app over a service, which is closed with it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="phi4mm",
        version=__version__,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        # Spans and metrics go to OpenTelemetry's providers where there are any; its logs would hold what clients sent.
        telemetry={"logs": False, "operation_spans": False, "exclude": lambda scope: scope.get("path") in QUIET},
        lifespan=lifespan,
        middleware=around(service.options, service.metrics),
    )
    app.state.service = service
    errors.install(app)
    for router in ROUTERS:
        app.include_router(router)
    if service.options.page:
        app.include_router(page.router)
    return app


def around(options: ServeOptions, metrics: Metrics) -> list[Middleware]:
    """What stands around the endpoints, from the outermost."""
    security = options.security
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=security.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        ),
        Middleware(RequestContext, metrics=metrics),
        Middleware(OriginCheck, allowed=security.cors_origins, local=is_local(options)),
        Middleware(KeyCheck, security=security),
        Middleware(BodyLimit, limits=options.limits),
    ]
