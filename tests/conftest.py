"""Fixtures shared by the tests of every package."""

from pathlib import Path

import pytest
from hypothesis import settings

SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"

settings.register_profile("nightgraph", deadline=None)  # a busy machine or a kernel's compilation must not fail a test
settings.load_profile("nightgraph")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of recorded market data beside the checkout; tests that need it skip where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no recorded market data at {SHARED_DATA}")
    return SHARED_DATA
