-- newest_published_clock: the clock of the newest published night of $universe from $source. One row, NULL for none.
SELECT max(clock) AS clock
FROM store.nights
WHERE source = $source AND universe = $universe AND published_at IS NOT NULL;
