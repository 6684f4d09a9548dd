"""The model table and ablation of the source articles (S4-44, S4-47) from a real night: ``python -m
tests.benchmarks.market_table --out FILE.json``.

One night runs in this process, in a temporary warehouse, with the zoo's models and the ablation's variants, which are
registered for the run. Fits run side by side with one thread each, as in every night. Without recorded data the file
has only the reason; ``--quick`` uses the simulated market and one epoch per fit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any
from unittest import mock

import torch

from models import zoo
from models.nets.estimators import Estimator
from models.nets.forecast import Batch
from models.nets.sequence_layers import sequence
from models.training.artifact import read_header
from models.training.errors import FitError
from models.zoo import Network, Spec
from tests.benchmarks.contest import short_error

TAPE = Path(__file__).parents[3] / "shared" / "data" / "tape"
MODELS = (
    *("lstm", "gru", "transformer", "s4d", "s4", "mamba"),
    *("mamba2", "s5", "dss", "tcn", "ridge", "gradient_boosting", "garch"),
)
RULES = ("buy_and_hold", "momentum")
# the full S4 of the source articles has 64 states; the zoo's default is 16
VARIANTS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "s4_full": ("s4", 64, {}),
    "s4_no_hippo": ("s4", 64, {"spectrum": "random"}),
    "s4_fixed_step": ("s4", 64, {"learn_dt": False}),
    "s4_32_states": ("s4", 32, {}),
    "s4_128_states": ("s4", 128, {}),
    "s4d_64_states": ("s4d", 64, {}),
}
# settings that differ from those of a night: fewer and longer test windows, so that 19 networks end in time
SHORTER = {"NIGHTLY_PROFILES__STOCKS__FOLDS__TEST_BARS": "252", "NIGHTLY_PROFILES__STOCKS__TRAIN__EPOCHS": "4"}
QUICK = {"NIGHTLY_PROFILES__DEMO_STOCKS__TRAIN__EPOCHS": "1"}
LEADERBOARD = """
SELECT l.model, l.sharpe, l.sortino, l.max_drawdown, l.annual_return, l.win_rate, l.sessions,
    l.first_session::VARCHAR AS first_session, l.last_session::VARCHAR AS last_session,
    t.parameters, t.trial_id, f.folds, f.validation_loss
FROM store.leaderboard AS l
LEFT JOIN store.trials AS t ON t.model = l.model
LEFT JOIN (
    SELECT trial_id, count(*) AS folds, avg(validation_loss) AS validation_loss FROM store.folds GROUP BY trial_id
) AS f USING (trial_id)
ORDER BY l.rank
"""
ARTIFACT = "SELECT artifact FROM store.folds WHERE trial_id = ? AND fold = ?"


def variant(layer: str, d_state: int, options: dict[str, Any], spec: Spec, *sizes: int, **more: Any) -> Any:
    """The network of one line of the ablation."""
    return sequence(replace(spec, model=layer, d_state=d_state), *sizes, **options, **more)


def usable_models(models: list[str]) -> tuple[list[str], dict[str, str]]:
    """The models that can be built and run, and the errors of the others: a model that fails would end the night."""
    batch = Batch(torch.randn(1, 40, 2, 4), torch.ones(1, 40, 2, dtype=torch.bool), torch.ones(1, 40))
    usable = []
    failed = {}
    for name in models:
        try:
            network = zoo.build(Spec(name), 4, 2)
            if not isinstance(network, Estimator):  # an estimator cannot forecast before it is fitted
                network(batch)
        except Exception as error:
            failed[name] = short_error(error)
        else:
            usable.append(name)
    return usable, failed


def night_table(quick: bool, folder: Path, without: dict[str, str]) -> dict[str, Any]:
    """The night's figures by model: ``rows``, ``failed`` and a description; or ``skipped``, the reason why there are
    none.

    ``without`` gives the models to leave out and why. If models end the night, ``blamed`` has their errors, so that it
    can be run again without them.
    """
    if not quick and not TAPE.is_dir():
        return {"skipped": f"no recorded market data at {TAPE}"}
    os.environ |= QUICK if quick else SHORTER
    zoo.ENTRIES |= {name: Network(partial(variant, *arguments), name) for name, arguments in VARIANTS.items()}
    models, failed = usable_models([name for name in (*MODELS, *VARIANTS) if name not in without])
    failed |= without
    import tasks.train
    from flows.parameters import NightParameters
    from flows.report import run_night
    from flows.terminal import console
    from warehouse.connect import Warehouse

    warehouse = Warehouse.from_url(folder / "warehouse.duckdb")
    market: dict[str, Any] = {"source": "recorded", "tape": TAPE, "universes": ("us_stocks",)}
    if quick:
        market = {"universes": ("demo_stocks",)}
    night = NightParameters(
        as_of=date(2024, 6, 28), models=(*models, *RULES), seeds=(0,), warehouse=str(warehouse.path), **market
    )
    seconds: dict[str, list[float]] = defaultdict(list)
    blamed: dict[str, str] = {}
    fit = tasks.train.fit_fold
    predict = tasks.train.predict_fold
    with (
        mock.patch.object(tasks.train, "fit_fold", record_times(fit, lambda spec: spec.model, seconds, blamed)),
        mock.patch.object(tasks.train, "predict_fold", record_times(predict, model_of, defaultdict(list), blamed)),
    ):
        published = run_night(night, warehouse, folder / "prefect", console())
    if not published:
        with warehouse.read() as con:
            messages = con.execute("SELECT message FROM store.nights").fetchall()
        return {"skipped": f"the night was not published: {messages}", "failed": failed, "blamed": blamed}
    rows = figures(night, warehouse, seconds, failed)
    description = f"{market.get('source', 'simulated')} {market['universes'][0]}"
    return {"market": description, "settings": QUICK if quick else SHORTER, "rows": rows, "failed": failed}


def model_of(artifact: Path) -> str:
    """The name of the model in a model file."""
    return read_header(artifact).spec.model


def record_times(
    work: Callable[..., Any], name: Callable[[Any], str], seconds: dict[str, list[float]], blamed: dict[str, str]
) -> Callable[..., Any]:
    """``work`` that also records its seconds in ``seconds``, or its error in ``blamed``, by the name of its model."""

    def run(first: Any, *arguments: Any, **more: Any) -> Any:
        start = time.perf_counter()
        try:
            result = work(first, *arguments, **more)
        except FitError:  # the night leaves such a fold out and continues
            raise
        except Exception as error:
            if type(error).__name__ != "StoppedError":  # the failure of another model stopped it
                blamed[name(first)] = short_error(error)
            raise
        seconds[name(first)].append(time.perf_counter() - start)
        return result

    return run


def figures(
    night: Any, warehouse: Any, seconds: dict[str, list[float]], failed: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """The leaderboard's figures, seconds of a fit, and milliseconds of a bar and of a fold's forecasts, by model."""
    from flows.parameters import StepParameters
    from flows.train import recipe_of
    from tasks.train import load_training_data

    universe = night.universes[0]
    step = StepParameters(universe=universe, **night.model_dump(exclude={"universes"}))
    settings = step.settings()
    opened = step.open_night(settings)
    data = load_training_data.fn(opened, recipe_of(settings.profile(universe)))
    last_whole_fold = [fold for fold in data.folds if fold.test_stop <= len(data.features)][-1]
    with warehouse.read() as con:
        rows = con.execute(LEADERBOARD).to_arrow_table().to_pylist()
        trials = [row["trial_id"] for row in rows if row["trial_id"]]
        artifacts = {trial: con.execute(ARTIFACT, [trial, last_whole_fold.index]).fetchone() for trial in trials}
    by_model = {}
    for row in rows:
        model = row["model"]
        by_model[model] = {**row, "train_s": mean(seconds[model]) if seconds[model] else None}
        if artifact := artifacts.get(row["trial_id"]):
            try:
                by_model[model] |= inference(warehouse.artifacts / artifact[0], data, last_whole_fold)
            except Exception as error:
                failed[f"{model}, inference"] = short_error(error)
    return by_model


def inference(artifact: Path, data: Any, fold: Any) -> dict[str, Any]:
    """Milliseconds of one step with a bar of all assets, and of all forecasts of a fold's test window."""
    from models.graphs.context import SideInputs
    from models.training.artifact import load_artifact
    from models.training.data import Inputs
    from models.training.fit import predict_fold

    def predict() -> None:
        predict_fold(artifact, data.features, data.side_inputs_of(read_header(artifact).spec), fold)

    loaded = load_artifact(artifact)
    assets = len(data.features.symbols)
    header = loaded.header
    network = loaded.network
    times = {"assets": assets, "fold_bars": fold.test_stop - fold.test_start}
    times["fold_ms"] = median_ms(predict, 3)
    if hasattr(network, "step"):
        panel = data.features.rows(fold.test_start - 1, fold.test_start + 1)
        bar = Inputs.from_panel(panel, header.scaler, header.bar_us, SideInputs()).batch(torch.tensor([[1]]))
        state = network.initial_state(1, assets)
        with torch.no_grad():
            _, state = network.step(bar, state)
            times["bar_ms"] = median_ms(lambda: network.step(bar, state), 15)
    return times


def median_ms(work: Callable[[], object], runs: int) -> float:
    """The median milliseconds of several runs."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return 1e3 * median(seconds)


def main() -> None:
    """Writes the figures to a JSON file. If models ended the night, runs it again without them, in a new process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--folder", type=Path, help="of the warehouse [default: a temporary one]")
    parser.add_argument("--without", type=json.loads, default={}, help="models to leave out and why, as JSON")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            table = night_table(arguments.quick, folder, arguments.without)
        except Exception as error:
            table = {"skipped": short_error(error)}
        arguments.out.write_text(json.dumps(table, indent=1, default=str))
        if table.get("blamed"):
            print(f"the night again, without {', '.join(table['blamed'])}", file=sys.stderr, flush=True)
            without = json.dumps(arguments.without | table["blamed"])
            command = [
                sys.executable,
                "-m",
                "tests.benchmarks.market_table",
                "--out",
                arguments.out,
                "--folder",
                folder,
            ]
            subprocess.run([*command, "--without", without, *["--quick"] * arguments.quick], check=False)


if __name__ == "__main__":
    main()
