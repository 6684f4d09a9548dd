-- first_unseen_event: ts of the earliest event that no published night has read but a night of $universe with the clock
-- $received would read. Events are the funding settlements and the events of bar_events_between. One row; NULL when
-- there is no such event.
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
