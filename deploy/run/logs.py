"""Logging of every process: JSON lines on stderr, ours and our libraries'."""

import logging
import os
import sys

import orjson
import structlog
from structlog.typing import Processor

_COMMON: list[Processor] = [
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]


def log_json_lines(process: str, level: int = logging.INFO) -> None:
    """From now on every event is one JSON line that names the process; `level` is the least that is shown of ours."""
    structlog.contextvars.bind_contextvars(process=process, pid=os.getpid())
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, *_COMMON, _json],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _json_text],
            foreign_pre_chain=[structlog.contextvars.merge_contextvars, *_COMMON],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    silence_kafka()


def silence_kafka() -> None:
    """Its client repeats itself ten times a second while a broker is away; what matters we say ourselves, once."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


_json = structlog.processors.JSONRenderer(serializer=lambda event, **_: orjson.dumps(event, default=str))
_json_text = structlog.processors.JSONRenderer(serializer=lambda event, **_: orjson.dumps(event, default=str).decode())
