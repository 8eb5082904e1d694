"""Which of several landings a visitor sees: weighted rendezvous hashing, with no state and no look-up table.

D. Thaler and C. Ravishankar, "Using name-based mappings to increase hit rates" (1998), with the weights of
C. Schindelhauer and G. Schomaker, "Weighted distributed hash tables" (SPAA 2005): each landing draws h, uniform in
(0, 1), from the hash of visitor and landing; the greatest -weight / ln(h) wins. So shares are as the weights, one
visitor always gets the same, and a changed weight or a new landing moves only the visitors whose share it is.
"""

from collections.abc import Sequence
from hashlib import blake2b
from math import log

from schemas.links import Landing

_ONE = 2.0**52  # a float holds 53 bits exactly: these, and the half that keeps h off 0 and 1


def choose(landings: Sequence[Landing], visitor: str) -> str:
    """The URL that this visitor sees, of at least one. Their order means nothing; one that is there twice has both its
    shares.

    A visitor's hash has a new key each day of the programme (`visitor.visitor_hash`): the choice is sticky for a day.
    """
    weights: dict[str, int] = {}
    for landing in landings:
        weights[landing.url] = weights.get(landing.url, 0) + landing.weight
    if len(weights) == 1:
        return landings[0].url
    return max(weights, key=lambda url: -weights[url] / log(_uniform(visitor, url)))


def _uniform(visitor: str, url: str) -> float:
    digest = blake2b(f"{visitor}\n{url}".encode(), digest_size=8).digest()
    return ((int.from_bytes(digest) >> 12) + 0.5) / _ONE
