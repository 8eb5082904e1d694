-- A partition that cannot be followed stands still, by name, until an operator resumes it. `next` = -1 is the earliest
-- offset that the broker still has. `last_digest` names the record at next - 1: another one there is another log.
ALTER TABLE log_position
    ADD COLUMN stopped      text,
    ADD COLUMN stopped_at   timestamptz,
    ADD COLUMN last_digest  bytea;

-- An edge that has closed may have written to partitions that are not read up to there yet: it is over when they are.
ALTER TABLE edge
    ADD COLUMN closing_to     timestamptz,
    ADD COLUMN closing_acked  jsonb;

-- Who changed what by hand. `actor` is the role and id of an API key, never the key.
CREATE TABLE audit (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       timestamptz NOT NULL DEFAULT now(),
    actor    text NOT NULL,
    action   text NOT NULL,
    subject  text NOT NULL,
    before   jsonb,
    after    jsonb
);
CREATE INDEX audit_at ON audit (at);
