"""Every name in Redis. Values can all be rebuilt from Postgres."""

PROGRAMME = "programme"  # JSON, schemas.links.Programme
COMPLETE = "links:complete"  # marker: the set of link configs is whole; lives 5 s, renewed by the publisher
SEQUENCE = "links:sequence"  # counts the changes published
CHANGES = "links:changes"  # channel: "<sequence> <key>" for a change, "<sequence> " for a beat
STATE = "links:state"  # hash: who filled this Redis: system id, timeline, epoch, run id

EDGES = "edges:registered"  # hash: incarnation -> JSON {edge, at_ms} of edges that the log could not hear of yet


def link(code: str, host: str = "") -> str:
    """`host` is that of a domain with codes of its own; there is no slash in a code."""
    return f"link:{host}/{code}" if host else f"link:{code}"


def offer(offer_id: int) -> str:
    return f"offer:{offer_id}"


def partner(partner_id: int) -> str:
    return f"partner:{partner_id}"


def offer_reference(name: str) -> str:
    """What a published link calls an offer."""
    return f"offer_ref:{name}"


def partner_reference(name: str) -> str:
    return f"partner_ref:{name}"


def advertiser(token_sha256_hex: str) -> str:
    return f"advertiser:{token_sha256_hex}"


def advertiser_by_id(advertiser_id: int) -> str:
    """The same config, for whoever comes without its token: by a click's offer, or from a page."""
    return f"advertiser_id:{advertiser_id}"


def pixel(pixel_key: str) -> str:
    """Whose pixel this was when it was published; whose it is, the advertiser's own `pixel_key` says."""
    return f"pixel:{pixel_key}"


def rate(api_key_id: int) -> str:
    """Calls of a key in its minute, which the value does not outlive."""
    return f"rate:{api_key_id}"


def remembered(kind: str, digest: str) -> str:
    """An answer that was expensive to make, until it expires; `digest` of its question."""
    return f"remembered:{kind}:{digest}"


def live(quarter_s: int) -> str:
    """Hash of one quarter hour: field `link:<id>` or `partner:<id>` -> recorded clicks. A display value."""
    return f"live:{quarter_s}"


def cap(cap_id: int, begins_s: int) -> str:
    """Hash of a cap's use in the period that begins then: `counted` by all edges, `settled` by Postgres. Neither is
    ever more than the clicks there were."""
    return f"cap:{cap_id}:{begins_s}"


def cap_batch(edge: str) -> str:
    """Number of the latest batch of an edge that was counted against caps."""
    return f"cap_batch:{edge}"


def settler(token: str) -> str:
    """There while what this settler has written to the hashes of caps still is in Redis."""
    return f"settler:{token}"
