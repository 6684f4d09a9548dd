"""Flow parameters as pydantic models: the Prefect UI's form shows their bounds and refuses values outside them.

A night is the run for one as-of date. A tape is a folder of recorded market data. The zoo is the registry of models.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from flows.settings import Settings, SettingsError, load_settings
from models.sessions import bar_closes, bar_opens, midnight_after
from tasks.night import Night
from warehouse.connect import Warehouse
from warehouse.migrate import migrate
from warehouse.universes import Universe, load_universe

Source = Literal["simulated", "recorded", "live"]
WAREHOUSE_FIELD = Field(description="DuckDB file; empty: the setting warehouse_url")
FORM_ORDER = ("as_of", "universe", "source", "tape", "universes", "warehouse", "models", "seeds")


def _sort_form(schema: dict[str, Any]) -> None:
    """Sorts the properties of a JSON schema in place, in the order of FORM_ORDER; other properties come last."""
    order = {name: position for position, name in enumerate(FORM_ORDER)}
    schema["properties"] = dict(sorted(schema["properties"].items(), key=lambda item: order.get(item[0], len(order))))


class NightOptions(BaseModel):
    """Parameters that the flow of a whole night and the flow of each step have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_sort_form)

    source: Annotated[
        Source, Field(description="live: Yahoo and Bybit; recorded: a tape folder; simulated: the built-in market")
    ] = "simulated"
    tape: Annotated[
        Path | None,
        Field(description="folder with a recorded tape; required for source=recorded, forbidden otherwise"),
    ] = None
    warehouse: Annotated[str | None, WAREHOUSE_FIELD] = None
    models: Annotated[
        tuple[str, ...] | None, Field(description="names of models in the zoo; empty: the setting models")
    ] = None
    seeds: Annotated[
        tuple[int, ...] | None,
        Field(
            description="a network is fitted once per seed and the forecasts are averaged; empty: the setting seeds",
            max_length=16,
        ),
    ] = None

    def settings(self) -> Settings:
        """The settings, overridden by these parameters. Raises SettingsError."""
        return load_settings(warehouse_url=self.warehouse, models=self.models, seeds=self.seeds)


class NightParameters(NightOptions):
    """Parameters of the flow `nightly`."""

    as_of: Annotated[
        date | None,
        Field(description="the night, a UTC date; empty: the latest day that is over (simulated: a fixed day)"),
    ] = None
    universes: Annotated[
        tuple[str, ...], Field(description="empty: the demo universes when simulated, else us_stocks and crypto")
    ] = ()

    def universe_names(self) -> tuple[str, ...]:
        """Names of the universes of this night, or the default ones of its source."""
        if self.universes:
            return self.universes
        return ("demo_stocks", "demo_crypto") if self.source == "simulated" else ("us_stocks", "crypto")


class StepParameters(NightOptions):
    """Parameters of the flow of a single step: the night and one universe."""

    as_of: Annotated[date, Field(description="the night, a UTC date")]
    universe: Annotated[str, Field(description="a name of the view `universes`")]

    def open_night(self, settings: Settings) -> Night:
        """The night of these parameters, in the migrated warehouse of ``settings``."""
        warehouse = open_warehouse(settings)
        universe = load_universe(warehouse, self.universe)
        clock = night_clock(self.source, self.as_of)
        return Night(self.as_of, self.source, universe, warehouse, clock, self.tape)


def open_warehouse(settings: Settings) -> Warehouse:
    """The warehouse of the settings, migrated to the SQL files of this program."""
    warehouse = Warehouse.from_url(settings.warehouse_url)
    migrate(warehouse)
    return warehouse


def load_bybit_universe(warehouse: Warehouse, name: str, url: str | None, rest_url: str | None) -> Universe:
    """The universe ``name``. Raises SettingsError when its provider is not Bybit, or for a rest_url without url."""
    universe = load_universe(warehouse, name)
    if universe.provider != "bybit":
        raise SettingsError(f"{universe.name} is not a universe of Bybit: choose another one, such as crypto")
    if rest_url and not url:
        raise SettingsError("rest_url needs url: Bybit's own data come with Bybit's own REST service")
    return universe


def night_clock(source: Source, as_of: date, now: datetime | None = None) -> datetime:
    """The clock of the night, an aware UTC instant: it may use no data received later.

    It is the end of the UTC day ``as_of``. For a live source it is ``now`` (default: the present) when that is earlier.
    """
    end = midnight_after(as_of)
    return min(end, now or datetime.now(UTC)) if source == "live" else end


def latest_night(calendars: set[str], now: datetime | None = None) -> date:
    """Today's UTC date if every calendar has a daily bar today that has closed, otherwise yesterday's date.

    ``now`` is an aware instant (default: the present).
    """
    now = now or datetime.now(UTC)
    today = now.date()
    naive_now = now.replace(tzinfo=None)
    for calendar in calendars:
        open_times = bar_opens(calendar, "1d", today, today + timedelta(days=1))
        if not len(open_times) or bar_closes(calendar, "1d", open_times)[-1] > naive_now:
            return today - timedelta(days=1)
    return today
