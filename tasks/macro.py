"""The macro-regime example: forecasts the volatility regime of the SPY over the coming month from macro-economic data.

The source articles claim that "Mamba outperformed Transformer by +6.4% accuracy on macro regime classification"
(SSF-07, SSF-08) and state neither the label, nor the splits, nor an interval. This report states all three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.features.indicators import FeatureError
from models.features.macro import INDICATORS, Observations, macro_features
from models.features.regimes import REGIMES, trailing_volatility
from models.scoring.bootstrap import interval, resampled_means
from models.training.regimes import NETWORKS, RegimeConfig, RegimeStudy, study
from tasks.errors import NoFoldsError, TapeMalformedError, TapeMissingError
from tasks.markets.recorded import YAHOO_DAILY, SymbolTable

BENCHMARK = "SPY"
CLAIMED_POINTS = 6.4  # in the source articles, Mamba over Transformer
BLOCK_BARS = 42  # two labels long


@dataclass(frozen=True, eq=False)
class MacroReport:
    """Results of the example.

    ``rows``: accuracy of every model with its 95 % interval, as fractions; ``differences``: accuracy of Mamba minus
    that of each other network on the same days, with intervals; ``setting``: label, inputs and test, in sentences.
    """

    rows: list[dict]
    differences: dict[str, tuple[float, float, float]]
    setting: list[str]

    def verdict(self) -> str:
        """The figure of the source articles beside ours, in percentage points of accuracy."""
        mean, low, high = (100 * value for value in self.differences["transformer"])
        return (
            f"Mamba − Transformer: source says {CLAIMED_POINTS:+.1f} %, here {mean:+.1f} % [{low:+.1f}, {high:+.1f}]: "
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
        for other, (mean, low, high) in self.differences.items():
            points = f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            lines += ["", f"Mamba − {other}, same days: {points} points."]
        return "\n".join([*lines, "", f"**{self.verdict()}**", ""])


def macro_regimes(
    fred: Path, tape: Path, config: RegimeConfig | None = None, on_fold: Callable[[int, int], None] | None = None
) -> MacroReport:
    """The report on FRED's file and the SPY of a recorded tape. Raises TapeError, NoFoldsError."""
    observations = read_fred(fred)
    dates, prices = read_benchmark(tape)
    last = max(days[-1] for days, _ in observations.values())
    returns = np.concatenate([[np.nan], np.diff(np.log(prices))])
    config = config or RegimeConfig()
    price_features = np.stack([returns, np.log(trailing_volatility(returns, config.horizon_bars))], axis=-1)
    try:
        features = np.concatenate([macro_features(observations, dates), price_features], axis=1)
    except FeatureError as exc:
        raise TapeMalformedError(f"{fred}: {exc}") from exc
    try:
        return make_report(study(dates, features, returns, last, config, on_fold), config)
    except ValueError as exc:
        raise NoFoldsError(f"the macro example on {tape} and {fred}: {exc}") from exc


def make_report(result: RegimeStudy, config: RegimeConfig) -> MacroReport:
    """The report of a study: accuracies, intervals and the setting."""
    names = list(result.predictions)
    scores = [result.correct(name) for name in names]
    resampled = dict(zip(names, resampled_means(scores, min(BLOCK_BARS, len(result.dates))), strict=True))
    accuracy = {name: float(score.mean()) for name, score in zip(names, scores, strict=True)}
    rows = []
    for name in names:
        low, high = interval(resampled[name])
        row = {"model": name, "accuracy": accuracy[name], "low": low, "high": high}
        row |= {"seeds": len(result.predictions[name]), "parameters": result.parameters[name]}
        rows.append({**row, "seconds": result.seconds[name]})
    differences = {
        name: (accuracy["mamba"] - accuracy[name], *interval(resampled["mamba"] - resampled[name]))
        for name in NETWORKS[::-1]
        if name != "mamba"
    }
    return MacroReport(rows, differences, describe_setting(result, config))


def describe_setting(result: RegimeStudy, config: RegimeConfig) -> list[str]:
    """Label, inputs and test in sentences, for a reader who has not read the code."""
    shares = ", ".join(f"{name} {np.mean(result.truth == k):.0%}" for k, name in enumerate(REGIMES))
    days = len(result.dates)
    edges = 100 * np.sqrt(252) * result.thresholds  # in percent a year
    return [
        f"label: the coming {config.horizon_bars} sessions' realised volatility of {BENCHMARK}, by the terciles of the "
        f"training rows (a year, lower {edges[:, 0].min():.0f} to {edges[:, 0].max():.0f} %, upper "
        f"{edges[:, 1].min():.0f} to {edges[:, 1].max():.0f} %)",
        f"input: {config.lookback_bars} sessions of {len(INDICATORS)} FRED indicators as published by then, the return "
        f"of {BENCHMARK} and its trailing volatility; FRED's values are today's revisions, not vintages",
        f"test: {days} days, {result.dates[0]} to {result.dates[-1]}, {len(result.folds)} folds, {config.train_bars} "
        f"sessions to train on, purged by label end; came {shares}",
        f"that is about {days // config.horizon_bars} labels that do not overlap, hence the wide intervals",
        "baselines: the commonest regime of the training rows; the regime of the trailing month; logistic regression "
        f"on the quarter's last bar and mean, of {BENCHMARK} alone and of all inputs",
        f"intervals: moving blocks of {BLOCK_BARS} days and seeds, drawn together for all models",
        f"budget: {config.n_layers} layers of width {config.d_model}, at most {config.epochs} epochs, the same steps, "
        "optimiser and early stop for every network; nothing was tuned on the test days",
    ]


def read_fred(path: Path) -> Observations:
    """The series that the indicators need, oldest first, missing values left out. Raises TapeMalformedError."""
    if not path.is_file():
        raise TapeMissingError(f"no FRED file {path}")
    needed = [indicator.series for indicator in INDICATORS]
    try:
        table = pq.read_table(path, columns=["series", "date", "value"]).cast(
            pa.schema([("series", pa.string()), ("date", pa.date32()), ("value", pa.float64())])
        )
    except (pa.ArrowException, OSError, ValueError) as exc:
        raise TapeMalformedError(f"{path} cannot be read as series, date and value: {exc}") from exc
    series = np.array(table["series"].to_pylist(), dtype=object)
    dates = table["date"].to_numpy().astype("datetime64[D]")
    values = table["value"].to_numpy()
    observations = {}
    for name in needed:
        rows = np.flatnonzero((series == name) & ~np.isnan(values))
        rows = rows[np.argsort(dates[rows], kind="stable")]
        if not len(rows):
            raise TapeMalformedError(f"{path} has no values of {name}; needed: {', '.join(needed)}")
        observations[name] = dates[rows], values[rows]
    return observations


def read_benchmark(tape: Path) -> tuple[np.ndarray, np.ndarray]:
    """Dates and adjusted closes of the SPY on a recorded tape. Raises TapeMissingError, TapeMalformedError."""
    try:
        columns = SymbolTable(tape / YAHOO_DAILY, "date", ("adj_close",)).symbol_columns(BENCHMARK)
    except KeyError:
        raise TapeMalformedError(f"{tape / YAHOO_DAILY} has no {BENCHMARK}") from None
    if not (columns["adj_close"] > 0).all():
        raise TapeMalformedError(f"{tape / YAHOO_DAILY}: an adjusted close of {BENCHMARK} is missing or not positive")
    return columns["date"], columns["adj_close"]
