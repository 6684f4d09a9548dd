-- night_row: the row of one night. At most one row.
SELECT
    *
FROM store.nights
WHERE night = $night AND source = $source AND universe = $universe;
