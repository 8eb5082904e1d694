"""What the publisher tells about itself."""

from prometheus_client import Counter, Gauge

OUTBOX_ENTRIES = Gauge("clickdam_outbox_entries", "Changes on their way to Redis, counted up to 100,000")
OUTBOX_AGE = Gauge("clickdam_outbox_oldest_age_seconds", "Age of the oldest change on its way to Redis")
VALUES_WRITTEN = Counter("clickdam_published_values", "Values written to Redis that were new to it")
UNREADABLE_ROWS = Counter("clickdam_unreadable_rows", "Times that a row of Postgres could not be published as it is")
REFILLS = Counter("clickdam_refills", "Times that Redis was filled anew, by whether it was whole then", ["whole"])
REFILL_SECONDS = Gauge("clickdam_refill_seconds", "How long the last refill took")
REFILLING = Gauge("clickdam_refilling_values", "Values that the refill under way has looked at; 0 without one")
EPOCH = Gauge("clickdam_epoch", "The epoch of what is published; it rises when Postgres was restored")
VOUCHED = Gauge("clickdam_vouched_timestamp_seconds", "When Redis was last said to be what Postgres says")
REDIS_MAY_EVICT = Gauge(
    "clickdam_redis_may_evict", "1 while the eviction policy is not noeviction: unknown codes are then answered 503"
)
