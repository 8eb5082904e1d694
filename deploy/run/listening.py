"""The listening sockets, which a parent owns: a child that dies and comes back refuses nobody meanwhile."""

from __future__ import annotations

import errno
import socket

from deploy.run.children import CannotStart, free_port
from schemas import limits


def listen(host: str, port: int, count: int = 1) -> list[socket.socket]:
    """`count` sockets that listen on one address, sharing its connections evenly; port 0 is a free one.

    Raises CannotStart, also where SO_REUSEPORT alone would let a second program in on a used port.
    """
    port = port or _free_port(host)
    first = _bound(host, port, shared=False)
    if count == 1:
        return [first]
    first.close()
    return [_bound(host, port, shared=True) for _ in range(count)]


def inherited(fd: int) -> socket.socket:
    """A listening socket that the parent passed on."""
    return socket.socket(fileno=fd)


def port_of(listening: socket.socket) -> int:
    return int(listening.getsockname()[1])


def why_not(host: str, port: int, error: OSError) -> str:
    """One line about a port that cannot be listened on."""
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use: stop what listens there, or choose another port"
    return f"cannot listen on port {port} of {host}: {error.strerror or error}"


def _free_port(host: str) -> int:
    try:
        return free_port(host)
    except OSError as error:
        raise CannotStart(why_not(host, 0, error)) from None


def _bound(host: str, port: int, *, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=limits.BACKLOG, reuse_port=shared)
    except OSError as error:
        raise CannotStart(why_not(host, port, error)) from None
