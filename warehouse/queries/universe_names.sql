-- universe_names: the universes there are. One row per universe.
SELECT universe
FROM store.universes
ORDER BY universe;
