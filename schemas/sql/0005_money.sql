-- Conversions to the last cent: who may report them and how, what they pay, what became of each, and the ledger.

-- How an advertiser's postbacks are read and trusted. `signing_key` is what signatures are checked with; edges need it.
ALTER TABLE advertiser
    ADD COLUMN dialect                text NOT NULL DEFAULT 'clickdam',
    ADD COLUMN decimal_separator      text NOT NULL DEFAULT '' CHECK (decimal_separator IN ('', '.', ',')),
    ADD COLUMN status_map             jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN duplicates             text NOT NULL DEFAULT 'ignore'
        CHECK (duplicates IN ('ignore', 'update', 'increment', 'record_repeat')),
    ADD COLUMN attribution            text NOT NULL DEFAULT 'click' CHECK (attribution IN ('click', 'coupon')),
    ADD COLUMN networks               text[] NOT NULL DEFAULT '{}',
    ADD COLUMN signing_key            text,
    ADD COLUMN signature_required     boolean NOT NULL DEFAULT false,
    ADD COLUMN postbacks_per_minute   int NOT NULL DEFAULT 60000 CHECK (postbacks_per_minute > 0),
    ADD COLUMN pixel_key              text UNIQUE,
    ADD COLUMN pixel_origins          text[] NOT NULL DEFAULT '{}',
    ADD COLUMN foreign_clicks_until   timestamptz;

-- `scopes`: [{"valid_from": ms, "scope": ...}], what names an order, by click time; the default where it is empty.
ALTER TABLE offer
    ADD COLUMN scopes                     jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN click_window_days          int NOT NULL DEFAULT 30 CHECK (click_window_days BETWEEN 1 AND 365),
    ADD COLUMN min_conversion_s           int NOT NULL DEFAULT 0 CHECK (min_conversion_s >= 0),
    ADD COLUMN default_status             text NOT NULL DEFAULT 'approved' CHECK (default_status IN ('approved', 'pending')),
    ADD COLUMN auto_approve_days          int CHECK (auto_approve_days BETWEEN 0 AND 365),
    ADD COLUMN amount_max_minor           bigint CHECK (amount_max_minor >= 0),
    ADD COLUMN payout_override_max_minor  bigint CHECK (payout_override_max_minor >= 0),
    ADD COLUMN max_duration_months        int CHECK (max_duration_months BETWEEN 1 AND 1200);

-- What an offer pays (`payout`) and brings in (`revenue`): for all, or for one partner, one event, or both. `tiers`:
-- [{"from": n, "amount_minor"|"percent": ...}] by approved conversions of a month, settled when it is closed. `none`: from
-- then on those that are less special count again.
ALTER TABLE offer_terms
    ADD COLUMN id          int GENERATED ALWAYS AS IDENTITY,
    ADD COLUMN side        text NOT NULL DEFAULT 'payout' CHECK (side IN ('payout', 'revenue')),
    ADD COLUMN partner_id  int REFERENCES partner,
    ADD COLUMN event       text,
    ADD COLUMN tiers       jsonb,
    ADD COLUMN marginal    boolean NOT NULL DEFAULT true,
    DROP CONSTRAINT offer_terms_pkey,
    DROP CONSTRAINT offer_terms_model_check,
    DROP CONSTRAINT offer_terms_check,
    DROP CONSTRAINT offer_terms_check1,
    ADD CONSTRAINT offer_terms_model_check CHECK (model IN ('cpa', 'cpl', 'cps') OR model = 'none' AND
                                                  num_nulls(partner_id, event) < 2),
    ADD CONSTRAINT offer_terms_check CHECK ((model IN ('cpa', 'cpl')) = (amount_minor IS NOT NULL)),
    ADD CONSTRAINT offer_terms_check1 CHECK ((model = 'cps') = (percent IS NOT NULL)),
    ADD PRIMARY KEY (id),
    ADD CONSTRAINT offer_terms_key UNIQUE NULLS NOT DISTINCT (offer_id, side, partner_id, event, valid_from);

-- How much of one currency another one was on a day (UTC): 1 `currency` is `rate` `in_currency`.
CREATE TABLE rate (
    currency     char(3) NOT NULL,
    in_currency  char(3) NOT NULL,
    day          date NOT NULL,
    rate         numeric(20, 10) NOT NULL CHECK (rate > 0),
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (currency, in_currency, day)
);

-- Codes by which a sale is a partner's without a click. `code` is in upper case.
CREATE TABLE coupon (
    id             int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    code           text NOT NULL,
    advertiser_id  int NOT NULL REFERENCES advertiser,
    offer_id       int NOT NULL REFERENCES offer,
    partner_id     int NOT NULL REFERENCES partner,
    starts_at      timestamptz,
    ends_at        timestamptz,
    status         text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'archived')),
    version        bigint NOT NULL DEFAULT 1,
    created_at     timestamptz NOT NULL DEFAULT now(),
    UNIQUE (advertiser_id, code)
);
CREATE INDEX coupon_partner ON coupon (partner_id, id);

-- Whose customer somebody is: of the partner of the first sale, also for what is sold later without a click.
CREATE TABLE customer (
    advertiser_id  int NOT NULL REFERENCES advertiser,
    customer_id    text NOT NULL,
    link_id        int NOT NULL,
    offer_id       int NOT NULL,
    partner_id     int NOT NULL,
    click_id       uuid,
    click_class    smallint NOT NULL DEFAULT 0,
    bound_at       timestamptz NOT NULL,
    PRIMARY KEY (advertiser_id, customer_id)
);

-- Clicks of another tracker, for sales that were under way when a programme moved here.
CREATE TABLE imported_click (
    advertiser_id  int NOT NULL REFERENCES advertiser,
    foreign_id     text NOT NULL,
    id             uuid NOT NULL,  -- the UUIDv7 that stands for it, made of its time
    link_id        int NOT NULL,
    offer_id       int NOT NULL,
    partner_id     int NOT NULL,
    clicked_at     timestamptz NOT NULL,
    subs           jsonb,
    PRIMARY KEY (advertiser_id, foreign_id)
);

-- Every authenticated intake: what was sent (without secrets) and what came of it. `waiting`: a change of an order that
-- is not known yet. `named_as` is what its receipt called an order that is kept by another name.
ALTER TABLE conversion_intake
    ALTER COLUMN conversion_id DROP NOT NULL,
    DROP CONSTRAINT conversion_intake_result_check,
    ADD CONSTRAINT conversion_intake_result_check
        CHECK (result IN ('accepted', 'changed', 'duplicate', 'waiting', 'rejected', 'test')),
    ADD COLUMN named_as       uuid,
    ADD COLUMN reason         text,
    ADD COLUMN advertiser_id  int,
    ADD COLUMN order_id       text,
    ADD COLUMN door           text,
    ADD COLUMN dialect        text,
    ADD COLUMN raw            text,
    ADD COLUMN event          jsonb,  -- as it was in the log, while it waits or may be run again
    ADD COLUMN rerun_at       timestamptz;
CREATE INDEX conversion_intake_advertiser ON conversion_intake (advertiser_id, intake_id);
CREATE INDEX conversion_intake_order_id ON conversion_intake (order_id, advertiser_id) WHERE order_id IS NOT NULL;
CREATE INDEX conversion_intake_waiting ON conversion_intake (conversion_id) WHERE result = 'waiting';
CREATE INDEX conversion_intake_named_as ON conversion_intake (named_as) WHERE named_as IS NOT NULL;
CREATE INDEX conversion_intake_rejected ON conversion_intake (intake_id) WHERE result = 'rejected';

-- `sale_amount_minor` is what is left of it: base + increments - refunds, at most `remaining_minor`. `payout_minor` and
-- `revenue_minor` are what it pays while approved, `booked_*` what the ledger has of them. `click_id` is null where a
-- coupon or a customer says whose it is, or the click is not known (yet): `foreign_click`.
ALTER TABLE conversion
    ALTER COLUMN click_id DROP NOT NULL,
    DROP CONSTRAINT conversion_status_check,
    ADD CONSTRAINT conversion_status_check CHECK (status IN ('approved', 'pending', 'rejected', 'reversed')),
    ADD COLUMN version                bigint NOT NULL DEFAULT 1,
    ADD COLUMN changed_at             timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN click_class            smallint NOT NULL DEFAULT 0,
    ADD COLUMN door                   text NOT NULL DEFAULT 'postback',
    ADD COLUMN original_status        text,
    ADD COLUMN base_minor             bigint,
    ADD COLUMN base_intake_id         uuid,
    ADD COLUMN increments_minor       bigint NOT NULL DEFAULT 0,
    ADD COLUMN refunds_minor          bigint NOT NULL DEFAULT 0,
    ADD COLUMN remaining_minor        bigint,
    ADD COLUMN payout_override_minor  bigint,
    ADD COLUMN revenue_stated_minor   bigint,
    ADD COLUMN revenue_minor          bigint,
    ADD COLUMN revenue_currency       char(3),
    ADD COLUMN booked_payout_minor    bigint NOT NULL DEFAULT 0,
    ADD COLUMN booked_revenue_minor   bigint NOT NULL DEFAULT 0,
    ADD COLUMN customer_id            text,
    ADD COLUMN coupon_code            text,
    ADD COLUMN adv                    jsonb,
    ADD COLUMN foreign_click          text,
    ADD COLUMN country                text,
    ADD COLUMN device                 text,
    ADD COLUMN source_id              text,
    ADD COLUMN click_ref              text,
    ADD COLUMN subs                   jsonb,
    ADD COLUMN click_seen             boolean NOT NULL DEFAULT false,
    -- What status and money follow from, beside the amounts: why it would wait or never earn by whose it is (`held`) and
    -- by its amount (`doubt`), and what was said of it: statuses that the sender stated, `lifted` by a person.
    ADD COLUMN held                   text NOT NULL DEFAULT '',
    ADD COLUMN doubt                  text NOT NULL DEFAULT '',
    ADD COLUMN said                   text NOT NULL DEFAULT '';
UPDATE conversion SET base_minor = sale_amount_minor, base_intake_id = intake_id,
    -- what follows from terms, rates and amounts is worked out again whenever one changes
    held = CASE WHEN reason IN ('ambiguous_amount', 'amount_missing', 'absurd_payout', 'no_rate', 'no_terms') THEN ''
                ELSE coalesce(reason, '') END,
    doubt = CASE WHEN reason = 'ambiguous_amount' THEN reason ELSE '' END,
    booked_payout_minor = CASE WHEN status = 'approved' THEN coalesce(payout_minor, 0) ELSE 0 END;
-- An older aggregator that still runs knows of no ledger: what it inserts has to fail, rather than be in none.
ALTER TABLE conversion ALTER COLUMN booked_payout_minor DROP DEFAULT;
CREATE INDEX conversion_unseen ON conversion (received_at) WHERE NOT click_seen;
CREATE INDEX conversion_pending ON conversion (offer_id, reason, received_at) WHERE status = 'pending';
CREATE INDEX conversion_no_rate ON conversion (conversion_id) WHERE status = 'pending' AND reason = 'no_rate';
CREATE INDEX conversion_offer ON conversion (offer_id, event_at);
CREATE INDEX conversion_changed ON conversion (changed_at, conversion_id);
CREATE INDEX conversion_advertiser ON conversion (advertiser_id, order_id);
CREATE INDEX conversion_foreign ON conversion (advertiser_id, foreign_click) WHERE foreign_click IS NOT NULL;

-- The events by which an order was refunded in part or grew: the sender's own ids, each counted once.
CREATE TABLE conversion_step (
    conversion_id  uuid NOT NULL,
    event_id       text NOT NULL,
    intake_id      uuid,
    PRIMARY KEY (conversion_id, event_id)
);

-- Every change of a conversion: who, when, why, from what to what. Nobody changes one in silence.
CREATE TABLE conversion_change (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    conversion_id  uuid NOT NULL,
    at             timestamptz NOT NULL DEFAULT now(),
    actor          text NOT NULL,  -- `sender`, `auto`, or the role and id of an API key
    from_status    text,
    to_status      text NOT NULL,
    reason         text,
    sale_amount_minor  bigint,
    payout_minor       bigint,
    intake_id      uuid
);
CREATE INDEX conversion_change_conversion ON conversion_change (conversion_id, id);

-- The ledger: an entry is lines of the same currency that sum to zero. What we owe a partner is positive on its account,
-- what an advertiser owes us negative on its account; the programme has the other side of each.
CREATE TABLE ledger_entry (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at             timestamptz NOT NULL DEFAULT now(),
    kind           text NOT NULL CHECK (kind IN ('accrual', 'reversal', 'refund', 'chargeback', 'change', 'adjustment')),
    conversion_id  uuid,
    offer_id       int,
    period         text,  -- of an adjustment: the month it is for, 2026-11
    actor          text NOT NULL,
    reason         text,
    once           text UNIQUE  -- what may be booked only once says so here
);
CREATE INDEX ledger_entry_conversion ON ledger_entry (conversion_id) WHERE conversion_id IS NOT NULL;
CREATE INDEX ledger_entry_adjustment ON ledger_entry (offer_id) WHERE conversion_id IS NULL;
CREATE TABLE ledger_line (
    entry_id      bigint NOT NULL REFERENCES ledger_entry,
    account       text NOT NULL CHECK (account = 'programme' OR account ~ '^(partner|advertiser):[1-9][0-9]*$'),
    amount_minor  bigint NOT NULL,
    currency      char(3) NOT NULL,
    PRIMARY KEY (entry_id, account, currency)
);
CREATE INDEX ledger_line_account ON ledger_line (account, currency, entry_id);
WITH entry AS (
    INSERT INTO ledger_entry (kind, conversion_id, offer_id, actor, reason)
    SELECT 'accrual', conversion_id, offer_id, 'sender', 'earned before there was a ledger'
    FROM conversion WHERE booked_payout_minor <> 0 RETURNING id, conversion_id
)
INSERT INTO ledger_line (entry_id, account, amount_minor, currency)
SELECT id, account, sign * booked_payout_minor, currency FROM entry JOIN conversion USING (conversion_id),
    LATERAL (VALUES ('partner:' || partner_id, 1), ('programme', -1)) AS side (account, sign);

CREATE FUNCTION stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the ledger is only added to';
END
$$;
CREATE TRIGGER ledger_entry_stays BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_entry EXECUTE FUNCTION stays();
CREATE TRIGGER ledger_line_stays BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_line EXECUTE FUNCTION stays();

-- How much of a cap on conversions, payout or revenue is used in a period that begins then. What was counted stays.
CREATE TABLE cap_use (
    cap_id  int NOT NULL REFERENCES cap ON DELETE CASCADE,
    begins  timestamptz NOT NULL,
    used    bigint NOT NULL,
    PRIMARY KEY (cap_id, begins)
);
ALTER TABLE cap
    ADD COLUMN over_cap_status text NOT NULL DEFAULT 'pending' CHECK (over_cap_status IN ('pending', 'rejected'));

-- Months that were closed, their volume tiers settled by adjustments, and when they last were.
CREATE TABLE closed_period (
    period     text PRIMARY KEY,
    closed_at  timestamptz NOT NULL DEFAULT now()
);

-- Conversions by state, at their event's time; money in each currency's own row. Sums have no bound: ten thousand absurd
-- orders would overflow a bigint, and then keep all that are settled with them from it.
ALTER TABLE conversion_rollup
    ADD COLUMN pending                bigint NOT NULL DEFAULT 0,
    ADD COLUMN rejected               bigint NOT NULL DEFAULT 0,
    ADD COLUMN reversed               bigint NOT NULL DEFAULT 0,
    ALTER COLUMN sale_amount_minor    TYPE numeric,
    ALTER COLUMN payout_minor         TYPE numeric,
    ADD COLUMN revenue_minor          numeric NOT NULL DEFAULT 0,
    ADD COLUMN payout_pending_minor   numeric NOT NULL DEFAULT 0,
    ADD COLUMN payout_reversed_minor  numeric NOT NULL DEFAULT 0;
INSERT INTO conversion_rollup (quarter, link_id, offer_id, partner_id, currency, shard, conversions,
    sale_amount_minor, payout_minor, pending, rejected, payout_pending_minor)
SELECT date_bin('15 minutes', event_at, 'epoch'), link_id, offer_id, partner_id, currency, -1, 0, 0, 0,
    count(*) FILTER (WHERE status = 'pending'), count(*) FILTER (WHERE status = 'rejected'),
    coalesce(sum(payout_minor) FILTER (WHERE status = 'pending'), 0)
FROM conversion WHERE status IN ('pending', 'rejected') GROUP BY 1, 2, 3, 4, 5;

-- Links whose clicks are tests: outside money, caps and reports.
ALTER TABLE link ADD COLUMN test boolean NOT NULL DEFAULT false;

-- Redis holds what an older version published without these columns.
INSERT INTO outbox (kind, row_id) SELECT 'advertiser', id FROM advertiser;
INSERT INTO outbox (kind, row_id) SELECT 'offer', id FROM offer;
