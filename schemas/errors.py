"""One table from error code to HTTP status. No handler picks a status by hand."""

from typing import Any

_CALLS = {
    "bad_request": 400,
    "bad_value": 400,
    "bad_json": 400,
    "bad_cursor": 400,
    "missing_field": 400,
    "unknown_field": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "too_slow": 408,
    "conflict": 409,
    "not_approved": 409,
    "over_cap": 409,
    "precondition_failed": 412,
    "too_large": 413,
    "too_long": 414,
    "unsupported_media_type": 415,
    "idempotency_key_reused": 422,
    "too_many_requests": 429,
    "internal": 500,
    "unavailable": 503,
    "too_heavy": 503,
}
# Of a conversion door: the reason on a `rejected` receipt. docs/postbacks.md has the same list.
REJECTIONS = {
    "bad_parameters": 400,
    "missing_click_id": 400,
    "bad_click_id": 400,
    "forged_click_id": 400,
    "retired_key": 400,
    "click_never_earns": 400,
    "bad_amount": 400,
    "negative_amount": 400,
    "absurd_amount": 400,
    "unknown_currency": 400,
    "bad_order_id": 400,
    "bad_event": 400,
    "bad_event_time": 400,
    "bad_event_id": 400,
    "bad_customer_id": 400,
    "bad_coupon_code": 400,
    "missing_order_id": 400,
    "event_id_missing": 400,
    "missing_currency": 400,
    "unsupported_parameter": 400,
    "unknown_status": 400,
    "ignored_status": 200,  # as its sender asked
    "missing_token": 401,
    "wrong_token": 401,
    "wrong_signature": 401,
    "wrong_network": 403,
    "wrong_origin": 403,
    "not_your_click": 403,
    "not_from_a_page": 403,
    "unknown_key": 503,
    "not_durable": 503,
}
STATUS = _CALLS | REJECTIONS

RETRY_AFTER_S = 2
_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": str(RETRY_AFTER_S)}}


class Refused(Exception):
    """A request we will not carry out: a code of `STATUS`, a sentence for a person, the field if one is to blame, when
    to come again if that is known."""

    def __init__(
        self, code: str, message: str = "", field: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message or code)
        self.code = code
        self.status = STATUS[code]
        self.message = message or code.replace("_", " ")
        self.field = field
        self.headers: dict[str, str] = (
            _HEADERS.get(self.status, {}) if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        )

    def body(self) -> dict[str, Any]:
        error = {"code": self.code, "message": self.message}
        return {"error": error | ({"field": self.field} if self.field else {})}
