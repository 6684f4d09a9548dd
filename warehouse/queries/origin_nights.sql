-- origin_nights: nights of a slice in the warehouse a published copy is made from. One row per night, oldest first.
SELECT
    night,
    published_at IS NOT NULL AS finished
FROM origin.store.nights
WHERE source = $source AND universe = $universe
ORDER BY night;
