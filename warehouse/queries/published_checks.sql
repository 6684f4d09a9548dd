-- published_checks: the verdicts of one night. One row per table and rule, failed rules first.
SELECT
    table_name,
    rule,
    policy,
    passed,
    rows_checked,
    rows_failed,
    message
FROM checks
WHERE night = $night AND source = $source AND universe = $universe
ORDER BY passed, table_name, rule;
