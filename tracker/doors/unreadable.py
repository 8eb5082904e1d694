"""What is no HTTP never reaches a door, and what crashes never leaves one: both are answered here, in the shape of all
our errors, echoing nothing."""

from aiohttp import web

from schemas.errors import Refused

_UNREADABLE = Refused("bad_request", "this is no HTTP request that can be read")
_CRASHED = Refused("internal", "something went wrong on our side")


class _Connection(web.RequestHandler):
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
    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class DoorsRunner(web.AppRunner):
    """Serves an application, unreadable requests included."""

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            **made._kwargs,  # noqa: SLF001
        )
