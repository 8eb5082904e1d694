"""What the consumer counts about itself."""

from prometheus_client import Counter, Gauge, Histogram, Summary

APPLIED = Counter("clickdam_applied_events", "Events applied, copies left out", ["kind"])
DEAD = Counter("clickdam_dead_letters", "Records put aside because they cannot be applied")
FENCED = Counter("clickdam_fenced_batches", "Batches dropped because another consumer had applied them")
DROPPED = Counter("clickdam_dropped_batches", "Batches dropped and read again, by error", ["error"])
BATCH_SECONDS = Histogram("clickdam_batch_seconds", "Time to apply one batch")
STAGE_SECONDS = Summary(
    "clickdam_batch_stage_seconds", "Time one batch takes in a stage; the next is read and decoded meanwhile", ["stage"]
)
UNREAD_ROWS = Gauge("clickdam_unread_rows", "Rows of the segment being read that are not applied", ["partition"])
UNREAD_SEGMENTS = Gauge("clickdam_unread_segments", "Segments behind the one being read", ["partition"])
UNREADABLE = Gauge("clickdam_unreadable_segments", "Segments that cannot be read; each holds its slot back")

COMPLETE_THROUGH = Gauge(
    "clickdam_complete_through_timestamp_seconds", "Everything received before this time is applied; 0 if not known"
)
SILENT_EDGES = Gauge("clickdam_silent_edges", "Edges that have not closed and of which no beat was applied for 30 s")

LAG = Gauge("clickdam_log_lag", "Records of a Kafka partition that are not applied", ["topic", "partition"])
STOPPED = Gauge("clickdam_stopped_partition", "1 for a partition that waits for an operator", ["topic", "partition"])
ASSIGNED = Gauge("clickdam_assigned_partitions", "Partitions of Kafka that this consumer reads or would read")
REBALANCES = Counter("clickdam_rebalances", "Times that Kafka's group has assigned partitions to this consumer")
REBUILDS = Counter("clickdam_consumer_rebuilds", "Consumers given up and built again, by reason", ["reason"])
COMPANY_UNKNOWN = Counter(
    "clickdam_registrations_unknown", "Batches of beats that advance nothing: Redis did not say which edges have begun"
)
