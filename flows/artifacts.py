"""The artifacts of a night in the Prefect UI: tables of leaderboard, signals and checks, and a plot of the equity.

A night is the run for one as-of date and universe.
"""

from __future__ import annotations

import base64
import io
from datetime import date, datetime

import pyarrow as pa
import pyarrow.compute
from prefect.artifacts import create_image_artifact, create_table_artifact

from flows.parameters import StepParameters
from tasks.publish import PublishedTables


def show_night(step: StepParameters, published: PublishedTables) -> None:
    """Creates the night's four artifacts.

    Their keys contain the universe and the source but not the date, so the UI keeps a history over nights.
    """
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
    """A PNG of the equity curves on a logarithmic axis, with the legend in the order of the rows.

    ``equity`` has the columns model, session and equity, sorted by rank and session.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for model in equity["model"].unique().to_pylist():
        curve = equity.filter(pa.compute.equal(equity["model"], model))
        axes.plot(curve["session"].to_pylist(), curve["equity"].to_pylist(), label=model, linewidth=1.3)
    axes.set(title=f"Equity net of costs: {title}", yscale="log", ylabel="equity, 1 = start")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="upper left", fontsize="small", title="by rank")
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _key(name: str, step: StepParameters) -> str:
    """The artifact key, such as ``signals-us-stocks-live``; Prefect refuses underscores in keys."""
    return f"{name}-{step.universe}-{step.source}".replace("_", "-")


def _cell(value: object) -> object:
    """A value as the UI's table shows it: floats with four significant digits, ISO dates, maps as text in percent."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, (date, datetime)):
        return value.isoformat()
    if isinstance(value, (list, dict)):
        return "; ".join(f"{k}: {v:.2%}" for k, v in dict(value).items())
    return value
