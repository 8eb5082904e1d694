-- Settled days: their totals as they were, what corrected them later, and clicks that are paid each.

-- The days before `days_through` are settled.
ALTER TABLE settling ADD COLUMN days_through timestamptz NOT NULL DEFAULT '-infinity';

-- Days of the programme as they were settled, in the time zone that it had then: one begins where the last one ended.
-- Version 1 has all totals of a day, each later one those that a correction changed, as they are since.
CREATE TABLE settled_day (
    day        date PRIMARY KEY,
    starts_at  timestamptz NOT NULL,
    ends_at    timestamptz NOT NULL CHECK (ends_at > starts_at)
);
CREATE INDEX settled_day_starts_at ON settled_day (starts_at);
CREATE TABLE settled_version (
    day         date NOT NULL REFERENCES settled_day,
    version     int NOT NULL,
    settled_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (day, version)
);
CREATE TABLE settled_total (
    day             date NOT NULL,
    partner_id      int NOT NULL,
    offer_id        int NOT NULL,
    currency        text NOT NULL,  -- '' of clicks, which have none; they stand in a row of their own
    version         int NOT NULL,
    clicks          bigint NOT NULL,
    invalid_clicks  bigint NOT NULL,
    unique_clicks   bigint NOT NULL,
    conversions     bigint NOT NULL,
    pending         bigint NOT NULL,
    rejected        bigint NOT NULL,
    reversed        bigint NOT NULL,
    sale_amount_minor      numeric NOT NULL,
    revenue_minor          numeric NOT NULL,
    payout_minor           numeric NOT NULL,
    payout_pending_minor   numeric NOT NULL,
    payout_reversed_minor  numeric NOT NULL,
    PRIMARY KEY (day, partner_id, offer_id, currency, version),
    FOREIGN KEY (day, version) REFERENCES settled_version
);
CREATE INDEX settled_total_partner ON settled_total (partner_id, day);
CREATE INDEX settled_total_corrected ON settled_total (offer_id, day) WHERE version > 1;

-- Quarter hours of settled days of which something changed since, a row for each batch that changed some (as
-- `stale_quarter`, of clicks): their days are compared with what was settled. Also where days were passed over, for what
-- was being written to them then; the time is that of marking, however long ago the transaction began.
CREATE TABLE stale_day (
    quarter    timestamptz NOT NULL,
    marked_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX stale_day_quarter ON stale_day (quarter);
CREATE INDEX stale_day_marked_at ON stale_day (marked_at);

-- Terms that pay each click which is unique and valid, when its day is settled; a click is for no event.
ALTER TABLE offer_terms
    DROP CONSTRAINT offer_terms_model_check,
    DROP CONSTRAINT offer_terms_check,
    ADD CONSTRAINT offer_terms_model_check CHECK (model IN ('cpa', 'cpl', 'cps') OR model = 'cpc' AND event IS NULL
                                                  OR model = 'none' AND num_nulls(partner_id, event) < 2),
    ADD CONSTRAINT offer_terms_check CHECK ((model IN ('cpa', 'cpc', 'cpl')) = (amount_minor IS NOT NULL));
CREATE INDEX offer_terms_cpc ON offer_terms (offer_id) WHERE model = 'cpc';

-- The clicks of a settled day that were paid, and what the ledger has of them.
CREATE TABLE paid_clicks (
    day           date NOT NULL REFERENCES settled_day,
    partner_id    int NOT NULL,
    offer_id      int NOT NULL,
    side          text NOT NULL CHECK (side IN ('payout', 'revenue')),
    currency      char(3) NOT NULL,
    clicks        bigint NOT NULL,
    amount_minor  bigint NOT NULL,
    PRIMARY KEY (day, partner_id, offer_id, side, currency)
);
CREATE INDEX paid_clicks_partner ON paid_clicks (partner_id, day);
ALTER TABLE ledger_entry
    ADD COLUMN day date,  -- of paid clicks: the day they were made, and whose they are
    ADD COLUMN partner_id int,
    DROP CONSTRAINT ledger_entry_kind_check,
    ADD CONSTRAINT ledger_entry_kind_check
        CHECK (kind IN ('accrual', 'reversal', 'refund', 'chargeback', 'change', 'adjustment', 'clicks'));

-- What edges have counted is held against the rows of the same hours.
CREATE INDEX edge_counter_hour ON edge_counter (hour);
