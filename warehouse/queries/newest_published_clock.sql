-- newest_published_clock: what the newest published night of $universe from $source believed to be now. One row, NULL
-- for none.
SELECT max(clock) AS clock
FROM store.nights
WHERE source = $source AND universe = $universe AND published_at IS NOT NULL;
