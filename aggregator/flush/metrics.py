"""What the consumer counts about itself."""

from prometheus_client import Counter, Gauge, Histogram

APPLIED = Counter("clickdam_applied_events", "Events applied, copies left out", ["kind"])
DEAD = Counter("clickdam_dead_letters", "Records put aside because they cannot be applied")
FENCED = Counter("clickdam_fenced_batches", "Batches dropped because another consumer had applied them")
DROPPED = Counter("clickdam_dropped_batches", "Batches dropped and read again, by error", ["error"])
BATCH_SECONDS = Histogram("clickdam_batch_seconds", "Time to apply one batch")
UNREAD_ROWS = Gauge("clickdam_unread_rows", "Rows of the segment being read that are not applied", ["partition"])
UNREAD_SEGMENTS = Gauge("clickdam_unread_segments", "Segments behind the one being read", ["partition"])
UNREADABLE = Gauge("clickdam_unreadable_segments", "Segments that cannot be read; each holds its slot back")
