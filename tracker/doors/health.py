"""Is the process alive, and should a balancer send it requests?"""

from aiohttp import web

from tracker.edge import Edge


async def live(request: web.Request, edge: Edge) -> web.Response:
    return web.json_response({"live": True})


async def ready(request: web.Request, edge: Edge) -> web.Response:
    """False only while cold or draining: a dead dependency takes no edge out of service."""
    return web.json_response({"ready": edge.ready}, status=200 if edge.ready else 503)
