"""``/tokenize``: the tokens of a text, or of a conversation with the chat template (vLLM's endpoint)."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse, Response

from phi4mm.serve.errors import bad_request
from phi4mm.serve.openai.chat import planned
from phi4mm.serve.openai.messages import Message, check_text, read_messages
from phi4mm.serve.service import service_of

router = APIRouter(tags=["tokens"])


class TokenizeBody(BaseModel):
    """``prompt`` or ``messages``."""

    model_config = ConfigDict(strict=True, extra="ignore")
    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    return_token_strs: bool = False


@router.post("/tokenize")
async def tokenize(request: HttpRequest) -> Response:
    """``{"count", "max_model_len", "tokens"}``, and ``token_strs`` if asked for."""
    service = service_of(request)
    with service.admission.enter() as ticket:
        body = await service.read_json(request, TokenizeBody, ticket)
        service.resolve(body.model)
        tokenizer = service.model.processor.tokenizer
        if body.messages is not None:
            conversation = read_messages(body.messages, service.limits)
            prepared = await service.in_thread(await planned(service, conversation, {}))
            tokens = list(prepared.row.token_ids)
        elif body.prompt is not None:
            text = body.prompt
            check_text([text], service.limits, "prompt")
            tokens = await service.in_thread(lambda: tokenizer.encode(text))
        else:
            raise bad_request("expected prompt or messages", "prompt")
    found = {"count": len(tokens), "max_model_len": service.model.model.config.decoder.max_positions, "tokens": tokens}
    if body.return_token_strs:
        found["token_strs"] = [tokenizer.token_bytes(token_id).decode("utf-8", "replace") for token_id in tokens]
    return JSONResponse(found)
