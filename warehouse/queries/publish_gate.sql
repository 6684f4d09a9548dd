-- publish_gate: the number of checks and audits of one night, and the number that forbid publishing it: failed blocking
-- checks and leaks. One row.
SELECT
    validated,
    blocking,
    audited,
    leaks
FROM
    (
        SELECT
            count(*) AS validated,
            count(*) FILTER (WHERE policy = 'block' AND NOT passed) AS blocking
        FROM store.checks
        WHERE night = $night AND source = $source AND universe = $universe
    ),
    (
        SELECT
            count(*) AS audited,
            count(*) FILTER (WHERE NOT passed) AS leaks
        FROM store.leak_audit
        WHERE night = $night AND source = $source AND universe = $universe
    );
