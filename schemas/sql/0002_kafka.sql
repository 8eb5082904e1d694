-- A partition that cannot be followed stands still, by name, until an operator resumes it. `next` = -1 is the earliest
-- offset that the broker still has. `last_digest` names the record at next - 1: another one there is another log.
ALTER TABLE log_position
    ADD COLUMN stopped      text,
    ADD COLUMN stopped_at   timestamptz,
    ADD COLUMN last_digest  bytea;

-- An edge that has closed may have written to partitions that are not read up to there yet: it is over when they are.
-- `heard_at` is when a beat of it was last applied.
ALTER TABLE edge
    ADD COLUMN closing_to     timestamptz,
    ADD COLUMN closing_acked  jsonb,
    ADD COLUMN heard_at       timestamptz NOT NULL DEFAULT now();
CREATE INDEX edge_open ON edge (incarnation) WHERE closed_at IS NULL;

-- They are asked for the most complete one that was passed.
ALTER TABLE edge_beat DROP CONSTRAINT edge_beat_pkey, ADD PRIMARY KEY (incarnation, complete_to, at);

-- How far each edge that is not over is complete. Closed ones may be many, so nothing is asked about them.
CREATE OR REPLACE VIEW edge_complete AS
    SELECT edge.incarnation, edge.name,
           (SELECT complete_to FROM edge_beat WHERE edge_beat.incarnation = edge.incarnation AND passed(acked)
            ORDER BY complete_to DESC LIMIT 1) AS complete_to,
           registered_at, heard_at, closing_to IS NOT NULL AS closing
    FROM edge WHERE closed_at IS NULL AND (closing_to IS NULL OR NOT passed(closing_acked));

-- All that any edge received before it is applied. NULL while an edge that may have more is not heard of, or none ever
-- was. When all are over it is the last that one of them said: another may have begun since that is not heard of yet.
CREATE OR REPLACE VIEW complete_through AS
    SELECT CASE WHEN count(*) > 0 THEN nullif(min(coalesce(complete_to, '-infinity')), '-infinity')
                ELSE (SELECT nullif(max(coalesce(closed_at, closing_to)), '-infinity') FROM edge)
           END AS complete_through
    FROM edge_complete;

-- Who changed what by hand, and why. `actor` is the role and id of an API key, never the key.
CREATE TABLE audit (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       timestamptz NOT NULL DEFAULT now(),
    actor    text NOT NULL,
    action   text NOT NULL,
    subject  text NOT NULL,
    reason   text,
    before   jsonb,
    after    jsonb
);
