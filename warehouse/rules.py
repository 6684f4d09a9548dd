"""The data rules as data: what each rule expects of the rows, and what happens to rows that fail it.

Glossary:

    night         the run for one as-of date
    delta         the received rows that no night has accepted yet: one pandas frame per table of ``TABLES``
    batch         the frame that a rule checks: the delta of its table, or one of the two frames below
    expectation   a check by great-expectations of the values in one column of the batch
    row check     a function of ``warehouse/row_checks.py``; it returns a mask, True where a row of the batch passes
    verdict       the result of one rule on its batch, stored in the table ``checks``

Two batches have one row (symbol, ts, present) per bar that should exist; ``present`` is False for a missing bar:

    coverage      all bars of the checked window, see ``row_checks.bar_coverage``
    latest        the rows of ``coverage`` at the last bar of the window, see ``row_checks.last_bar_coverage``

The policy of a rule decides what happens when rows of its batch fail:

    block         the night stops and accepts no row
    quarantine    the failing rows are not accepted; they are stored in ``quarantine`` with the reason
    flag          the failing rows are accepted; a failing bar gets the rule's name in the column ``flag``. Failing rows
                  of other tables, and missing bars (the rule ``gap`` on bars), are listed only in the verdict

To add a rule, add one entry here. When no expectation covers it, add a row check too. Names, descriptions and advice
are stored in ``checks``, so a changed text differs from the stored texts of earlier nights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from warehouse import row_checks
from warehouse.row_checks import CheckContext

BLOCK: Literal["block"] = "block"
QUARANTINE: Literal["quarantine"] = "quarantine"
FLAG: Literal["flag"] = "flag"
TABLES = ("bars", "corporate_actions", "funding_rates")
OHLC = ("open", "high", "low", "close")

MAX_FUNDING_RATE = 0.04  # twice the ±2 % that bound Bybit's widest contracts; the recorded extreme is 0.68 %
MIN_SHARE_ON_LAST_BAR = 0.5  # fraction of the symbols; a few delisted symbols must not stop the night
LARGEST_FLOAT = float(np.finfo(np.float64).max)  # as an upper bound it excludes infinity

# (batch of n rows, context) → boolean mask (n,), True where the row passes
RowCheck = Callable[[pd.DataFrame, CheckContext], np.ndarray]
# class name in great_expectations.expectations, and its arguments
Expectation = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class CheckRule:
    """One rule: each row of its batch must meet every expectation; ``policy`` applies to the rows that do not.

    A rule has either ``expectations`` or a row ``check``. The mask of the check becomes a column of the batch with the
    rule's name, and the only expectation is that this column is True. ``description`` completes "3 of 100 rows: …" in
    verdicts; ``advice`` states what a person can do.

    The verdict is "passed" when each expectation holds for at least the fraction ``mostly`` of the rows; 1 means all
    rows. Failing rows of a passed rule are listed in the verdict as tolerated. ``batch`` is the name of the batch,
    empty for the delta of ``table``.
    """

    name: str
    table: str
    policy: Literal["block", "quarantine", "flag"]
    description: str
    advice: str
    expectations: tuple[Expectation, ...] = ()
    check: RowCheck | None = None
    mostly: float = 1.0
    batch: str = ""

    @property
    def batch_name(self) -> str:
        """Name of the batch that the rule checks: ``batch``, or else ``table``."""
        return self.batch or self.table

    @property
    def all_expectations(self) -> tuple[Expectation, ...]:
        """The rule's expectations; for a rule with a check, that the column of the check is True."""
        return self.expectations or (expect_true(self.name),)


def expect_true(column: str) -> Expectation:
    """The expectation that every value of a boolean column is True."""
    return "ExpectColumnValuesToBeInSet", {"column": column, "value_set": [True]}


def expect_no_nulls(*columns: str) -> tuple[Expectation, ...]:
    """One expectation per column: no value is missing. Null and NaN are both missing, as in ``pandas.isna``."""
    return tuple(("ExpectColumnValuesToNotBeNull", {"column": column}) for column in columns)


def expect_between(low: float, high: float, *columns: str, strict: bool = False) -> tuple[Expectation, ...]:
    """One expectation per column: every value lies in [low, high], or in (low, high] when ``strict``.

    A missing value (null or NaN) passes.
    """
    return tuple(
        ("ExpectColumnValuesToBeBetween", {"column": c, "min_value": low, "max_value": high, "strict_min": strict})
        for c in columns
    )


PULL_AGAIN_ADVICE = "compare with the provider; a corrected answer is taken in by the next night"
LOOKAHEAD_ADVICE = "the ingest step let rows through that were not final; check the night's clock, then run it again"

BAR_RULES = (
    CheckRule(
        name="null",
        table="bars",
        policy=QUARANTINE,
        description="open, high, low, close or volume is missing",
        advice=PULL_AGAIN_ADVICE,
        expectations=expect_no_nulls(*OHLC, "volume"),
    ),
    CheckRule(
        name="price",
        table="bars",
        policy=QUARANTINE,
        description="price is zero, negative or infinite",
        advice=PULL_AGAIN_ADVICE,
        expectations=expect_between(0, LARGEST_FLOAT, *OHLC, strict=True),
    ),
    CheckRule(
        name="volume",
        table="bars",
        policy=QUARANTINE,
        description="volume is negative or infinite",
        advice=PULL_AGAIN_ADVICE,
        expectations=expect_between(0, LARGEST_FLOAT, "volume"),
    ),
    CheckRule(
        name="high_low",
        table="bars",
        policy=QUARANTINE,
        description="high or low does not contain the open and the close",
        advice=PULL_AGAIN_ADVICE,
        check=row_checks.has_ordered_prices,
    ),
    CheckRule(
        name="duplicate",
        table="bars",
        policy=QUARANTINE,
        description="key came more than once in one pull",
        advice=PULL_AGAIN_ADVICE,
        check=row_checks.has_unique_bar_key,
    ),
    CheckRule(
        name="bar_interval",
        table="bars",
        policy=QUARANTINE,
        description="interval is not the universe's",
        advice="pull the universe's own interval",
        check=row_checks.has_universe_interval,
    ),
    CheckRule(
        name="off_grid",
        table="bars",
        policy=QUARANTINE,
        description="ts is no bar open of the calendar",
        advice="check the exchange calendar and the provider's time zone",
        check=row_checks.is_on_calendar,
    ),
    CheckRule(
        name="future",
        table="bars",
        policy=BLOCK,
        description="bar had not closed at the night's clock",
        advice=LOOKAHEAD_ADVICE,
        check=row_checks.is_closed,
    ),
    CheckRule(
        name="unit_error",  # for the history and the factors see ``price_series.find_off_scale_bars``
        table="bars",
        policy=QUARANTINE,
        description="price is off its own history by 100, by 1000, or by a factor that reverts",
        advice=PULL_AGAIN_ADVICE,
        check=row_checks.is_on_price_scale,
    ),
    CheckRule(
        name="split_scale",  # within ten bars of the ex-date, see ``price_series.find_split_breaks``
        table="bars",
        policy=QUARANTINE,
        description="price breaks by the ratio of a split nearby",
        advice="pull the symbol's whole history again, on one side of the split",
        check=row_checks.is_on_split_scale,
    ),
    CheckRule(
        name="jump",  # more than 12 scaled MADs from the median of 60 returns, see ``price_series.find_jumps``
        table="bars",
        policy=FLAG,
        description="return is beyond 12 robust deviations of the 60 before it",
        advice="look for news before trusting the symbol's signal",
        check=row_checks.has_no_jump,
    ),
    CheckRule(
        name="stale",
        table="bars",
        policy=FLAG,
        description="close has not moved for five bars",
        advice="check that the symbol still trades",
        check=row_checks.has_moving_close,
    ),
    CheckRule(
        name="zero_volume",
        table="bars",
        policy=FLAG,
        description="volume is zero",
        advice="check that the symbol still trades",
        check=row_checks.has_nonzero_volume,
    ),
    CheckRule(
        name="gap",
        table="bars",
        policy=FLAG,
        description="expected bar is missing",
        advice="pull the symbol again, or end its membership if it no longer trades",
        expectations=(expect_true("present"),),
        batch="coverage",
    ),
    CheckRule(
        name="last_bar",
        table="bars",
        policy=BLOCK,
        description="latest closed bar is missing",
        advice="wait until the provider has it, or check that the tape reaches this night",
        expectations=(expect_true("present"),),
        mostly=MIN_SHARE_ON_LAST_BAR,
        batch="latest",
    ),
)
ACTION_RULES = (
    CheckRule(
        name="null",
        table="corporate_actions",
        policy=QUARANTINE,
        description="value is missing",
        advice=PULL_AGAIN_ADVICE,
        expectations=expect_no_nulls("value"),
    ),
    CheckRule(
        name="kind",
        table="corporate_actions",
        policy=QUARANTINE,
        description="kind is neither dividend nor split",
        advice=PULL_AGAIN_ADVICE,
        expectations=(("ExpectColumnValuesToBeInSet", {"column": "kind", "value_set": ["dividend", "split"]}),),
    ),
    CheckRule(
        name="positive",
        table="corporate_actions",
        policy=QUARANTINE,
        description="value is zero, negative or infinite",
        advice=PULL_AGAIN_ADVICE,
        expectations=expect_between(0, LARGEST_FLOAT, "value", strict=True),
    ),
    CheckRule(
        name="split_ratio",
        table="corporate_actions",
        policy=QUARANTINE,
        description="split is beyond 1000 to 1",
        advice=PULL_AGAIN_ADVICE,
        check=row_checks.has_possible_split_ratio,
    ),
    CheckRule(
        name="duplicate",
        table="corporate_actions",
        policy=QUARANTINE,
        description="key came more than once in one pull",
        advice=PULL_AGAIN_ADVICE,
        check=row_checks.has_unique_action_key,
    ),
    CheckRule(
        name="future",
        table="corporate_actions",
        policy=BLOCK,
        description="ex-date lies after the night's clock",
        advice=LOOKAHEAD_ADVICE,
        check=row_checks.is_not_after_clock,
    ),
    CheckRule(
        name="dividend_size",
        table="corporate_actions",
        policy=QUARANTINE,
        description="dividend is worth the whole share or more",
        advice=PULL_AGAIN_ADVICE,
        check=row_checks.has_possible_dividend,
    ),
    CheckRule(
        name="dividend_scale",
        table="corporate_actions",
        policy=FLAG,
        description="dividend is over a quarter of the price, or 20 times off the symbol's usual one",
        advice="check currency and unit of the dividend",
        check=row_checks.has_usual_dividend,
    ),
)
FUNDING_RULES = (
    CheckRule(
        name="null",
        table="funding_rates",
        policy=QUARANTINE,
        description="rate is missing",
        advice=PULL_AGAIN_ADVICE,
        expectations=expect_no_nulls("rate"),
    ),
    CheckRule(
        name="bounds",
        table="funding_rates",
        policy=QUARANTINE,
        description="rate is beyond ±4 % a settlement",
        advice="check whether it came in percent",
        expectations=expect_between(-MAX_FUNDING_RATE, MAX_FUNDING_RATE, "rate"),
    ),
    CheckRule(
        name="duplicate",
        table="funding_rates",
        policy=QUARANTINE,
        description="key came more than once in one pull",
        advice=PULL_AGAIN_ADVICE,
        check=row_checks.has_unique_settlement_key,
    ),
    CheckRule(
        name="off_grid",
        table="funding_rates",
        policy=QUARANTINE,
        description="settlement is not on a whole hour",
        advice=PULL_AGAIN_ADVICE,
        check=row_checks.is_on_whole_hour,
    ),
    CheckRule(
        name="future",
        table="funding_rates",
        policy=BLOCK,
        description="settlement lies after the night's clock",
        advice=LOOKAHEAD_ADVICE,
        check=row_checks.is_not_after_clock,
    ),
    CheckRule(
        name="gap",
        table="funding_rates",
        policy=FLAG,
        description="settlement comes more than 8 hours after the one before",
        advice="pull the symbol's funding again: a missing settlement counts as no cost",
        check=row_checks.follows_without_gap,
    ),
)
RULES = BAR_RULES + ACTION_RULES + FUNDING_RULES
