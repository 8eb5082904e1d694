"""All that a request on the edge may use, in one object."""

from collections import OrderedDict
from dataclasses import dataclass, field
from uuid import UUID

from schemas import limits
from schemas.click_id import ClickKeys
from tracker.clock import EdgeClock
from tracker.counters import LiveCounters
from tracker.links import LinkCache
from tracker.log.recorder import Log, Recorder
from tracker.proxies import Networks
from tracker.qr_codes import QrCodes, qr_codes
from tracker.steps import Known
from tracker.tally import Tally


@dataclass(slots=True)
class Edge:
    """The parts of an open edge. `warm` and `draining` decide `/ready`."""

    keys: ClickKeys
    known: Known = field(repr=False)
    clock: EdgeClock
    links: LinkCache
    log: Log
    recorder: Recorder
    counters: LiveCounters
    tally: Tally
    trusted_proxies: Networks = frozenset()
    warm: bool = False
    draining: bool = False
    lane_clicks: int = 0  # answered by the fast lane
    qr_codes: QrCodes = field(default_factory=qr_codes)
    durable_conversions: "OrderedDict[UUID, None]" = field(default_factory=OrderedDict)

    @property
    def ready(self) -> bool:
        return self.warm and not self.draining

    def remember_durable(self, conversion_id: UUID) -> None:
        """Keep a bounded hint that this order is already in the log."""
        self.durable_conversions[conversion_id] = None
        if len(self.durable_conversions) > limits.DUPLICATE_HINTS_MAX:
            self.durable_conversions.popitem(last=False)
