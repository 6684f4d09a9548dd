-- nights: state of each night. One row per (night, source, universe).
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

COMMENT ON VIEW main.nights IS 'State of each night. Grain: night, source, universe';
COMMENT ON COLUMN main.nights.night IS 'UTC date the night is for (its as_of date)';
COMMENT ON COLUMN main.nights.source IS 'live, recorded or simulated';
COMMENT ON COLUMN main.nights.universe IS 'Universe, see universes';
COMMENT ON COLUMN main.nights.run_id IS
    'First 16 hex digits of sha256("night|source|universe"): the same night always has the same';
COMMENT ON COLUMN main.nights.clock IS
    'UTC instant the night believes it is: when it started for live, 00:00 after the night for recorded and simulated';
COMMENT ON COLUMN main.nights.settings IS 'Settings that shape its results, as JSON';
COMMENT ON COLUMN main.nights.settings_hash IS 'Hash of settings';
COMMENT ON COLUMN main.nights.state IS 'running, published, blocked (a check or the audit stopped it) or failed';
COMMENT ON COLUMN main.nights.last_ts IS 'UTC open of the latest bar it knew';
COMMENT ON COLUMN main.nights.for_session IS 'Session its signals are for';
COMMENT ON COLUMN main.nights.champion IS 'Model whose signals it recommends';
COMMENT ON COLUMN main.nights.message IS 'How it ended, in words';
COMMENT ON COLUMN main.nights.published_at IS
    'UTC instant (its clock) from which readers may use it; NULL until it is finished';
