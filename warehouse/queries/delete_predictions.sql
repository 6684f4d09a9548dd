-- delete_predictions: deletes the predictions of one fold of one trial in [$start, $end].
DELETE FROM store.predictions
WHERE
    source = $source
    AND universe = $universe
    AND trial_id = $trial_id
    AND fold = $fold
    AND ts >= $start
    AND ts <= $end;
