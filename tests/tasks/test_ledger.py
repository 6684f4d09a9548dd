"""Rows of nights and steps: a published night is never altered, and only validated and audited nights are published.

A night is the run for one as-of date. A Desk is a test warehouse with recorded bars, see tests/desk.py.
"""

from __future__ import annotations

from datetime import date

import pytest

from tasks.errors import NightBlockedError
from tasks.ledger import begin_night, night_row, step_run, step_seconds
from tasks.publish import mark_published
from tests.desk import Desk
from warehouse.errors import PublishedNightError

AS_OF = date(2024, 6, 20)
SETTINGS = {"models": ["s4d"]}


def store_verdicts(desk: Desk, policy: str = "block", check_passed: bool = True, has_leak: bool = False) -> None:
    """Stores the verdict of one validation rule with ``policy``, and the audit's verdict on one subject."""
    night = desk.night(AS_OF)
    keys = {"night": night.as_of, "source": night.source, "universe": night.universe.name, "run": night.run_id}
    desk.execute(
        "INSERT INTO store.checks VALUES "
        "($source, $universe, $night, 'bars', 'null', $policy, $passed, 1, 0, '[]', '', $run)",
        **keys,
        policy=policy,
        passed=check_passed,
    )
    desk.execute(
        "INSERT INTO store.leak_audit VALUES "
        "($source, $universe, $night, 'features', TIMESTAMPTZ '2024-06-01', 1, 0, 0, $ok, '', $run)",
        **keys,
        ok=not has_leak,
    )


def test_a_validated_and_audited_night_is_published_and_then_refuses_every_step(desk: Desk) -> None:
    night = desk.night(AS_OF)
    assert begin_night(night, SETTINGS)
    store_verdicts(desk)
    mark_published.fn(night, "s4d", date(2024, 6, 21))
    row = night_row(night)
    assert (row["state"], row["champion"], row["published_at"]) == ("published", "s4d", night.clock)
    assert row["last_ts"].date() == AS_OF
    assert not begin_night(night, SETTINGS)
    with pytest.raises(PublishedNightError, match=r"published with other settings .*different: models"):
        begin_night(night, {"models": ["lstm"]})
    with pytest.raises(PublishedNightError, match="backtest would alter it"), step_run(night, "backtest", SETTINGS):
        pytest.fail("the step ran")
    assert night_row(night) == row


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"check_passed": False}, r"1 checks \(1 blocking\)"),
        ({"has_leak": True}, r"1 audit rows \(1 leaks\)"),
        (None, r"0 checks .* 0 audit rows"),
    ],
)
def test_a_night_with_a_failed_check_a_leak_or_no_verdict_is_not_published(
    desk: Desk, fault: dict | None, message: str
) -> None:
    night = desk.night(AS_OF)
    begin_night(night, SETTINGS)
    if fault is not None:
        store_verdicts(desk, **fault)
    with pytest.raises(NightBlockedError, match=message):
        mark_published.fn(night, "s4d", date(2024, 6, 21))
    assert night_row(night)["published_at"] is None


def test_a_failed_check_that_only_flags_does_not_stop_publishing(desk: Desk) -> None:
    begin_night(desk.night(AS_OF), SETTINGS)
    store_verdicts(desk, policy="flag", check_passed=False)
    mark_published.fn(desk.night(AS_OF), "s4d", date(2024, 6, 21))
    assert night_row(desk.night(AS_OF))["published_at"] is not None


def test_a_step_begins_its_night_and_records_its_run_even_when_it_fails(desk: Desk) -> None:
    night = desk.night(AS_OF)
    with step_run(night, "graphs", SETTINGS):
        assert night_row(night)["state"] == "running"
    with pytest.raises(ZeroDivisionError), step_run(night, "train", SETTINGS):
        raise ZeroDivisionError("by zero")
    runs = desk.rows("SELECT step, state, detail FROM store.step_runs ORDER BY started_at")
    assert runs == [("graphs", "done", None), ("train", "failed", "by zero")]
    assert list(step_seconds(night)) == ["graphs", "train"]
