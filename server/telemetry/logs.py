"""Logs, as lines for people or as JSON for machines; one line for every request when it is over.

Neither prompts nor answers are ever logged.
"""

from __future__ import annotations

import importlib
import json
import logging
import logging.config
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

from server.http.paths import OPEN_PATHS
from server.telemetry.record import SHOWN_SEQUENCES, Record

LogFormat = Literal["text", "json"]

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
log = logging.getLogger("server.requests")


def set_up_log(level: str, log_format: LogFormat) -> None:
    """Send all logs of this process to stderr in one format."""
    formatter = {"()": JsonFormatter} if log_format == "json" else {"format": LINE}
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": formatter},
            "filters": {"probes": {"()": lambda: _not_a_probe}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["probes"]}},
            "root": {"level": level.upper(), "handlers": ["stderr"]},
            # Each line of these says something about a library, not about a request.
            "loggers": {name: {"level": "WARNING"} for name in QUIET},
        }
    )
    logging.captureWarnings(True)
    for name in ("transformers", "huggingface_hub"):  # each writes to stderr by itself, in a format of its own
        importlib.import_module(name)
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True


QUIET = ("httpx", "httpx2", "httpcore", "httpcore2", "urllib3", "filelock")
LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """One object per line: time, level, logger, message, and what else is known."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (current := request_id.get()) is not None:
            line["request_id"] = current
        if record.name == "uvicorn.access" and isinstance(record.args, tuple):
            client, method, target, _, status = record.args
            path = str(target).partition("?")[0]
            line |= {"message": f"{method} {path}: {status}", "client": client, "method": method, "path": path}
            line["status"] = status
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_request(record: Record) -> None:
    """Log a finished request if it generated something or failed."""
    if record.model is None and (record.status is None or record.status < 400):
        return  # uvicorn's own line says all there is
    if record.model is None:
        log.info("%s %s: %s", record.method, record.path or "(unrouted)", record.status, extra=_fields(record))
        return
    log.info(
        "%s: %s, %d prompt + %d generated tokens in %.3f s, first after %s",
        record.model,
        record.outcome,
        record.prompt_tokens,
        record.generated_tokens,
        record.ended - record.arrived,
        "none" if record.first_token is None else f"{record.first_token - record.arrived:.3f} s",
        extra=_fields(record),
    )


def _fields(record: Record) -> dict[str, dict[str, Any]]:
    """The fields of a request's line in JSON."""
    fields: dict[str, Any] = {
        "request_id": record.id,
        "client": record.client,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "seconds": round(record.ended - record.arrived, 6),
        "key": record.key and record.key[:12],
    }
    if record.model is not None:
        started = [s.account for s in record.sequences if s.account is not None and s.account.started is not None]
        fields |= {
            "model": record.model,
            "outcome": record.outcome,
            "sequences": [sequence.number for sequence in record.sequences[:SHOWN_SEQUENCES]],
            "finish_reasons": [sequence.finish for sequence in record.sequences[:SHOWN_SEQUENCES]],
            "prompt_tokens": record.prompt_tokens,
            "generated_tokens": record.generated_tokens,
            "first_token_seconds": record.first_token and round(record.first_token - record.arrived, 6),
            "queue_seconds": max((round(a.started - a.submitted, 6) for a in started if a.started), default=None),
        }
    if record.error is not None:
        fields["error"] = type(record.error).__name__
    return {"fields": {name: value for name, value in fields.items() if value is not None}}


def _not_a_probe(record: logging.LogRecord) -> bool:
    """Drop uvicorn's lines for requests of load balancers and Prometheus, which come every few seconds."""
    arguments = record.args
    if record.name != "uvicorn.access" or not isinstance(arguments, tuple):
        return True
    return str(arguments[2]).partition("?")[0] not in OPEN_PATHS
