"""An edge's metrics, read from its parts when they are scraped: nothing is counted twice on the request path."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tracker.clock import wall_ms
from tracker.edge import Edge
from tracker.log.ladder import Ladder


class _EdgeCollector(Collector):
    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def collect(self) -> Iterator[Metric]:
        edge = self._edge
        outcomes = CounterMetricFamily("clickdam_edge_outcomes", "Requests by their one outcome.", labels=["outcome"])
        for outcome, n in edge.tally.totals.items():
            outcomes.add_metric([outcome], n)
        yield outcomes
        yield CounterMetricFamily("clickdam_edge_fast_lane_clicks", "Of all clicks.", value=edge.lane_clicks)
        yield CounterMetricFamily("clickdam_edge_fast_lane_postbacks", "Of all postbacks.", value=edge.lane_postbacks)
        yield CounterMetricFamily("clickdam_edge_batches", "Group commits written.", value=edge.recorder.batches)
        yield CounterMetricFamily(
            "clickdam_edge_write_seconds", "Time spent in group commits.", value=edge.recorder.write_seconds
        )
        yield GaugeMetricFamily("clickdam_edge_queued_events", "Not yet durable.", value=edge.recorder.queued_events)
        yield CounterMetricFamily("clickdam_edge_live_counts_dropped", "Display counts.", value=edge.counters.dropped)
        yield GaugeMetricFamily("clickdam_edge_cached_configs", "Held in L1.", value=len(edge.links.tier))
        yield CounterMetricFamily("clickdam_edge_redis_fetches", "Reads of L2.", value=edge.links.tier.fetches)
        yield CounterMetricFamily("clickdam_edge_stale_answers", "Redis away.", value=edge.links.tier.stale_answers)
        yield GaugeMetricFamily(
            "clickdam_edge_invalidation_stream_healthy", "0 while broken.", value=int(edge.links.stream_healthy)
        )
        if isinstance(edge.log, Ladder):
            yield from _ladder(edge.log, wall_ms())
        yield GaugeMetricFamily("clickdam_edge_ready", "As /ready says.", value=int(edge.ready))


def _ladder(ladder: Ladder, now_ms: int) -> Iterator[Metric]:
    spool = ladder.spool
    oldest_ms = spool.oldest_of_all_ms()
    age_s = 0.0 if oldest_ms is None else max(0, now_ms - oldest_ms) / 1000
    yield GaugeMetricFamily("clickdam_edge_spool_bytes", "On this machine's disk.", value=spool.size_bytes)
    yield GaugeMetricFamily("clickdam_edge_spool_bytes_max", "Beyond it events are lost.", value=spool.bytes_max)
    yield GaugeMetricFamily("clickdam_edge_spool_oldest_age_seconds", "Of what is not sent yet.", value=age_s)
    yield CounterMetricFamily("clickdam_edge_drained_events", "From the spool to Kafka.", value=spool.drained_events)
    yield CounterMetricFamily(
        "clickdam_edge_refused_too_large", "Refusals of an event by Kafka, for its size.", value=spool.refused_events
    )
    yield GaugeMetricFamily(
        "clickdam_edge_circuit_open", "1 while events go to the spool at once.", value=int(not ladder.is_closed)
    )
    yield CounterMetricFamily(
        "clickdam_edge_producer_rebuilds", "Producers begun after the first.", value=max(0, ladder.builds - 1)
    )


def prometheus(edge: Edge) -> bytes:
    """The metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_EdgeCollector(edge))
    return generate_latest(registry)
