"""The law of accounting: every request at a click door ends in exactly one outcome, with a reason from a closed list.

`received = recorded + spooled + late + lost + uncounted + refused(reason)`; a recorded click has a class.
"""

from enum import IntEnum, StrEnum


class ClickClass(IntEnum):
    """What a click is worth, carried (masked) inside its id. The numbers are on the wire: never reuse one."""

    NORMAL = 0
    FLAGGED = 1  # a known robot: kept and shown, its conversions are pending
    OVER_CAP = 2
    FALLBACK = 3  # sent somewhere else than its offer; never earns
    TEST = 4
    UNCOUNTED = 5  # HEAD and no_track=1: an id that nothing was logged for


EARNING = frozenset({ClickClass.NORMAL, ClickClass.FLAGGED, ClickClass.OVER_CAP})
INVALID = frozenset({ClickClass.FLAGGED, ClickClass.OVER_CAP, ClickClass.FALLBACK})


class Reason(StrEnum):
    """Why a click is not an ordinary click. Stored with it, counted by it."""

    NONE = ""
    KNOWN_BOT = "known_bot"
    NO_USER_AGENT = "no_user_agent"
    UNKNOWN_LINK = "unknown_link"
    LINK_PAUSED = "link_paused"
    OFFER_PAUSED = "offer_paused"
    PARTNER_BLOCKED = "partner_blocked"
    NOT_STARTED = "not_started"  # the link or its offer begins later
    EXPIRED = "expired"
    NOT_APPROVED = "not_approved"  # the offer is not open to all, and not to this partner
    BLOCKED_SOURCE = "blocked_source"  # this source_id or sub1 is not wanted
    OFF_TARGET_COUNTRY = "off_target_country"
    OFF_TARGET_DEVICE = "off_target_device"
    OFF_TARGET_OS = "off_target_os"
    OFF_TARGET_BROWSER = "off_target_browser"
    OFF_TARGET_LANGUAGE = "off_target_language"
    OFF_HOURS = "off_hours"  # the offer is not open at this time of the week
    OVER_CAP = "over_cap"
    BAD_REQUEST = "bad_request"
    NOT_READY = "not_ready"


class Outcome(StrEnum):
    """How a request at a click door ended; refusals are counted as `refused_<reason>`."""

    RECORDED = "recorded"
    SPOOLED = "spooled"  # on this machine's disk, on its way to a log that could not take it in time
    LATE = "late"  # answered at the deadline, the write was still under way
    LOST = "lost"  # answered, but the write failed or the queue was full
    UNCOUNTED = "uncounted"


# Counted by an edge in its last word of all: one that has not was killed, and may have taken more than it counted.
CLOSED = "closed"


def late(outcome: Outcome) -> str:
    """The counter, by hour alone, of what was answered `late` and then had this outcome."""
    return f"{Outcome.LATE}_{outcome}"


def refused(reason: Reason) -> str:
    """The counter of requests that were answered with a 4xx or 503 for this reason."""
    return f"refused_{reason.value}"


class Result(StrEnum):
    """What became of an intake. A receipt says accepted, duplicate or rejected; the intake log also the others."""

    ACCEPTED = "accepted"
    CHANGED = "changed"  # it changed an order that was here
    DUPLICATE = "duplicate"
    WAITING = "waiting"  # it changes an order that is not known yet
    REJECTED = "rejected"
    TEST = "test"


class Status(StrEnum):
    """The states of a conversion."""

    APPROVED = "approved"
    PENDING = "pending"
    REJECTED = "rejected"
    REVERSED = "reversed"


class Held(StrEnum):
    """Why a conversion is pending, or was rejected: the closed list of `reason` on a conversion. What a door refuses is
    in schemas/errors.py."""

    NONE = ""
    # pending
    DEFAULT = "awaits_approval"  # the offer's conversions are looked at first
    SAID_PENDING = "said_pending"  # by the sender
    PIXEL = "pixel"  # anybody can read a page's source
    FLAGGED_CLICK = "flagged_click"
    OVER_CAP_CLICK = "over_cap_click"
    AMBIGUOUS_AMOUNT = "ambiguous_amount"
    AMOUNT_MISSING = "amount_missing"
    ABOVE_BOUND = "above_bound"
    PAYOUT_ABOVE_BOUND = "payout_above_bound"
    ABSURD_PAYOUT = "absurd_payout"
    NO_TERMS = "no_terms"
    NO_RATE = "no_rate"
    UNKNOWN_CLICK = "unknown_click"  # parked until it is
    OVER_CAP = "over_cap"
    # rejected
    NOT_YOUR_CLICK = "not_your_click"
    CLICK_NEVER_EARNS = "click_never_earns"
    BEFORE_CLICK = "before_click"
    TOO_EARLY = "too_early"
    AFTER_WINDOW = "after_window"
    UNKNOWN_COUPON = "unknown_coupon"
    COUPON_NOT_VALID = "coupon_not_valid"  # at that time
    AFTER_DURATION = "after_duration"  # the customer is nobody's any more
    NEGATIVE_AMOUNT = "negative_amount"
    REVERSED_BEFORE_APPROVAL = "reversed_before_approval"
    SAID_REJECTED = "said_rejected"


class NoChange(StrEnum):
    """Why an intake changed nothing about an order that is known: beside those of `Held`, the `reason` of an intake."""

    NOT_ALLOWED = "not_allowed"  # the order has gone on from where this could be said
    EVENT_ID_MISSING = "event_id_missing"  # a retry of this refund would refund twice
    CURRENCY_DIFFERS = "currency_differs"  # from that of the order
