-- The programme and who takes part in it. Every row that the edge knows has a version, bumped under its lock.

CREATE TABLE programme (
    id            int PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    timezone      text NOT NULL DEFAULT 'UTC',
    currency      char(3) NOT NULL DEFAULT 'EUR',
    fallback_url  text,
    version       bigint NOT NULL DEFAULT 1
);
INSERT INTO programme DEFAULT VALUES;

CREATE TABLE advertiser (
    id            int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name          text NOT NULL,
    token_sha256  bytea NOT NULL UNIQUE,
    status        text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'blocked')),
    version       bigint NOT NULL DEFAULT 1,
    created_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE partner (
    id            int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name          text NOT NULL,
    status        text NOT NULL DEFAULT 'active' CHECK (status IN ('pending', 'active', 'blocked')),
    version       bigint NOT NULL DEFAULT 1,
    created_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE offer (
    id               int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    advertiser_id    int NOT NULL REFERENCES advertiser,
    name             text NOT NULL,
    destination_url  text NOT NULL,
    currency         char(3) NOT NULL,
    status           text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'paused')),
    version          bigint NOT NULL DEFAULT 1,
    created_at       timestamptz NOT NULL DEFAULT now()
);

-- What an offer pays, from when on: the terms at click time apply, and changing them never changes the past.
CREATE TABLE offer_terms (
    offer_id      int NOT NULL REFERENCES offer,
    valid_from    timestamptz NOT NULL DEFAULT '-infinity',
    model         text NOT NULL CHECK (model IN ('cpa', 'cps')),
    amount_minor  bigint,
    percent       numeric(9, 6),
    currency      char(3) NOT NULL,
    PRIMARY KEY (offer_id, valid_from),
    CHECK ((model = 'cpa') = (amount_minor IS NOT NULL)),
    CHECK ((model = 'cps') = (percent IS NOT NULL))
);

CREATE TABLE link (
    id            int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    code          text NOT NULL UNIQUE,
    offer_id      int NOT NULL REFERENCES offer,
    partner_id    int NOT NULL REFERENCES partner,
    status        text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'paused')),
    version       bigint NOT NULL DEFAULT 1,
    created_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX link_partner ON link (partner_id);
CREATE INDEX link_offer ON link (offer_id);

CREATE TABLE api_key (
    id             int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    role           text NOT NULL CHECK (role IN ('admin', 'partner', 'advertiser')),
    partner_id     int REFERENCES partner,
    advertiser_id  int REFERENCES advertiser,
    key_sha256     bytea NOT NULL UNIQUE,
    last_four      text NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    CHECK ((role = 'partner') = (partner_id IS NOT NULL)),
    CHECK ((role = 'advertiser') = (advertiser_id IS NOT NULL))
);

-- What has to be written to Redis: rows are put in with the change, taken out when written. A queue of deletions,
-- because a reader with an id cursor would skip rows that commit late.
CREATE TABLE outbox (
    id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind  text NOT NULL CHECK (kind IN ('programme', 'advertiser', 'partner', 'offer', 'link')),
    row_id int NOT NULL
);

-- Who filled Redis last: a restored or upgraded Postgres raises the epoch, so that its versions win again.
CREATE TABLE publishing (
    id                 int PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    epoch              bigint NOT NULL DEFAULT 1,
    system_identifier  text NOT NULL DEFAULT '',
    timeline           int NOT NULL DEFAULT 0
);
INSERT INTO publishing DEFAULT VALUES;

-- Where the consumers are: the truth about what has been applied. `next` is the first offset not yet applied.
CREATE TABLE log_position (
    source     text NOT NULL,
    partition  int NOT NULL,
    next       bigint NOT NULL,
    PRIMARY KEY (source, partition)
);

CREATE TABLE click (
    id           uuid NOT NULL,
    link_id      int NOT NULL,
    offer_id     int NOT NULL,
    partner_id   int NOT NULL,
    click_class  smallint NOT NULL,
    reason       text,
    country      text,
    device       text,
    os           text,
    browser      text,
    visitor      text,
    ip           text,
    referer      text,
    source_id    text,
    click_ref    text,
    subs         jsonb,
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);

-- A rollup row belongs to one shard (the log's partition), so that consumers side by side do not share hot rows.
CREATE TABLE click_rollup (
    quarter         timestamptz NOT NULL,
    link_id         int NOT NULL,
    country         text NOT NULL,
    device          text NOT NULL,
    shard           int NOT NULL,
    clicks          bigint NOT NULL,
    invalid_clicks  bigint NOT NULL,
    PRIMARY KEY (quarter, link_id, country, device, shard)
);
CREATE INDEX click_rollup_link ON click_rollup (link_id, quarter);

-- Every intake removes copies of itself that retries and replays leave in the log.
CREATE TABLE conversion_intake (
    intake_id      uuid PRIMARY KEY,
    conversion_id  uuid NOT NULL,
    result         text NOT NULL CHECK (result IN ('accepted', 'duplicate'))
);
CREATE INDEX conversion_intake_order ON conversion_intake (conversion_id);

CREATE TABLE conversion (
    conversion_id      uuid PRIMARY KEY,
    intake_id          uuid NOT NULL,
    click_id           uuid NOT NULL,
    link_id            int NOT NULL,
    offer_id           int NOT NULL,
    partner_id         int NOT NULL,
    advertiser_id      int NOT NULL,
    event              text NOT NULL,
    order_id           text,
    event_at           timestamptz NOT NULL,
    received_at        timestamptz NOT NULL,
    status             text NOT NULL CHECK (status IN ('approved', 'pending', 'rejected')),
    reason             text,
    sale_amount_minor  bigint,
    sale_currency      char(3) NOT NULL,
    payout_minor       bigint,
    currency           char(3) NOT NULL
);
CREATE INDEX conversion_link ON conversion (link_id, event_at);
CREATE INDEX conversion_click ON conversion (click_id, event_at);

-- Approved conversions; sale amounts are in the payout's currency, else the conversion is pending.
CREATE TABLE conversion_rollup (
    quarter            timestamptz NOT NULL,
    link_id            int NOT NULL,
    currency           char(3) NOT NULL,
    shard              int NOT NULL,
    conversions        bigint NOT NULL,
    sale_amount_minor  bigint NOT NULL,
    payout_minor       bigint NOT NULL,
    PRIMARY KEY (quarter, link_id, currency, shard)
);
CREATE INDEX conversion_rollup_link ON conversion_rollup (link_id, quarter);

CREATE TABLE dead_letter (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source       text NOT NULL,
    partition    int NOT NULL,
    "offset"     bigint NOT NULL,
    line         int NOT NULL,
    reason       text NOT NULL,
    body         bytea NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT now()
);

-- Watermarks. An edge that is neither closed nor beating holds `complete_through` back, by name.
CREATE TABLE edge (
    incarnation    text PRIMARY KEY,
    name           text NOT NULL,
    registered_at  timestamptz NOT NULL DEFAULT now(),
    closed_at      timestamptz
);

CREATE TABLE edge_beat (
    incarnation  text NOT NULL REFERENCES edge ON DELETE CASCADE,
    at           timestamptz NOT NULL,
    complete_to  timestamptz NOT NULL,
    acked        jsonb NOT NULL,
    PRIMARY KEY (incarnation, at)
);

CREATE TABLE edge_counter (
    incarnation  text NOT NULL REFERENCES edge ON DELETE CASCADE,
    hour         timestamptz NOT NULL,
    outcome      text NOT NULL,
    count        bigint NOT NULL,
    PRIMARY KEY (incarnation, hour, outcome)
);

-- True when every offset that a beat names has been applied.
CREATE FUNCTION passed(acked jsonb) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT NOT EXISTS (
        SELECT FROM jsonb_array_elements(acked) AS entry
        LEFT JOIN log_position ON source = entry ->> 0 AND partition = (entry ->> 1)::int
        WHERE coalesce(next, 0) <= (entry ->> 2)::bigint
    )
$$;

-- How far each open edge is complete: its newest beat that the log positions have passed.
CREATE VIEW edge_complete AS
    SELECT edge.incarnation, edge.name,
           (SELECT max(complete_to) FROM edge_beat WHERE edge_beat.incarnation = edge.incarnation
             AND passed(acked)) AS complete_to
    FROM edge WHERE closed_at IS NULL;

-- Totals by link outlive the columns they are made from; partner and offer of a link never change.
CREATE VIEW complete_through AS SELECT min(coalesce(complete_to, '-infinity')) AS complete_through FROM edge_complete;
