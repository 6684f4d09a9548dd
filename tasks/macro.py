"""The macro-regime example: forecasts the volatility regime of SPY over the coming month from macro-economic data.

The source articles claim that "Mamba outperformed Transformer by +6.4% accuracy on macro regime classification"
(SSF-07, SSF-08; ids: .github/sources.md) and state neither the label, nor the splits, nor an interval. This report
states all three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.features.indicators import FeatureError
from models.features.macro import MACRO_FEATURES, Observations, macro_features
from models.features.regimes import REGIMES, trailing_volatility
from models.scoring.bootstrap import percentile_interval, resampled_means
from models.training.regimes import NETWORKS, RegimeConfig, RegimeStudy, run_study
from tasks.errors import NoFoldsError, TapeMalformedError, TapeMissingError
from tasks.markets.recorded import YAHOO_DAILY, SymbolTable

BENCHMARK = "SPY"
CLAIMED_POINTS = 6.4  # accuracy of Mamba minus Transformer in the source articles, in percentage points
BLOCK_BARS = 42  # block length of the bootstrap in daily bars: twice the default horizon of a label


@dataclass(frozen=True, eq=False)
class MacroReport:
    """Results of the example.

    ``rows`` has one dict per model: model, accuracy with the 95 % interval low and high (fractions), seeds, parameters
    (both counts) and seconds. ``differences`` has, by other network, (difference, low, high): the accuracy of Mamba
    minus that of the network on the same days, with its 95 % interval. ``setting`` describes label, inputs and test.
    """

    rows: list[dict]
    differences: dict[str, tuple[float, float, float]]
    setting: list[str]

    def verdict(self) -> str:
        """One sentence that compares the source articles' figure with ours, in percentage points of accuracy."""
        difference, low, high = (100 * value for value in self.differences["transformer"])
        ours = f"{difference:+.1f} % [{low:+.1f}, {high:+.1f}]"
        return (
            f"Mamba − Transformer: source says {CLAIMED_POINTS:+.1f} %, here {ours}: "
            + ("no difference can be told" if low <= 0 <= high else "a difference")
            + f"; {CLAIMED_POINTS:+.1f} % is {'inside' if low <= CLAIMED_POINTS <= high else 'outside'} the interval"
        )

    def markdown(self) -> str:
        """The report as a Markdown text."""
        lines = ["## Macro regimes: Mamba against a causal Transformer", "", *(f"- {line}" for line in self.setting)]
        lines += [
            "",
            "| model | accuracy | 95 % interval | seeds | parameters | seconds |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {row['model']} | {row['accuracy']:.1%} | [{row['low']:.1%}, {row['high']:.1%}] | {row['seeds']} "
            f"| {row['parameters']} | {row['seconds']:.1f} |"
            for row in self.rows
        ]
        for other, (difference, low, high) in self.differences.items():
            points = f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            lines += ["", f"Mamba − {other}, same days: {points} points."]
        return "\n".join([*lines, "", f"**{self.verdict()}**", ""])


def macro_regimes(
    fred: Path, tape: Path, config: RegimeConfig | None = None, on_fold: Callable[[int, int], None] | None = None
) -> MacroReport:
    """The report on a FRED file and the SPY prices of a tape, a folder of recorded market data.

    ``on_fold`` receives the number of folds done and the number in all. Raises TapeError for an unusable file, and
    NoFoldsError when the history is too short for one fold.
    """
    observations = read_fred(fred)
    dates, prices = read_benchmark(tape)
    last_date = max(observed_on[-1] for observed_on, _ in observations.values())
    returns = np.concatenate([[np.nan], np.diff(np.log(prices))])
    config = config or RegimeConfig()
    price_features = np.stack([returns, np.log(trailing_volatility(returns, config.horizon_bars))], axis=-1)
    try:
        features = np.concatenate([macro_features(observations, dates), price_features], axis=1)
    except FeatureError as exc:
        raise TapeMalformedError(f"{fred}: {exc}") from exc
    try:
        return make_report(run_study(dates, features, returns, last_date, config, on_fold), config)
    except ValueError as exc:
        raise NoFoldsError(f"the macro example on {tape} and {fred}: {exc}") from exc


def make_report(result: RegimeStudy, config: RegimeConfig) -> MacroReport:
    """The report of a study: accuracies, differences, their intervals and the setting."""
    names = list(result.predictions)
    is_correct = [result.is_correct(name) for name in names]
    resampled = dict(zip(names, resampled_means(is_correct, min(BLOCK_BARS, len(result.dates))), strict=True))
    accuracy = {name: float(correct.mean()) for name, correct in zip(names, is_correct, strict=True)}
    rows = []
    for name in names:
        low, high = percentile_interval(resampled[name])
        rows.append(
            {
                "model": name,
                "accuracy": accuracy[name],
                "low": low,
                "high": high,
                "seeds": len(result.predictions[name]),
                "parameters": result.parameters[name],
                "seconds": result.seconds[name],
            }
        )
    differences = {
        name: (accuracy["mamba"] - accuracy[name], *percentile_interval(resampled["mamba"] - resampled[name]))
        for name in NETWORKS[::-1]
        if name != "mamba"
    }
    return MacroReport(rows, differences, describe_setting(result, config))


def describe_setting(result: RegimeStudy, config: RegimeConfig) -> list[str]:
    """Sentences on label, inputs and test, for a reader who has not read the code."""
    shares = ", ".join(f"{name} {np.mean(result.truth == k):.0%}" for k, name in enumerate(REGIMES))
    n_days = len(result.dates)
    thresholds = 100 * np.sqrt(252) * result.thresholds  # (folds, 2): lower and upper, in percent a year
    lower = thresholds[:, 0]
    upper = thresholds[:, 1]
    return [
        f"label: the coming {config.horizon_bars} sessions' realised volatility of {BENCHMARK}, by the terciles of the "
        f"training rows (a year, lower {lower.min():.0f} to {lower.max():.0f} %, upper {upper.min():.0f} to "
        f"{upper.max():.0f} %)",
        f"input: {config.lookback_bars} sessions of {len(MACRO_FEATURES)} FRED indicators as published by then, the "
        f"return of {BENCHMARK} and its trailing volatility; FRED's values are today's revisions, not vintages",
        f"test: {n_days} days, {result.dates[0]} to {result.dates[-1]}, {len(result.folds)} folds, {config.train_bars} "
        f"sessions to train on, purged by label end; came {shares}",
        f"that is about {n_days // config.horizon_bars} labels that do not overlap, hence the wide intervals",
        "baselines: the commonest regime of the training rows; the regime of the trailing month; logistic regression "
        f"on the quarter's last bar and mean, of {BENCHMARK} alone and of all inputs",
        f"intervals: moving blocks of {BLOCK_BARS} days and seeds, drawn together for all models",
        f"budget: {config.n_layers} layers of width {config.d_model}, at most {config.epochs} epochs, the same steps, "
        "optimiser and early stop for every network; nothing was tuned on the test days",
    ]


def read_fred(path: Path) -> Observations:
    """Dates and values of each series that the indicators need, oldest first, without missing values.

    ``path`` is a parquet file with the columns series, date and value. Raises TapeMissingError, TapeMalformedError.
    """
    if not path.is_file():
        raise TapeMissingError(f"no FRED file {path}")
    series_names = [indicator.series for indicator in MACRO_FEATURES]
    try:
        table = pq.read_table(path, columns=["series", "date", "value"]).cast(
            pa.schema([("series", pa.string()), ("date", pa.date32()), ("value", pa.float64())])
        )
    except (pa.ArrowException, OSError, ValueError) as exc:
        raise TapeMalformedError(f"{path} cannot be read as series, date and value: {exc}") from exc
    series_of_row = np.array(table["series"].to_pylist(), dtype=object)
    dates = table["date"].to_numpy().astype("datetime64[D]")
    values = table["value"].to_numpy()
    observations = {}
    for name in series_names:
        rows = np.flatnonzero((series_of_row == name) & ~np.isnan(values))
        rows = rows[np.argsort(dates[rows], kind="stable")]
        if not len(rows):
            raise TapeMalformedError(f"{path} has no values of {name}; needed: {', '.join(series_names)}")
        observations[name] = dates[rows], values[rows]
    return observations


def read_benchmark(tape: Path) -> tuple[np.ndarray, np.ndarray]:
    """Dates and adjusted closes of SPY on a tape, oldest first. Raises TapeMissingError, TapeMalformedError."""
    try:
        columns = SymbolTable(tape / YAHOO_DAILY, "date", ("adj_close",)).symbol_columns(BENCHMARK)
    except KeyError:
        raise TapeMalformedError(f"{tape / YAHOO_DAILY} has no {BENCHMARK}") from None
    if not (columns["adj_close"] > 0).all():
        raise TapeMalformedError(f"{tape / YAHOO_DAILY}: an adjusted close of {BENCHMARK} is missing or not positive")
    return columns["date"], columns["adj_close"]
