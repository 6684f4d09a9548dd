"""Back-off and the shared limiter."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.errors import ForbiddenError, OutageError, RefusedError
from tasks.markets.retry_policy import RetryPolicy


class Flaky:
    """Fails with each of the given errors in turn, then returns how often it was called."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.calls


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def patience(waits: list[float]) -> RetryPolicy:
    return RetryPolicy(attempts=5, first_wait_s=1.0, longest_wait_s=5.0, sleep=waits.append)


def test_an_outage_is_asked_again_after_growing_jittered_waits(patience: RetryPolicy, waits: list[float]) -> None:
    assert patience.ask(Flaky(*[OutageError()] * 4), "x") == 5
    assert all(low <= wait <= 2 * low for wait, low in zip(waits, (0.5, 1.0, 2.0, 2.5), strict=True))


def test_waits_of_two_threads_differ(waits: list[float]) -> None:
    for _ in range(2):
        RetryPolicy(sleep=waits.append).ask(Flaky(OutageError()), "x")
    assert waits[0] != waits[1]


def test_the_last_outage_is_raised_after_the_last_attempt(patience: RetryPolicy) -> None:
    flaky = Flaky(*[OutageError(str(k)) for k in range(9)])
    with pytest.raises(OutageError, match="4"):
        patience.ask(flaky, "x")
    assert flaky.calls == 5


def test_a_refusal_is_not_asked_again(patience: RetryPolicy, waits: list[float]) -> None:
    with pytest.raises(RefusedError):
        patience.ask(Flaky(RefusedError()), "x")
    assert waits == []


def test_a_403_is_asked_once_more_after_the_longest_wait(patience: RetryPolicy, waits: list[float]) -> None:
    flaky = Flaky(ForbiddenError(), ForbiddenError(), ForbiddenError())
    with pytest.raises(ForbiddenError):
        patience.ask(flaky, "x")
    assert (flaky.calls, waits) == (2, [5.0])


def test_all_threads_share_one_rate() -> None:
    patience = RetryPolicy(per_second=20)
    started = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: patience.wait_for_turn(), range(30)))
    patience.close()
    assert time.monotonic() - started > 0.9  # the first 20 at once, the others a second later
