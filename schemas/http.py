"""How both sides serve HTTP: with every limit said, in our error shape also for what is no HTTP, and with log lines of
our own, because aiohttp's carry the visitor's raw ip."""

import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import structlog
from aiohttp import web
from aiohttp.http import HttpProcessingError

from schemas import limits
from schemas.errors import Refused

log = structlog.get_logger()
_UNREADABLE = Refused("bad_request", "this is no HTTP request that can be read")
_CRASHED = Refused("internal", "something went wrong on our side")


@contextlib.asynccontextmanager
async def serving(
    app: web.Application, sock: socket.socket, connection: Callable[..., "Connection"] | None = None
) -> AsyncIterator[None]:
    """The application on a listening socket, `connection` made for each that comes (a Connection where none is named);
    on leaving, requests in flight are finished."""
    runner = _Runner(
        app,
        connection or Connection,
        access_log=None,
        logger=HttpLog(),
        handler_cancellation=False,
        keepalive_timeout=limits.KEEPALIVE_S,
        max_line_size=limits.LINE_BYTES_MAX,
        max_field_size=limits.HEADER_BYTES_MAX,
        shutdown_timeout=limits.SHUTDOWN_S,
    )
    await runner.setup()
    await web.SockSite(runner, sock, backlog=limits.BACKLOG).start()
    try:
        yield
    finally:
        await runner.cleanup()


class HttpLog:
    """Stands where aiohttp expects a logger."""

    def exception(self, message: str, *args: Any, exc_info: BaseException | None = None, **_: Any) -> None:
        """A request that crashed its handler, or one that cannot be read: of those the internet is full."""
        if isinstance(exc_info, HttpProcessingError | web.RequestPayloadError):
            log.debug("request_unreadable", error=type(exc_info).__name__)
        else:
            log.error("request_crashed", exc_info=exc_info)

    def debug(self, message: str, *args: Any, **_: Any) -> None:
        log.debug("http", message=message)

    warning = error = info = debug


class Connection(web.RequestHandler):
    """What is no HTTP reaches no door, and what crashes leaves none: both are answered here, echoing nothing."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        super().handle_error(request, status, exc, message)  # logs, and raises where an answer has already begun
        error = _UNREADABLE if status < 500 else _CRASHED
        response = web.json_response(error.body(), status=error.status, headers={"Connection": "close"})
        response.force_close()
        return response


class _Server(web.Server):
    connection: Callable[..., Connection]

    def __call__(self) -> web.RequestHandler:
        return self.connection(self, loop=self._loop, **self._kwargs)


class _Runner(web.AppRunner):
    def __init__(self, app: web.Application, connection: Callable[..., Connection], **options: Any) -> None:
        super().__init__(app, **options)
        self._connection = connection

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        server = _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            **made._kwargs,  # noqa: SLF001
        )
        server.connection = self._connection
        return server
