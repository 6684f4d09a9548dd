"""The data rules as data: what each rule expects of the rows, and what happens to rows that fail it.

A night is the run for one as-of date; the rules check its *delta*, the received rows that no night has
accepted yet. The policy of a rule decides what happens to rows that fail it:

    block        the night stops and accepts no row
    quarantine   the failing rows are not accepted; they are stored in ``quarantine`` with the reason
    flag         the failing rows are accepted; bars have the rule's name in the column ``flag``, other tables have
                 only the verdict in ``checks``

To add a rule, add one entry here. When no expectation of great-expectations covers it, add a check to
``warehouse/row_checks.py`` too.
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
MIN_SHARE_ON_LAST_BAR = 0.5  # one or two delisted symbols are no reason to stop, half of the universe missing is
LARGEST_FLOAT = float(np.finfo(np.float64).max)  # as an upper bound it excludes infinity

RowCheck = Callable[[pd.DataFrame, CheckContext], np.ndarray]
Expectation = tuple[str, dict[str, Any]]  # class name in great_expectations.expectations, and its arguments


@dataclass(frozen=True)
class CheckRule:
    """One rule: each row of its batch must meet every expectation, else ``policy`` applies to the row.

    A rule has either ``expectations`` or a ``check``. The mask of a check becomes a column of the batch with the
    rule's name, and the expectation is that this column is True. ``description`` completes "3 of 100 rows: …" in
    verdicts; ``advice`` states what a person can do. ``mostly`` is the smallest share of passing rows with which the
    rule still passes as a whole. ``batch`` names the frame to check when it is not the delta of ``table``.
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
        return self.expectations or (is_true(self.name),)


def is_true(column: str) -> Expectation:
    """The expectation that a boolean column is True."""
    return "ExpectColumnValuesToBeInSet", {"column": column, "value_set": [True]}


def not_null(*columns: str) -> tuple[Expectation, ...]:
    """One expectation per column: no value is null or NaN."""
    return tuple(("ExpectColumnValuesToNotBeNull", {"column": column}) for column in columns)


def between(low: float, high: float, *columns: str, strict: bool = False) -> tuple[Expectation, ...]:
    """One expectation per column: every value lies in [low, high], or in (low, high] when ``strict``. Nulls pass."""
    return tuple(
        ("ExpectColumnValuesToBeBetween", {"column": c, "min_value": low, "max_value": high, "strict_min": strict})
        for c in columns
    )


PULL_AGAIN = "compare with the provider; a corrected answer is taken in by the next night"
LOOKAHEAD = "the ingest step let rows through that were not final; check the night's clock, then run it again"

BAR_RULES = (
    CheckRule(
        name="null",
        table="bars",
        policy=QUARANTINE,
        description="open, high, low, close or volume is missing",
        advice=PULL_AGAIN,
        expectations=not_null(*OHLC, "volume"),
    ),
    CheckRule(
        name="price",
        table="bars",
        policy=QUARANTINE,
        description="price is zero, negative or infinite",
        advice=PULL_AGAIN,
        expectations=between(0, LARGEST_FLOAT, *OHLC, strict=True),
    ),
    CheckRule(
        name="volume",
        table="bars",
        policy=QUARANTINE,
        description="volume is negative or infinite",
        advice=PULL_AGAIN,
        expectations=between(0, LARGEST_FLOAT, "volume"),
    ),
    CheckRule(
        name="high_low",
        table="bars",
        policy=QUARANTINE,
        description="high or low does not contain the open and the close",
        advice=PULL_AGAIN,
        check=row_checks.ordered_prices,
    ),
    CheckRule(
        name="duplicate",
        table="bars",
        policy=QUARANTINE,
        description="key came more than once in one pull",
        advice=PULL_AGAIN,
        check=row_checks.unique_bars,
    ),
    CheckRule(
        name="bar_interval",
        table="bars",
        policy=QUARANTINE,
        description="interval is not the universe's",
        advice="pull the universe's own interval",
        check=row_checks.bars_of_interval,
    ),
    CheckRule(
        name="off_grid",
        table="bars",
        policy=QUARANTINE,
        description="ts is no bar open of the calendar",
        advice="check the exchange calendar and the provider's time zone",
        check=row_checks.bars_on_grid,
    ),
    CheckRule(
        name="future",
        table="bars",
        policy=BLOCK,
        description="bar had not closed at the night's clock",
        advice=LOOKAHEAD,
        check=row_checks.closed_bars,
    ),
    CheckRule(
        name="unit_error",
        table="bars",
        policy=QUARANTINE,
        description="price is off its own history by 100, by 1000, or by a factor that reverts",
        advice=PULL_AGAIN,
        check=row_checks.bars_in_unit,
    ),
    CheckRule(
        name="split_scale",
        table="bars",
        policy=QUARANTINE,
        description="price breaks by the ratio of a split nearby",
        advice="pull the symbol's whole history again, on one side of the split",
        check=row_checks.bars_in_split_scale,
    ),
    CheckRule(
        name="jump",
        table="bars",
        policy=FLAG,
        description="return is beyond 12 robust deviations of the 60 before it",
        advice="look for news before trusting the symbol's signal",
        check=row_checks.bars_without_jump,
    ),
    CheckRule(
        name="stale",
        table="bars",
        policy=FLAG,
        description="close has not moved for five bars",
        advice="check that the symbol still trades",
        check=row_checks.moving_bars,
    ),
    CheckRule(
        name="zero_volume",
        table="bars",
        policy=FLAG,
        description="volume is zero",
        advice="check that the symbol still trades",
        check=row_checks.traded_bars,
    ),
    CheckRule(
        name="gap",
        table="bars",
        policy=FLAG,
        description="expected bar is missing",
        advice="pull the symbol again, or end its membership if it no longer trades",
        expectations=(is_true("present"),),
        batch="coverage",
    ),
    CheckRule(
        name="last_bar",
        table="bars",
        policy=BLOCK,
        description="latest closed bar is missing",
        advice="wait until the provider has it, or check that the tape reaches this night",
        expectations=(is_true("present"),),
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
        advice=PULL_AGAIN,
        expectations=not_null("value"),
    ),
    CheckRule(
        name="kind",
        table="corporate_actions",
        policy=QUARANTINE,
        description="kind is neither dividend nor split",
        advice=PULL_AGAIN,
        expectations=(("ExpectColumnValuesToBeInSet", {"column": "kind", "value_set": ["dividend", "split"]}),),
    ),
    CheckRule(
        name="positive",
        table="corporate_actions",
        policy=QUARANTINE,
        description="value is zero, negative or infinite",
        advice=PULL_AGAIN,
        expectations=between(0, LARGEST_FLOAT, "value", strict=True),
    ),
    CheckRule(
        name="split_ratio",
        table="corporate_actions",
        policy=QUARANTINE,
        description="split is beyond 1000 to 1",
        advice=PULL_AGAIN,
        check=row_checks.possible_splits,
    ),
    CheckRule(
        name="duplicate",
        table="corporate_actions",
        policy=QUARANTINE,
        description="key came more than once in one pull",
        advice=PULL_AGAIN,
        check=row_checks.unique_actions,
    ),
    CheckRule(
        name="future",
        table="corporate_actions",
        policy=BLOCK,
        description="ex-date lies after the night's clock",
        advice=LOOKAHEAD,
        check=row_checks.past_rows,
    ),
    CheckRule(
        name="dividend_size",
        table="corporate_actions",
        policy=QUARANTINE,
        description="dividend is worth the whole share or more",
        advice=PULL_AGAIN,
        check=row_checks.possible_dividends,
    ),
    CheckRule(
        name="dividend_scale",
        table="corporate_actions",
        policy=FLAG,
        description="dividend is over a quarter of the price, or 20 times off the symbol's usual one",
        advice="check currency and unit of the dividend",
        check=row_checks.usual_dividends,
    ),
)
FUNDING_RULES = (
    CheckRule(
        name="null",
        table="funding_rates",
        policy=QUARANTINE,
        description="rate is missing",
        advice=PULL_AGAIN,
        expectations=not_null("rate"),
    ),
    CheckRule(
        name="bounds",
        table="funding_rates",
        policy=QUARANTINE,
        description="rate is beyond ±4 % a settlement",
        advice="check whether it came in percent",
        expectations=between(-MAX_FUNDING_RATE, MAX_FUNDING_RATE, "rate"),
    ),
    CheckRule(
        name="duplicate",
        table="funding_rates",
        policy=QUARANTINE,
        description="key came more than once in one pull",
        advice=PULL_AGAIN,
        check=row_checks.unique_settlements,
    ),
    CheckRule(
        name="off_grid",
        table="funding_rates",
        policy=QUARANTINE,
        description="settlement is not on a whole hour",
        advice=PULL_AGAIN,
        check=row_checks.hourly_settlements,
    ),
    CheckRule(
        name="future",
        table="funding_rates",
        policy=BLOCK,
        description="settlement lies after the night's clock",
        advice=LOOKAHEAD,
        check=row_checks.past_rows,
    ),
    CheckRule(
        name="gap",
        table="funding_rates",
        policy=FLAG,
        description="settlement comes more than 8 hours after the one before",
        advice="pull the symbol's funding again: a missing settlement counts as no cost",
        check=row_checks.consecutive_settlements,
    ),
)
RULES = BAR_RULES + ACTION_RULES + FUNDING_RULES
