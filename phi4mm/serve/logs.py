"""One line for each event, as text or JSON; never what clients sent or got."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

LOGGER = logging.getLogger("phi4mm.serve")
request_id: ContextVar[str] = ContextVar("request_id", default="")


def log(event: str, level: int = logging.INFO, *, error: BaseException | None = None, **values: Any) -> None:
    """An event with its values, those that are ``None`` left out."""
    given = {name: value for name, value in values.items() if value is not None}
    LOGGER.log(level, event, extra={"values": given, "request_id": request_id.get()}, exc_info=error)


class _Formatter(logging.Formatter):
    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        if name := getattr(record, "request_id", ""):
            fields["request_id"] = name
        fields |= getattr(record, "values", {})
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return fields


class JsonFormatter(_Formatter):
    """``{"time", "level", "event", "request_id", ...}``."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(self._fields(record), ensure_ascii=False, default=str)


class TextFormatter(_Formatter):
    """``time level event name=value ...``; a traceback follows in lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        fields = self._fields(record)
        traceback = fields.pop("traceback", None)
        start = " ".join(str(fields.pop(name)) for name in ("time", "level", "event"))
        line = " ".join([start, *(f"{name}={_quoted(value)}" for name, value in fields.items())])
        return f"{line}\n{traceback}" if traceback else line


def configure(log_format: str, level: str) -> None:
    """Let this server and uvicorn write to standard error, alike."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    for name in (LOGGER.name, "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = [handler] if name != "uvicorn.error" else []
        logger.setLevel(level.upper())
        logger.propagate = name == "uvicorn.error"


def _quoted(value: Any) -> str:
    text = str(value)
    return text if text and not set(text) & set(' \n\r\t"=') else json.dumps(text, ensure_ascii=False)
