-- universe_names: names of all universes. One row per universe.
SELECT universe
FROM store.universes
ORDER BY universe;
