"""Retries with growing waits, and the rate limit shared by threads."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.errors import ForbiddenError, OutageError, RefusedError
from tasks.markets.retry_policy import RetryPolicy


class FailingCall:
    """Raises the given errors in turn, then returns the number of calls. ``calls``: that number so far."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.calls


@pytest.fixture
def waits() -> list[float]:
    """The waits of ``policy`` in seconds, which it records instead of sleeping."""
    return []


@pytest.fixture
def policy(waits: list[float]) -> RetryPolicy:
    return RetryPolicy(attempts=5, first_wait_s=1.0, longest_wait_s=5.0, sleep=waits.append)


def test_an_outage_is_retried_after_growing_random_waits(policy: RetryPolicy, waits: list[float]) -> None:
    assert policy.call(FailingCall(*[OutageError()] * 4), "x") == 5
    limits = (1.0, 2.0, 4.0, 5.0)  # doubled from first_wait_s up to longest_wait_s
    assert all(limit / 2 <= wait <= limit for wait, limit in zip(waits, limits, strict=True))


def test_waits_of_two_threads_differ(waits: list[float]) -> None:
    for _ in range(2):
        RetryPolicy(sleep=waits.append).call(FailingCall(OutageError()), "x")
    assert waits[0] != waits[1]


def test_the_last_outage_is_raised_after_the_last_attempt(policy: RetryPolicy) -> None:
    failing = FailingCall(*[OutageError(str(k)) for k in range(9)])
    with pytest.raises(OutageError, match="4"):
        policy.call(failing, "x")
    assert failing.calls == 5


def test_a_refusal_is_not_retried(policy: RetryPolicy, waits: list[float]) -> None:
    with pytest.raises(RefusedError):
        policy.call(FailingCall(RefusedError()), "x")
    assert waits == []


def test_a_403_is_retried_once_after_the_longest_wait(policy: RetryPolicy, waits: list[float]) -> None:
    failing = FailingCall(ForbiddenError(), ForbiddenError(), ForbiddenError())
    with pytest.raises(ForbiddenError):
        policy.call(failing, "x")
    assert (failing.calls, waits) == (2, [5.0])


def test_all_threads_share_one_rate() -> None:
    policy = RetryPolicy(per_second=20)
    started_s = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: policy.wait_for_turn(), range(30)))
    policy.close()
    assert time.monotonic() - started_s > 0.9  # 20 requests pass immediately, the other 10 a second later
