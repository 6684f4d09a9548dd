-- origin_nights: nights of one source and universe in the warehouse `origin`, from which a published copy is built, and
-- whether each is finished. One row per night, oldest first.
SELECT
    night,
    published_at IS NOT NULL AS finished
FROM origin.store.nights
WHERE source = $source AND universe = $universe
ORDER BY night;
