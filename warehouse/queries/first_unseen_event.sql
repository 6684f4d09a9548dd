-- first_unseen_event: the earliest of the events that a night of $universe with the clock $received reads and no
-- published one has: settlements of funding, and what bar_events_between reads. One row, NULL for none.
WITH published AS (
    SELECT
        run_id,
        clock
    FROM store.nights
    WHERE source = $source AND universe = $universe AND published_at IS NOT NULL
)

SELECT min(ts) AS ts
FROM (
    SELECT ts
    FROM store.funding_rates
    WHERE
        source = $source
        AND universe = $universe
        AND list_contains($symbols, symbol)
        AND run_id NOT IN (SELECT run_id FROM published)
    UNION ALL
    SELECT ts
    FROM events
    WHERE
        source = $source
        AND venue = $venue
        AND list_contains($symbols, symbol)
        AND fetched_at <= $received
        AND fetched_at > coalesce((SELECT max(clock) FROM published), TIMESTAMPTZ '-infinity')
        AND (kind <> 'book' OR $least_value = 0)
        AND (kind <> 'trade' OR price * size >= $least_value)
);
