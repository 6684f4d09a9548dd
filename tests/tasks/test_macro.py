"""The macro-regime example on recorded data (SSF-07, see .github/sources.md), and its errors for unusable files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.training.regimes import BASELINES, NETWORKS, RegimeConfig
from tasks.errors import NoFoldsError, TapeMalformedError, TapeMissingError
from tasks.macro import CLAIMED_POINTS, MacroReport, macro_regimes, read_benchmark, read_fred

SMALL = RegimeConfig(
    lookback_bars=63, train_bars=504, test_bars=504, d_model=8, n_layers=1, epochs=2, stride_bars=8, seeds=(0, 1)
)


@pytest.fixture(scope="module")
def report(shared_data: Path) -> MacroReport:
    """The report of a small configuration on the recorded FRED series and SPY."""
    return macro_regimes(shared_data / "macro" / "fred.parquet", shared_data / "tape", SMALL)


def test_the_accuracy_of_every_model_lies_inside_its_interval(report: MacroReport) -> None:
    assert [row["model"] for row in report.rows] == [*BASELINES, *NETWORKS]
    for row in report.rows:
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
        assert row["high"] > row["low"]


def test_each_difference_is_the_difference_of_the_accuracies_and_lies_inside_its_interval(report: MacroReport) -> None:
    accuracy = {row["model"]: row["accuracy"] for row in report.rows}
    assert list(report.differences) == ["transformer", "lstm"]
    for other, (difference, low, high) in report.differences.items():
        assert difference == pytest.approx(accuracy["mamba"] - accuracy[other])
        assert low < difference < high


def test_the_report_compares_the_source_articles_figure_with_ours(report: MacroReport) -> None:
    """SSF-08."""
    text = report.markdown()
    difference, low, high = (100 * value for value in report.differences["transformer"])
    assert f"source says {CLAIMED_POINTS:+.1f} %, here {difference:+.1f} % [{low:+.1f}, {high:+.1f}]" in text
    assert "revisions, not vintages" in text
    n_header_lines = 1
    assert text.count("\n| ") == n_header_lines + len(report.rows)


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        ((0.01, -0.03, 0.04), "no difference can be told; +6.4 % is outside"),
        ((0.01, -0.03, 0.07), "no difference can be told; +6.4 % is inside"),
        ((0.05, 0.01, 0.09), "a difference; +6.4 % is inside"),
        ((-0.05, -0.09, -0.01), "a difference; +6.4 % is outside"),
    ],
)
def test_the_verdict_follows_from_the_interval(difference: tuple[float, float, float], verdict: str) -> None:
    """``difference`` is (difference, low, high) as fractions; the source articles claim 6.4 percentage points."""
    report = MacroReport(rows=[], differences={"transformer": difference}, setting=[])
    _, _, text = report.verdict().partition("]: ")
    assert text.startswith(verdict)


def write_parquet(path: Path, columns: dict) -> Path:
    """Writes the columns to ``path`` and returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def test_unusable_files_raise_errors_that_name_them(tmp_path: Path) -> None:
    with pytest.raises(TapeMissingError, match=r"absent\.parquet"):
        read_fred(tmp_path / "absent.parquet")
    with pytest.raises(TapeMalformedError, match="cannot be read as series, date and value"):
        read_fred(write_parquet(tmp_path / "other.parquet", {"a": [1]}))
    day = np.array(["2020-01-01"], dtype="datetime64[D]")
    with pytest.raises(TapeMalformedError, match="no values of VIXCLS"):
        read_fred(write_parquet(tmp_path / "few.parquet", {"series": ["CPI"], "date": day, "value": [1.0]}))
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(TapeMalformedError, match=r"text\.parquet"):
        read_fred(tmp_path / "text.parquet")
    with pytest.raises(TapeMissingError, match=r"bars_1d\.parquet"):
        read_benchmark(tmp_path)
    write_parquet(tmp_path / "yahoo" / "bars_1d.parquet", {"symbol": ["AAPL"], "date": day, "adj_close": [1.0]})
    with pytest.raises(TapeMalformedError, match="has no SPY"):
        read_benchmark(tmp_path)
    write_parquet(tmp_path / "yahoo" / "bars_1d.parquet", {"symbol": ["SPY"], "date": day, "adj_close": [0.0]})
    with pytest.raises(TapeMalformedError, match="not positive"):
        read_benchmark(tmp_path)


def test_too_few_sessions_for_one_fold_raise(shared_data: Path) -> None:
    with pytest.raises(NoFoldsError, match="too few for one fold"):
        macro_regimes(
            shared_data / "macro" / "fred.parquet", shared_data / "tape", RegimeConfig(train_bars=5000, seeds=(0,))
        )
