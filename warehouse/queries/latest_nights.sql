-- latest_nights: state and message of the latest night of every source and universe. One row per (source, universe).
SELECT
    source,
    universe,
    night,
    state,
    message
FROM nights
QUALIFY row_number() OVER (PARTITION BY source, universe ORDER BY night DESC) = 1
ORDER BY source, universe;
