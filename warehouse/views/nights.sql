-- nights: state of each night, the run for one as-of date. One row per (night, source, universe).
CREATE OR REPLACE VIEW main.nights AS
SELECT
    night,
    source,
    universe,
    run_id,
    clock,
    settings,
    settings_hash,
    state,
    last_ts,
    for_session,
    champion,
    message,
    published_at
FROM store.nights;
