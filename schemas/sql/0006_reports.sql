-- Reports: how far clicks are settled, their uniques and details, and the times that lists go by.

-- Every quarter hour before `through` is settled: its clicks were all there when its uniques and details were counted.
CREATE TABLE settling (
    id       int PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    through  timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO settling DEFAULT VALUES;

-- `recorded`: rows of `click` of every class when it was settled; `reported`: what `click_rollup` said of it then. If it
-- says more later, clicks came that no one marked; `checked`: that was looked at.
CREATE TABLE settled_quarter (
    quarter     timestamptz PRIMARY KEY,
    recorded    bigint NOT NULL,
    reported    bigint NOT NULL,
    settled_at  timestamptz NOT NULL DEFAULT now(),
    checked     boolean NOT NULL DEFAULT false
);
CREATE INDEX settled_quarter_at ON settled_quarter (settled_at);
CREATE INDEX settled_quarter_unchecked ON settled_quarter (settled_at) WHERE NOT checked;

-- Settled quarter hours for which clicks have come since, a row for each batch that had some: they are settled anew.
-- Not one row for each quarter hour, because batches would wait for each other, and for the settling, to have put it in.
CREATE TABLE stale_quarter (quarter timestamptz NOT NULL);
CREATE INDEX stale_quarter_quarter ON stale_quarter (quarter);

-- The first valid click of a visitor for an offer and a partner on a day of the programme: the unique one. `visitor` is
-- the click's 16 hex digits as a number.
CREATE TABLE first_click (
    day         date NOT NULL,
    partner_id  int NOT NULL,
    offer_id    int NOT NULL,
    visitor     bigint NOT NULL,
    click_id    uuid NOT NULL,
    PRIMARY KEY (day, partner_id, offer_id, visitor)
);

ALTER TABLE click_rollup ADD COLUMN unique_clicks bigint NOT NULL DEFAULT 0;

-- Clicks by one more of their fields: `name` is os, browser, source_id or sub1 to sub10. Of the values of one partner,
-- name and quarter hour those beyond the limit are one row, whose value is `(other)`.
CREATE TABLE detail_rollup (
    partner_id      int NOT NULL,
    name            text NOT NULL,
    quarter         timestamptz NOT NULL,
    offer_id        int NOT NULL,
    value           text NOT NULL,
    clicks          bigint NOT NULL,
    invalid_clicks  bigint NOT NULL,
    unique_clicks   bigint NOT NULL,
    PRIMARY KEY (partner_id, name, quarter, offer_id, value)
);
CREATE INDEX detail_rollup_quarter ON detail_rollup (quarter, name);

CREATE INDEX ledger_entry_at ON ledger_entry (at, id);

-- When the click of a conversion was made; its own time where no click says whose it is.
ALTER TABLE conversion ADD COLUMN clicked_at timestamptz
    GENERATED ALWAYS AS (coalesce(uuid_extract_timestamp(click_id), event_at)) STORED;
CREATE INDEX conversion_partner ON conversion (partner_id, event_at);
CREATE INDEX conversion_partner_changed ON conversion (partner_id, changed_at);
CREATE INDEX conversion_partner_clicked ON conversion (partner_id, clicked_at);
CREATE INDEX conversion_clicked ON conversion (clicked_at);
CREATE INDEX conversion_event ON conversion (event_at);
CREATE INDEX conversion_advertiser_event ON conversion (advertiser_id, event_at);
CREATE INDEX conversion_advertiser_changed ON conversion (advertiser_id, changed_at);

-- A partner's and an offer's own clicks, the latest first.
CREATE INDEX click_partner ON click (partner_id, id);
