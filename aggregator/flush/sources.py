"""What has to become of positions when the log is not, or no longer, the one they speak of. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from aggregator.flush.batch import EARLIEST, Change, Position, Positions, digest
from schemas import kafka


class Held(NamedTuple):
    """What a broker has of a partition: its offsets from `earliest` to `end - 1`."""

    earliest: int
    end: int


def beginnings(topic: str, topic_id: str, partitions: Iterable[int], positions: Positions) -> list[Change]:
    """Positions for the partitions that have none. A topic that was never consumed begins with what there is, and so
    does a partition that was added to one; one that was made again stands still until an operator has seen it, because
    what had not been read of the former one is lost."""
    source = kafka.source(topic, topic_id)
    missing = [partition for partition in partitions if (source, partition) not in positions]
    known = {known for known, _ in positions if known.startswith(kafka.source(topic, ""))} if missing else set()
    stopped = None
    if known and source not in known:
        former = ", ".join(sorted(one.rpartition("@")[2] for one in known))
        stopped = f"topic {topic} was recreated: its id is {topic_id}, and was {former}"
    return [Change(source, partition, None, EARLIEST, stopped) for partition in missing]


def change_of(source: str, partition: int, position: Position, held: Held) -> Change | None:
    """What has to become of a position, None when its partition can be read on from it."""
    if position.stopped is not None:
        return None
    if position.next == EARLIEST:
        return Change(source, partition, EARLIEST, held.earliest)
    if position.next < held.earliest:
        reason = f"offsets {position.next} to {held.earliest - 1} are gone unread: the retention has overtaken"
        return stop(source, partition, position, reason)
    if position.next > held.end:
        reason = f"the log ends at offset {held.end}, though everything before {position.next} was applied"
        return stop(source, partition, position, reason)
    return None


def changed_before(source: str, partition: int, position: Position, record: bytes | None) -> Change | None:
    """Stops a partition whose `record` at `next - 1`, if it is there, is not the one that was applied from there: an
    election of a replica that lay behind, or a broker restored from a copy."""
    if record is None or position.last_digest is None or digest(record) == position.last_digest:
        return None
    reason = f"the record at offset {position.next - 1} is not the one that was applied from there"
    return stop(source, partition, position, reason)


def stop(source: str, partition: int, position: Position, reason: str) -> Change:
    """Stand still there until an operator has seen why."""
    return Change(source, partition, position.next, position.next, reason)
