"""What aiohttp has to say about requests, as our events: its own lines carry the visitor's raw ip."""

from typing import Any

import structlog
from aiohttp.http import HttpProcessingError
from aiohttp.web import RequestPayloadError

log = structlog.get_logger()


class HttpLog:
    """Stands where aiohttp expects a logger."""

    def exception(self, message: str, *args: Any, exc_info: BaseException | None = None, **_: Any) -> None:
        """A request that crashed its handler, or one that cannot be read: of those the internet is full."""
        if isinstance(exc_info, HttpProcessingError | RequestPayloadError):
            log.debug("request_unreadable", error=type(exc_info).__name__)
        else:
            log.error("request_crashed", exc_info=exc_info)

    def debug(self, message: str, *args: Any, **_: Any) -> None:
        log.debug("http", message=message)

    warning = error = info = debug
