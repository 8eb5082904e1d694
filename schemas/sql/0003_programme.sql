-- What a programme is run with: who may do what, where links lead, what stops them. Nothing is deleted: it is archived.

ALTER TABLE advertiser
    ADD COLUMN external_id  text UNIQUE,
    DROP CONSTRAINT advertiser_status_check,
    ADD CONSTRAINT advertiser_status_check CHECK (status IN ('active', 'blocked', 'archived'));

ALTER TABLE partner
    ADD COLUMN external_id  text UNIQUE,
    DROP CONSTRAINT partner_status_check,
    ADD CONSTRAINT partner_status_check CHECK (status IN ('pending', 'active', 'blocked', 'archived'));

-- `targeting`, `landings`: schemas.links.Targeting and a list of schemas.links.Landing, as the API takes them.
ALTER TABLE offer
    ADD COLUMN external_id         text UNIQUE,
    ADD COLUMN access              text NOT NULL DEFAULT 'open' CHECK (access IN ('open', 'approval', 'private')),
    ADD COLUMN fallback_url        text,
    ADD COLUMN click_id_parameter  text NOT NULL DEFAULT 'click_id',
    ADD COLUMN deep_link_hosts     text[] NOT NULL DEFAULT '{}',
    ADD COLUMN pass_parameters     boolean NOT NULL DEFAULT false,
    ADD COLUMN starts_at           timestamptz,
    ADD COLUMN ends_at             timestamptz,
    ADD COLUMN timezone            text,
    ADD COLUMN targeting           jsonb,
    ADD COLUMN landings            jsonb NOT NULL DEFAULT '[]',
    DROP CONSTRAINT offer_status_check,
    ADD CONSTRAINT offer_status_check CHECK (status IN ('active', 'paused', 'archived'));

-- Hosts that visitors come by. With `own_links` the host has codes of its own, else those of the public URL.
CREATE TABLE domain (
    id            int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    host          text NOT NULL UNIQUE,
    own_links     boolean NOT NULL DEFAULT false,
    fallback_url  text,
    status        text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'archived')),
    version       bigint NOT NULL DEFAULT 1,
    created_at    timestamptz NOT NULL DEFAULT now()
);

-- `paused_by_partner`: its partner paused it, and may let it go on; what the operator paused, it may not.
ALTER TABLE link
    ADD COLUMN external_id        text UNIQUE,
    ADD COLUMN domain_id          int REFERENCES domain,
    ADD COLUMN destination_url    text,
    ADD COLUMN fallback_url       text,
    ADD COLUMN starts_at          timestamptz,
    ADD COLUMN ends_at            timestamptz,
    ADD COLUMN paused_by_partner  boolean NOT NULL DEFAULT false,
    DROP CONSTRAINT link_code_key,
    ADD CONSTRAINT link_code_key UNIQUE NULLS NOT DISTINCT (code, domain_id),
    DROP CONSTRAINT link_status_check,
    ADD CONSTRAINT link_status_check CHECK (status IN ('active', 'paused', 'archived'));

-- Lists go page by page in the order of ids, also those of an offer with most of a million links.
DROP INDEX link_partner, link_offer;
CREATE INDEX link_partner ON link (partner_id, id);
CREATE INDEX link_offer ON link (offer_id, id);
CREATE INDEX link_domain ON link (domain_id, id) WHERE domain_id IS NOT NULL;

-- Who may run an offer that is not open to all.
CREATE TABLE approval (
    offer_id    int NOT NULL REFERENCES offer,
    partner_id  int NOT NULL REFERENCES partner,
    status      text NOT NULL CHECK (status IN ('pending', 'approved', 'rejected')),
    changed_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (offer_id, partner_id)
);
CREATE INDEX approval_partner ON approval (partner_id);

-- Traffic that is not wanted: of a partner, of a source_id or a sub1, or of both; on one offer or on all.
CREATE TABLE block (
    id          int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    partner_id  int REFERENCES partner,
    offer_id    int REFERENCES offer,
    field       text NOT NULL CHECK (field IN ('partner', 'source_id', 'sub1')),
    value       text NOT NULL DEFAULT '',
    created_at  timestamptz NOT NULL DEFAULT now(),
    CHECK (CASE WHEN field = 'partner' THEN partner_id IS NOT NULL AND value = '' ELSE value <> '' END),
    UNIQUE NULLS NOT DISTINCT (partner_id, offer_id, field, value)
);

-- How much an offer, a partner, or a partner on an offer may bring in a period of the offer's or programme's time zone.
CREATE TABLE cap (
    id            int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    offer_id      int REFERENCES offer,
    partner_id    int REFERENCES partner,
    kind          text NOT NULL CHECK (kind IN ('clicks', 'conversions', 'payout', 'revenue')),
    period        text NOT NULL CHECK (period IN ('hour', 'day', 'week', 'month', 'total')),
    amount        bigint NOT NULL CHECK (amount >= 0),
    currency      char(3) CHECK ((kind IN ('payout', 'revenue')) = (currency IS NOT NULL)),
    over_cap      text NOT NULL DEFAULT 'fallback' CHECK (over_cap IN ('fallback', 'pass')),
    version       bigint NOT NULL DEFAULT 1,
    created_at    timestamptz NOT NULL DEFAULT now(),
    CHECK (offer_id IS NOT NULL OR partner_id IS NOT NULL),
    UNIQUE NULLS NOT DISTINCT (offer_id, partner_id, kind, period)
);
CREATE INDEX cap_partner ON cap (partner_id);

-- What a link that is published out there may call an offer or a partner: its own id, or the id it had elsewhere. An
-- imported name wins over an id of ours; a name, once given, stays.
CREATE TABLE reference (
    id         int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind       text NOT NULL CHECK (kind IN ('offer', 'partner')),
    name       text NOT NULL,
    target_id  int NOT NULL,
    imported   boolean NOT NULL,
    version    bigint NOT NULL DEFAULT 1,
    UNIQUE (kind, name)
);
INSERT INTO reference (kind, name, target_id, imported) SELECT 'offer', id::text, id, false FROM offer;
INSERT INTO reference (kind, name, target_id, imported) SELECT 'partner', id::text, id, false FROM partner;

ALTER TABLE api_key
    ADD COLUMN name                 text,
    ADD COLUMN scopes               text[],  -- NULL: all that the role may
    ADD COLUMN requests_per_minute  int NOT NULL DEFAULT 600 CHECK (requests_per_minute > 0),
    ADD COLUMN expires_at           timestamptz,
    ADD COLUMN revoked_at           timestamptz,
    ADD COLUMN last_used_at         timestamptz,
    ADD COLUMN replaces             int REFERENCES api_key,
    ADD COLUMN version              bigint NOT NULL DEFAULT 1;
CREATE INDEX api_key_owner ON api_key (partner_id, advertiser_id);

-- What a POST with an Idempotency-Key was answered, in the transaction of its change. `nonce` makes the secrets it may
-- have handed out again, with the caller's key; they themselves are nowhere.
CREATE TABLE idempotency (
    api_key_id      int NOT NULL REFERENCES api_key,
    key             text NOT NULL,
    request_sha256  bytea NOT NULL,
    nonce           bytea NOT NULL,
    answer          text,  -- JSON, to the letter
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (api_key_id, key)
);
CREATE INDEX idempotency_created ON idempotency (created_at);
CREATE INDEX audit_subject ON audit (subject, id);
CREATE INDEX audit_actor ON audit (actor, id);
CREATE INDEX audit_at ON audit (at);

-- Tokens that advertisers had before: Redis says of each that it is not good any more, at the advertiser's version of
-- then, so that nothing that was published before can come back under it.
CREATE TABLE replaced_token (
    id             int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    advertiser_id  int NOT NULL REFERENCES advertiser,
    token_sha256   bytea NOT NULL UNIQUE,
    version        bigint NOT NULL
);

ALTER TABLE outbox
    ADD COLUMN queued_at timestamptz NOT NULL DEFAULT now(),
    DROP CONSTRAINT outbox_kind_check,
    ADD CONSTRAINT outbox_kind_check
        CHECK (kind IN ('programme', 'advertiser', 'partner', 'offer', 'reference', 'link', 'replaced_token'));
-- Redis holds what an older version published without these columns.
INSERT INTO outbox (kind, row_id) SELECT 'reference', id FROM reference;

-- A click may come without a stored link (`/c?offer_id=&affiliate_id=`), so rollups know offer and partner themselves.
ALTER TABLE click_rollup
    ADD COLUMN offer_id    int NOT NULL DEFAULT 0,
    ADD COLUMN partner_id  int NOT NULL DEFAULT 0,
    DROP CONSTRAINT click_rollup_pkey;
UPDATE click_rollup SET offer_id = link.offer_id, partner_id = link.partner_id FROM link WHERE link.id = link_id;
ALTER TABLE click_rollup
    ADD PRIMARY KEY (quarter, link_id, offer_id, partner_id, country, device, shard);
CREATE INDEX click_rollup_offer ON click_rollup (offer_id, quarter);
CREATE INDEX click_rollup_partner ON click_rollup (partner_id, quarter);

ALTER TABLE conversion_rollup
    ADD COLUMN offer_id    int NOT NULL DEFAULT 0,
    ADD COLUMN partner_id  int NOT NULL DEFAULT 0,
    DROP CONSTRAINT conversion_rollup_pkey;
UPDATE conversion_rollup SET offer_id = link.offer_id, partner_id = link.partner_id FROM link WHERE link.id = link_id;
ALTER TABLE conversion_rollup
    ADD PRIMARY KEY (quarter, link_id, offer_id, partner_id, currency, shard);
CREATE INDEX conversion_rollup_partner ON conversion_rollup (partner_id, quarter);
