-- A rollup's row is updated with every batch that has clicks of its key. With room on its page the new version stays
-- there, and the four indexes need not hear of it.
ALTER TABLE click_rollup SET (fillfactor = 70);
