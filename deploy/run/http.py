"""Plain requests to our own doors, for a parent that runs no event loop."""

from __future__ import annotations

import json
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from deploy.run.children import CannotStart

_opener = build_opener(ProxyHandler({}))  # a proxy of the environment does not lead to this machine
ANSWER_S = 10.0


def answers(url: str) -> bool:
    """Whether a GET is answered with 200 within a second."""
    try:
        with _opener.open(url, timeout=1.0) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def post(url: str, key: str, body: dict[str, Any]) -> dict[str, Any]:
    """POST JSON with an API key; the answer's JSON. Raises CannotStart."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = Request(url, data=json.dumps(body).encode(), headers=headers, method="POST")  # noqa: S310
    try:
        with _opener.open(request, timeout=ANSWER_S) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except HTTPError as error:
        raise CannotStart(f"{url} answered {error.code}: {error.read().decode(errors='replace')}") from None
    except OSError as error:
        raise CannotStart(f"{url} does not answer: {error}") from None
