"""The artifacts of a night in the Prefect UI: leaderboard, signals, checks, and the equity curves as a picture."""

from __future__ import annotations

import base64
import io
from datetime import date, datetime

import pyarrow as pa
import pyarrow.compute
from prefect.artifacts import create_image_artifact, create_table_artifact

from flows.parameters import StepParameters
from tasks.publish import Published


def show_night(step: StepParameters, published: Published) -> None:
    """Creates the night's four artifacts. Their keys contain universe and source, so the UI keeps a history of each."""
    title = f"{step.universe}, night {step.as_of}, {step.source}"
    for name in ("leaderboard", "signals", "checks"):
        table: pa.Table = getattr(published, name)
        create_table_artifact(
            table=[{key: _cell(value) for key, value in row.items()} for row in table.to_pylist()],
            key=_key(name, step),
            description=f"{name.capitalize()} of {title}",
        )
    create_image_artifact(
        image_url="data:image/png;base64," + base64.b64encode(equity_plot(published.equity, title)).decode(),
        key=_key("equity", step),
        description=f"Equity net of costs, {title}",
    )


def equity_plot(equity: pa.Table, title: str) -> bytes:
    """A PNG of the equity curves (columns model, rank, session, equity), logarithmic, the best model first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for model in equity["model"].unique().to_pylist():
        curve = equity.filter(pa.compute.equal(equity["model"], model))
        axes.plot(curve["session"].to_pylist(), curve["equity"].to_pylist(), label=model, linewidth=1.3)
    axes.set(title=f"Equity net of costs: {title}", yscale="log", ylabel="equity, 1 = start")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="upper left", fontsize="small", title="by rank")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _key(name: str, step: StepParameters) -> str:
    return f"{name}-{step.universe}-{step.source}".replace("_", "-")


def _cell(value: object) -> object:
    """A value as the UI's table shows it: four digits, ISO dates, maps as text."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, (date, datetime)):
        return value.isoformat()
    if isinstance(value, (list, dict)):
        return "; ".join(f"{k}: {v:.2%}" for k, v in dict(value).items())
    return value
