"""Plain requests to our own doors, for a parent that runs no event loop."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from deploy.run.children import CannotStart
from deploy.run.folder import description

ANSWER_S = 10.0
_LONG_ANSWER_S = 120.0  # a batch of an import that waits for others, a page of an export
_RETRY_MAX_S = 30.0
_PRINTABLE = re.compile("[!-~]*")


class _Staying(HTTPRedirectHandler):
    """Follows nobody elsewhere: a POST would become a GET, and the key go to whoever is named."""

    def redirect_request(self, *_: Any) -> None:
        return None


_opener = build_opener(ProxyHandler({}), _Staying())  # a proxy of the environment does not lead to this machine


class Place(NamedTuple):
    """Where the API is, and whose key opens it."""

    api_url: str
    key: str


class Answered(NamedTuple):
    """An answer of the API, whatever it says."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def why(self) -> str:
        """What a refusal says."""
        error = self.told.get("error")
        message = error.get("message") if isinstance(error, dict) else None
        return str(message or f"the API answered {self.status}")

    @property
    def told(self) -> dict[str, Any]:
        """The JSON object; an empty one where there is none."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def place(api_url: str | None, data: Path) -> Place:
    """The API that is named, else that of the `clickdam up` on a data folder, whose key goes nowhere else. Raises
    CannotStart."""
    key = os.environ.get("CLICKDAM_API_KEY", "").strip()  # out of a file it ends in a line end
    if not _PRINTABLE.fullmatch(key):
        raise CannotStart("CLICKDAM_API_KEY is no key: it has characters that none has")
    if api_url and key:
        return Place(_checked(api_url), key)
    if api_url:
        raise CannotStart("CLICKDAM_API_KEY is not set: it holds an admin's key for this API")
    told = description(data)
    return Place(told["api_url"], key or told["admin_key"])


def _checked(api_url: str) -> str:
    """Raises CannotStart for what is no URL: it would be tried for minutes."""
    try:
        parts = urlsplit(api_url)
        is_one = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        is_one = False
    if not is_one or not _PRINTABLE.fullmatch(api_url):
        raise CannotStart(f"{api_url!a} is no URL of an API, such as https://api.example.com")
    return api_url.rstrip("/")


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


def get(url: str, key: str) -> dict[str, Any]:
    """GET JSON with an API key. Raises CannotStart that says what the API says."""
    with fetching(url, key, "application/json") as answer:
        try:
            found: dict[str, Any] = json.load(answer)
        except ValueError:
            raise CannotStart(f"{url} answers, but not as the API does") from None
    return found


def patient(url: str, key: str, body: bytes, headers: Mapping[str, str], patience_s: float) -> Answered:
    """POST, once more while the API is away, busy or asks to wait. Raises CannotStart when it stays so."""
    gives_up, pause_s = time.monotonic() + patience_s, 0.5
    while True:
        try:
            answered = _post(url, key, body, headers)
            if answered.status != 429 and answered.status < 500:
                return answered
            why = answered.why
            pause_s = max(pause_s, _retry_after_s(answered))
        except (OSError, HTTPException) as error:
            why = f"{url} does not answer: {error}"
        if time.monotonic() + pause_s > gives_up:
            raise CannotStart(why)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _RETRY_MAX_S)


def _retry_after_s(answered: Answered) -> float:
    text = answered.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else 0.0


def _post(url: str, key: str, body: bytes, headers: Mapping[str, str]) -> Answered:
    request = Request(url, data=body, headers={"Authorization": f"Bearer {key}", **headers}, method="POST")  # noqa: S310
    try:
        with _opener.open(request, timeout=_LONG_ANSWER_S) as answer:
            return Answered(answer.status, dict(answer.headers), answer.read())
    except HTTPError as refused:
        return Answered(refused.code, dict(refused.headers), refused.read())


@contextlib.contextmanager
def fetching(url: str, key: str, accepted: str) -> Iterator[HTTPResponse]:
    """GET a long answer, to be read piece by piece. Raises CannotStart, also when it breaks off."""
    request = Request(url, headers={"Authorization": f"Bearer {key}", "Accept": accepted})  # noqa: S310
    try:
        with _opener.open(request, timeout=_LONG_ANSWER_S) as answer:
            if answer.headers.get_content_type() != accepted:
                raise CannotStart(f"{url} answers, but not as the API does")
            yield answer
    except HTTPError as refused:
        raise CannotStart(f"{url}: {Answered(refused.code, dict(refused.headers), refused.read()).why}") from None
    except URLError as error:
        raise CannotStart(f"{url} does not answer: {error.reason}") from None
    except (OSError, HTTPException) as error:
        raise CannotStart(f"{url} broke off: {error}") from None
