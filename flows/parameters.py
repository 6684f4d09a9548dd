"""Flow parameters: pydantic models, so that the Prefect UI's form shows their bounds and refuses what is outside."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from flows.settings import Settings, load_settings
from models.sessions import bar_closes, bar_opens, midnight_after
from tasks.night import Night
from warehouse.connect import Warehouse
from warehouse.migrate import migrate
from warehouse.universes import load_universe

Source = Literal["simulated", "recorded", "live"]
SOURCE = Field(description="live: Yahoo and Bybit; recorded: a tape folder; simulated: the built-in market")
TAPE = Field(description="folder with a recorded tape; needed for source=recorded, and for nothing else")
WAREHOUSE = Field(description="DuckDB file; empty: the setting warehouse_url")


class NightParameters(BaseModel):
    """What `nightly` can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    as_of: Annotated[
        date | None,
        Field(description="the night, a UTC date; empty: the latest day that is over (simulated: a fixed day)"),
    ] = None
    source: Annotated[Source, SOURCE] = "simulated"
    tape: Annotated[Path | None, TAPE] = None
    universes: Annotated[
        tuple[str, ...], Field(description="empty: the demo universes when simulated, else us_stocks and crypto")
    ] = ()
    warehouse: Annotated[str | None, WAREHOUSE] = None
    models: Annotated[tuple[str, ...] | None, Field(description="names of the zoo; empty: the setting models")] = None
    seeds: Annotated[tuple[int, ...] | None, Field(description="one fit per seed, averaged", max_length=16)] = None

    def universe_names(self) -> tuple[str, ...]:
        """The universes of this night."""
        if self.universes:
            return self.universes
        return ("demo_stocks", "demo_crypto") if self.source == "simulated" else ("us_stocks", "crypto")

    def settings(self) -> Settings:
        """The settings with these parameters on top."""
        return load_settings(warehouse_url=self.warehouse, models=self.models, seeds=self.seeds)


class StepParameters(BaseModel):
    """What every single step of a night can be told: which night of which universe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    as_of: Annotated[date, Field(description="the night, a UTC date")]
    universe: Annotated[str, Field(description="a name of the view `universes`")]
    source: Annotated[Source, SOURCE] = "simulated"
    tape: Annotated[Path | None, TAPE] = None
    warehouse: Annotated[str | None, WAREHOUSE] = None
    models: Annotated[tuple[str, ...] | None, Field(description="names of the zoo; empty: the setting models")] = None
    seeds: Annotated[tuple[int, ...] | None, Field(description="one fit per seed, averaged", max_length=16)] = None

    def settings(self) -> Settings:
        """The settings with these parameters on top."""
        return load_settings(warehouse_url=self.warehouse, models=self.models, seeds=self.seeds)

    def fingerprint(self) -> dict[str, Any]:
        """What decides the numbers of this night; stored with it."""
        return self.settings().fingerprint(self.universe)

    def open(self) -> Night:
        """The night these parameters name, its warehouse migrated."""
        warehouse = open_warehouse(self.settings())
        universe = load_universe(warehouse, self.universe)
        return Night(self.as_of, self.source, universe, warehouse, night_clock(self.source, self.as_of), self.tape)


def open_warehouse(settings: Settings) -> Warehouse:
    """The warehouse of the settings, migrated."""
    warehouse = Warehouse.at(settings.warehouse_url)
    migrate(warehouse)
    return warehouse


def night_clock(source: Source, as_of: date, now: datetime | None = None) -> datetime:
    """The instant the night believes it is: the end of ``as_of``, or now if that is earlier and the market is live."""
    end = midnight_after(as_of)
    return min(end, now or datetime.now(UTC)) if source == "live" else end


def latest_night(calendars: set[str], now: datetime | None = None) -> date:
    """The latest UTC date whose bars have all closed: yesterday, or today once every exchange among them has closed."""
    now = now or datetime.now(UTC)
    today, instant = now.date(), now.replace(tzinfo=None)
    opens = [bar_opens(c, "1d", today, today + timedelta(days=1)) for c in calendars]
    closed = all(len(o) and bar_closes(c, "1d", o)[-1] <= instant for c, o in zip(calendars, opens, strict=True))
    return today if closed else today - timedelta(days=1)
