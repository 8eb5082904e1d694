"""Is the process alive, and should a balancer send it requests?"""

from aiohttp import web

from aggregator.api.calling import Api, answer


async def live(api: Api, request: web.Request) -> web.Response:
    return answer({"live": True})


async def ready(api: Api, request: web.Request) -> web.Response:
    """False only while cold or draining: a dead dependency takes no process out of service."""
    return answer({"ready": api.ready}, 200 if api.ready else 503)
