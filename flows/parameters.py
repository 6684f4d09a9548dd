"""Flow parameters as pydantic models: the Prefect UI's form shows their bounds and refuses values outside them."""

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
WAREHOUSE = Field(description="DuckDB file; empty: the setting warehouse_url")
FORM_ORDER = ("as_of", "universe", "source", "tape", "universes", "warehouse", "models", "seeds")


def _sort_form(schema: dict[str, Any]) -> None:
    """Sorts the properties of a JSON schema as FORM_ORDER, which the UI's form follows; others come last."""
    order = {name: position for position, name in enumerate(FORM_ORDER)}
    schema["properties"] = dict(sorted(schema["properties"].items(), key=lambda item: order.get(item[0], len(order))))


class NightOptions(BaseModel):
    """Parameters that a whole night and each of its steps have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_sort_form)

    source: Annotated[
        Source, Field(description="live: Yahoo and Bybit; recorded: a tape folder; simulated: the built-in market")
    ] = "simulated"
    tape: Annotated[
        Path | None,
        Field(description="folder with a recorded tape; needed for source=recorded, and for nothing else"),
    ] = None
    warehouse: Annotated[str | None, WAREHOUSE] = None
    models: Annotated[tuple[str, ...] | None, Field(description="names of the zoo; empty: the setting models")] = None
    seeds: Annotated[tuple[int, ...] | None, Field(description="one fit per seed, averaged", max_length=16)] = None

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
        """The universes of this night."""
        if self.universes:
            return self.universes
        return ("demo_stocks", "demo_crypto") if self.source == "simulated" else ("us_stocks", "crypto")


class StepParameters(NightOptions):
    """Parameters of a single step: the night and its universe."""

    as_of: Annotated[date, Field(description="the night, a UTC date")]
    universe: Annotated[str, Field(description="a name of the view `universes`")]

    def open_night(self, settings: Settings) -> Night:
        """The night of these parameters, in the migrated warehouse of ``settings``."""
        warehouse = open_warehouse(settings)
        universe = load_universe(warehouse, self.universe)
        return Night(self.as_of, self.source, universe, warehouse, night_clock(self.source, self.as_of), self.tape)


def open_warehouse(settings: Settings) -> Warehouse:
    """The warehouse of the settings, migrated."""
    warehouse = Warehouse.from_url(settings.warehouse_url)
    migrate(warehouse)
    return warehouse


def load_bybit_universe(warehouse: Warehouse, name: str, url: str | None, rest_url: str | None) -> Universe:
    """The universe called ``name``. Raises SettingsError when it is not Bybit's, or for a rest_url without url."""
    universe = load_universe(warehouse, name)
    if universe.provider != "bybit":
        raise SettingsError(f"{universe.name} is no universe of Bybit's: choose one that is, such as crypto")
    if rest_url and not url:
        raise SettingsError("rest_url goes with url: Bybit's own data comes with Bybit's own REST service")
    return universe


def night_clock(source: Source, as_of: date, now: datetime | None = None) -> datetime:
    """The time of the night: the end of ``as_of``, or now if that is earlier and the source is live."""
    end = midnight_after(as_of)
    return min(end, now or datetime.now(UTC)) if source == "live" else end


def latest_night(calendars: set[str], now: datetime | None = None) -> date:
    """The latest UTC date whose bars have all closed: yesterday, or today once every calendar's last bar has closed."""
    now = now or datetime.now(UTC)
    today = now.date()
    instant = now.replace(tzinfo=None)
    opens = [bar_opens(c, "1d", today, today + timedelta(days=1)) for c in calendars]
    is_over = all(len(o) and bar_closes(c, "1d", o)[-1] <= instant for c, o in zip(calendars, opens, strict=True))
    return today if is_over else today - timedelta(days=1)
