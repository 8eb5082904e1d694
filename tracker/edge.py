"""All that a request on the edge may use, in one object."""

import asyncio
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

from schemas import limits
from schemas.click_id import ClickKeys
from tracker.clock import EdgeClock
from tracker.counters import LiveCounters
from tracker.links import LinkCache
from tracker.log.recorder import Log, Recorder
from tracker.proxies import Networks
from tracker.qr_codes import QrCodes, qr_codes
from tracker.senders import Rates
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
    lane_postbacks: int = 0
    qr_codes: QrCodes = field(default_factory=qr_codes)
    judging: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)  # many conversions of one body
    rates: Rates = field(default_factory=Rates)
    _taken: "OrderedDict[Hashable, None]" = field(default_factory=OrderedDict, repr=False)

    @property
    def ready(self) -> bool:
        return self.warm and not self.draining

    def has_taken(self, conversion: Hashable) -> bool:
        """Whether this was said of an order before; it is from now on. A bounded hint: call once it is in the log."""
        if conversion in self._taken:
            return True
        self._taken[conversion] = None
        if len(self._taken) > limits.DUPLICATE_HINTS_MAX:
            self._taken.popitem(last=False)
        return False
