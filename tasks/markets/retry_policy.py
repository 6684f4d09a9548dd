"""The rate limit of a client's requests to a market, and the waits before a failed request is retried."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from pyrate_limiter import Duration, Limiter, Rate

from tasks.errors import ForbiddenError, OutageError, RateLimitedError

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass
class RetryPolicy:
    """The rate limit and the retries of one client, shared by all its threads.

    At most ``per_second`` requests are sent per second; None means no limit. A request that fails with an outage is
    tried at most ``attempts`` times in total. The limit of the wait before a retry doubles from ``first_wait_s`` up to
    ``longest_wait_s``; each wait is random in [limit / 2, limit], so that threads do not retry at the same time.

    After HTTP 403 there is only one retry, after ``longest_wait_s``. A 403 can be a rate limit; if it is not, further
    requests make it worse.
    """

    per_second: int | None = None
    attempts: int = 5
    first_wait_s: float = 1.0
    longest_wait_s: float = 30.0
    sleep: Callable[[float], None] = time.sleep
    _limiter: Limiter | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.per_second is not None:
            self._limiter = Limiter(Rate(self.per_second, Duration.SECOND))

    def wait_for_turn(self) -> None:
        """Blocks until the rate limit allows one more request."""
        if self._limiter is not None:
            self._limiter.try_acquire("request")

    def call(self, attempt: Callable[[], T], label: str) -> T:
        """Returns the result of ``attempt``, or raises its last error after all retries.

        ``label`` names the request in logs. Errors other than OutageError and ForbiddenError are not retried.
        """
        was_forbidden = False
        for failures in range(self.attempts - 1):
            try:
                return attempt()
            except OutageError as error:
                limit_s = min(self.first_wait_s * 2**failures, self.longest_wait_s)
                wait_s = limit_s * random.uniform(0.5, 1.0)
                logger.info("%s: %s; trying again in %.1f s", label, error, wait_s)
            except ForbiddenError as error:
                if was_forbidden:
                    raise
                was_forbidden = True
                wait_s = self.longest_wait_s
                logger.warning("%s: %s; trying once more in %.0f s", label, error, wait_s)
            self.sleep(wait_s)
        return attempt()

    def close(self) -> None:
        """Stops the rate limiter's thread."""
        if self._limiter is not None:
            self._limiter.close()


# for a tape, which needs no rate limit and gives the same answer to a retry
NO_RETRY = RetryPolicy(attempts=1)


def raise_for_status(status: int, label: str) -> None:
    """Raises the error that an HTTP status stands for: 401, 403, 429, and 500 or higher.

    Returns for every other status, because its body has the answer or the reason of the refusal. ``label`` names the
    request in messages.
    """
    if status in (401, 403):
        raise ForbiddenError(
            f"{label}: HTTP {status}, which is either the rate limit or a region the market does not serve; "
            "wait ten minutes, then try from an allowed region or run from a tape"
        )
    if status == 429:
        raise RateLimitedError(f"{label}: HTTP 429, too many requests; wait, or lower the request rate")
    if status >= 500:
        raise OutageError(f"{label}: HTTP {status}, the market is out of order; try again later")
