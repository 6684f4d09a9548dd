-- newest_published_clock: the clock of the newest published night of $universe and $source. One row; NULL when no night
-- is published.
SELECT max(clock) AS clock
FROM store.nights
WHERE source = $source AND universe = $universe AND published_at IS NOT NULL;
