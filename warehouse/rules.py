"""The data rules as data: what each rule demands of the rows, and what happens to rows that fail it.

``block`` stops the night. ``quarantine`` keeps the rows out, with the reason. ``flag`` publishes the rows marked: bars
have the rule's name in ``flag``, other tables only the verdict. To add a rule: one entry here, and a check in
``warehouse/row_checks.py`` when no expectation of the library covers it.
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
MIN_SHARE_ON_LAST_BAR = 0.5  # a delisted symbol or two is no reason to stop; half the universe missing is
LARGEST = float(np.finfo(np.float64).max)  # as an upper bound it excludes infinity

RowCheck = Callable[[pd.DataFrame, CheckContext], np.ndarray]
Demand = tuple[str, dict[str, Any]]  # an expectation class of the library and its arguments


@dataclass(frozen=True)
class CheckRule:
    """One rule: rows of ``batch`` must meet every demand, or ``policy`` is applied to them.

    With a ``check`` the demand is that the check's column, named like the rule, is True. ``description`` completes
    "rows whose …" in verdicts; ``advice`` is what a person can do.
    """

    name: str
    table: str
    policy: Literal["block", "quarantine", "flag"]
    description: str
    advice: str
    demands: tuple[Demand, ...] = ()
    check: RowCheck | None = None
    mostly: float = 1.0
    batch: str = ""

    @property
    def batch_name(self) -> str:
        """The batch that the rule runs on: the delta of its table, unless ``batch`` names another."""
        return self.batch or self.table

    @property
    def expectations(self) -> tuple[Demand, ...]:
        """Its demands, or the demand that the column of its check is True."""
        return self.demands or (is_true(self.name),)


def is_true(column: str) -> Demand:
    """The demand that a boolean column is True."""
    return "ExpectColumnValuesToBeInSet", {"column": column, "value_set": [True]}


def not_null(*columns: str) -> tuple[Demand, ...]:
    """The demand that no value is null or NaN, per column."""
    return tuple(("ExpectColumnValuesToNotBeNull", {"column": column}) for column in columns)


def between(low: float, high: float, *columns: str, strict: bool = False) -> tuple[Demand, ...]:
    """The demand that values lie within [low, high], or above ``low`` when strict, per column; nulls pass."""
    return tuple(
        ("ExpectColumnValuesToBeBetween", {"column": c, "min_value": low, "max_value": high, "strict_min": strict})
        for c in columns
    )


PULL_AGAIN = "compare with the provider; a corrected answer is taken in by the next night"
LOOKAHEAD = "the ingest step let rows through that were not final; check the night's clock, then run it again"

BARS = (
    CheckRule(
        "null",
        "bars",
        QUARANTINE,
        "open, high, low, close or volume is missing",
        PULL_AGAIN,
        not_null(*OHLC, "volume"),
    ),
    CheckRule(
        "price",
        "bars",
        QUARANTINE,
        "price is zero, negative or infinite",
        PULL_AGAIN,
        between(0, LARGEST, *OHLC, strict=True),
    ),
    CheckRule(
        "volume", "bars", QUARANTINE, "volume is negative or infinite", PULL_AGAIN, between(0, LARGEST, "volume")
    ),
    CheckRule(
        "high_low",
        "bars",
        QUARANTINE,
        "high or low does not contain the open and the close",
        PULL_AGAIN,
        check=row_checks.ordered_prices,
    ),
    CheckRule(
        "duplicate",
        "bars",
        QUARANTINE,
        "key came more than once in one pull",
        PULL_AGAIN,
        check=row_checks.unique_bars,
    ),
    CheckRule(
        "bar_interval",
        "bars",
        QUARANTINE,
        "interval is not the universe's",
        "pull the universe's own interval",
        check=row_checks.bars_of_interval,
    ),
    CheckRule(
        "off_grid",
        "bars",
        QUARANTINE,
        "ts is no bar open of the calendar",
        "check the exchange calendar and the provider's time zone",
        check=row_checks.bars_on_grid,
    ),
    CheckRule(
        "future", "bars", BLOCK, "bar had not closed at the night's clock", LOOKAHEAD, check=row_checks.closed_bars
    ),
    CheckRule(
        "unit_error",
        "bars",
        QUARANTINE,
        "price is off its own history by 100, by 1000, or by a factor that reverts",
        PULL_AGAIN,
        check=row_checks.bars_in_unit,
    ),
    CheckRule(
        "split_scale",
        "bars",
        QUARANTINE,
        "price breaks by the ratio of a split nearby",
        "pull the symbol's whole history again, on one side of the split",
        check=row_checks.bars_in_split_scale,
    ),
    CheckRule(
        "jump",
        "bars",
        FLAG,
        "return is beyond 12 robust deviations of the 60 before it",
        "look for news before trusting the symbol's signal",
        check=row_checks.bars_without_jump,
    ),
    CheckRule(
        "stale",
        "bars",
        FLAG,
        "close has not moved for five bars",
        "check that the symbol still trades",
        check=row_checks.moving_bars,
    ),
    CheckRule(
        "zero_volume",
        "bars",
        FLAG,
        "volume is zero",
        "check that the symbol still trades",
        check=row_checks.traded_bars,
    ),
    CheckRule(
        "gap",
        "bars",
        FLAG,
        "expected bar is missing",
        "pull the symbol again, or end its membership if it no longer trades",
        (is_true("present"),),
        batch="coverage",
    ),
    CheckRule(
        "last_bar",
        "bars",
        BLOCK,
        "latest closed bar is missing",
        "wait until the provider has it, or check that the tape reaches this night",
        (is_true("present"),),
        mostly=MIN_SHARE_ON_LAST_BAR,
        batch="latest",
    ),
)
CORPORATE_ACTIONS = (
    CheckRule("null", "corporate_actions", QUARANTINE, "value is missing", PULL_AGAIN, not_null("value")),
    CheckRule(
        "kind",
        "corporate_actions",
        QUARANTINE,
        "kind is neither dividend nor split",
        PULL_AGAIN,
        (("ExpectColumnValuesToBeInSet", {"column": "kind", "value_set": ["dividend", "split"]}),),
    ),
    CheckRule(
        "positive",
        "corporate_actions",
        QUARANTINE,
        "value is zero, negative or infinite",
        PULL_AGAIN,
        between(0, LARGEST, "value", strict=True),
    ),
    CheckRule(
        "split_ratio",
        "corporate_actions",
        QUARANTINE,
        "split is beyond 1000 to 1",
        PULL_AGAIN,
        check=row_checks.possible_splits,
    ),
    CheckRule(
        "duplicate",
        "corporate_actions",
        QUARANTINE,
        "key came more than once in one pull",
        PULL_AGAIN,
        check=row_checks.unique_actions,
    ),
    CheckRule(
        "future",
        "corporate_actions",
        BLOCK,
        "ex-date lies after the night's clock",
        LOOKAHEAD,
        check=row_checks.past_rows,
    ),
    CheckRule(
        "dividend_size",
        "corporate_actions",
        QUARANTINE,
        "dividend is worth the whole share or more",
        PULL_AGAIN,
        check=row_checks.possible_dividends,
    ),
    CheckRule(
        "dividend_scale",
        "corporate_actions",
        FLAG,
        "dividend is over a quarter of the price, or 20 times off the symbol's usual one",
        "check currency and unit of the dividend",
        check=row_checks.usual_dividends,
    ),
)
FUNDING_RATES = (
    CheckRule("null", "funding_rates", QUARANTINE, "rate is missing", PULL_AGAIN, not_null("rate")),
    CheckRule(
        "bounds",
        "funding_rates",
        QUARANTINE,
        "rate is beyond ±4 % a settlement",
        "check whether it came in percent",
        between(-MAX_FUNDING_RATE, MAX_FUNDING_RATE, "rate"),
    ),
    CheckRule(
        "duplicate",
        "funding_rates",
        QUARANTINE,
        "key came more than once in one pull",
        PULL_AGAIN,
        check=row_checks.unique_settlements,
    ),
    CheckRule(
        "off_grid",
        "funding_rates",
        QUARANTINE,
        "settlement is not on a whole hour",
        PULL_AGAIN,
        check=row_checks.hourly_settlements,
    ),
    CheckRule(
        "future",
        "funding_rates",
        BLOCK,
        "settlement lies after the night's clock",
        LOOKAHEAD,
        check=row_checks.past_rows,
    ),
    CheckRule(
        "gap",
        "funding_rates",
        FLAG,
        "settlement comes more than 8 hours after the one before",
        "pull the symbol's funding again: a missing settlement counts as no cost",
        check=row_checks.consecutive_settlements,
    ),
)
RULES = BARS + CORPORATE_ACTIONS + FUNDING_RATES
