"""Fixtures shared by the tests of every package."""

from pathlib import Path

import pytest
from hypothesis import settings

SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"

settings.register_profile(
    "nightgraph", deadline=None
)  # the compilation of a kernel or a busy machine must not fail a test
settings.load_profile("nightgraph")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of recorded market data beside the checkout; a test that uses it is skipped when it does not exist."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no recorded market data at {SHARED_DATA}")
    return SHARED_DATA
