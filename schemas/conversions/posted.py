"""One conversion as it was sent."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Posted(msgspec.Struct, frozen=True):
    """What a sender said, in our words, values unread: empty where it said nothing. An amount is a major-unit decimal
    (`amount`) or an integer (`amount_minor`), never both. `status` is one of ours, `original_status` as it was sent."""

    click_id: str = ""
    order_id: str = ""
    amount: str = ""
    amount_minor: int | None = None
    currency: str = ""
    event: str = ""
    event_time: str = ""
    event_id: str = ""
    status: str = ""
    original_status: str = ""
    revenue: str = ""
    revenue_minor: int | None = None
    payout: str = ""
    payout_minor: int | None = None
    refund_amount: str = ""
    refund_amount_minor: int | None = None
    remaining_amount: str = ""
    remaining_amount_minor: int | None = None
    customer_id: str = ""
    coupon_code: str = ""
    adv: Mapping[str, str] = {}
