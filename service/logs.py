"""Logs of all processes: lines of JSON where nobody sits before them, plain text on a terminal.

A line has `time`, `level`, `logger` and `event`, and of `tenant`, `job`, `request_id`, `attempt`,
`token` (the fencing one), `model_digest` and `trace_id` those that are known. What clients give is
never logged: no prompts, addresses or keys. The message of an exception may quote them, so in JSON
an exception is its type and where it came from; what a job failed of stands in its record. Should a
library's message bring an API key's secret or the password in an address, they are blotted out.
"""

import copy
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import structlog
from structlog.processors import JSONRenderer
from structlog.typing import EventDict, Processor

from service.refs import id_of, tenant_of
from service.traces import trace_id

PLAIN = "%(asctime)s %(name)s %(message)s"
BLOTS = (
    (re.compile(r"(trp_[0-9A-Za-z]{12})_[0-9A-Za-z]{43}"), r"\1_…"),
    (re.compile(r"(://)[^/@\s\"]*@"), r"\1…@"),
)
FIELDS = (
    "attempt",
    "job",
    "method",
    "model_digest",
    "ms",
    "request_id",
    "route",
    "status",
    "tenant",
    "token",
    "trace_id",
)


def _traced(logger: object, name: str, line: EventDict) -> EventDict:
    found = trace_id()
    return {**line, "trace_id": found} if found else line


CONTEXT: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.ExtraAdder(allow=FIELDS),  # Celery's hold an exception's words
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    _traced,
)
# Theirs name clients' addresses and query strings; service.app tells of requests in its own way.
SILENCED = ("uvicorn.access",)
OTHERS = ("uvicorn", "uvicorn.error")


def set_up(stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Let every logger of this process write to `stream` (stderr) in our form. Once for a process,
    where it starts; called again, it replaces what it did before."""
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Plain(PLAIN) if stream.isatty() else _Json())
    handler.set_name("troupe")
    root = logging.getLogger()
    root.handlers = [one for one in root.handlers if one.get_name() != "troupe"] + [handler]
    root.setLevel(level)
    for name in OTHERS:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    for name in SILENCED:
        logging.getLogger(name).disabled = True


@contextmanager
def about(ref: str, **fields: object) -> Iterator[None]:
    """Within it this thread's lines name the job."""
    with structlog.contextvars.bound_contextvars(**named(ref), **fields):
        yield


def named(ref: str) -> dict[str, str]:
    """A job as lines name it; as `extra` of one line."""
    return {"tenant": tenant_of(ref), "job": id_of(ref)}


def blotted(text: str) -> str:
    """Without secrets."""
    for pattern, instead in BLOTS:
        text = pattern.sub(instead, text)
    return text


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return blotted(super().format(record))


class _Json(structlog.stdlib.ProcessorFormatter):
    def __init__(self) -> None:
        render = (self.remove_processors_meta, _frames, JSONRenderer(ensure_ascii=False))
        super().__init__(processors=render, foreign_pre_chain=CONTEXT)

    def format(self, record: logging.LogRecord) -> str:
        if record.name.startswith("celery") and record.exc_info:
            record = copy.copy(record)
            record.args = ()  # it quotes the exception in the text, too
        return blotted(super().format(record))


def _frames(logger: object, name: str, line: EventDict) -> EventDict:
    """The exception without its message, and those that it came of."""
    given = line.pop("exc_info", None)
    chain: list[dict[str, object]] = []
    error = given[1] if isinstance(given, tuple) else given
    while isinstance(error, BaseException) and len(chain) < 10:  # they may go in a circle
        frames = traceback.extract_tb(error.__traceback__)
        places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        chain.append({"type": type(error).__name__, "frames": places})
        error = error.__cause__ or error.__context__
    return {**line, "exceptions": chain} if chain else line
