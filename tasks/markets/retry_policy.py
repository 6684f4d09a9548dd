"""How often a client may send requests to a market, and how long it waits before it repeats a failed one."""

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

    At most ``per_second`` requests a second are sent (None: no limit, for a tape). A request that meets an outage is
    tried up to ``attempts`` times in all. The waits between the attempts double from ``first_wait_s`` up to
    ``longest_wait_s``; each is drawn between half and the whole of that, so that threads do not retry at the same time.
    After a 403 there is only one retry, after the longest wait: it may be a rate limit, and if it is not, further
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
        """Waits until the rate limit allows one more request."""
        if self._limiter is not None:
            self._limiter.try_acquire("request")

    def call(self, attempt: Callable[[], T], label: str) -> T:
        """Returns what ``attempt`` returns, or raises its last error after all retries; ``label`` names it in logs."""
        was_forbidden = False
        for k in range(self.attempts - 1):
            try:
                return attempt()
            except OutageError as error:
                wait = min(self.first_wait_s * 2**k, self.longest_wait_s) * random.uniform(0.5, 1.0)
                logger.info("%s: %s; trying again in %.1f s", label, error, wait)
            except ForbiddenError as error:
                if was_forbidden:
                    raise
                was_forbidden = True
                wait = self.longest_wait_s
                logger.warning("%s: %s; asking once more in %.0f s", label, error, wait)
            self.sleep(wait)
        return attempt()

    def close(self) -> None:
        """Stops the rate limiter's thread."""
        if self._limiter is not None:
            self._limiter.close()


NO_RETRY = RetryPolicy(attempts=1)  # for a tape: it has no rate limit, and a retry would get the same answer


def raise_for_status(status: int, label: str) -> None:
    """Raises the error that an HTTP status means; returns for one whose body is an answer (2xx, 400, 404)."""
    if status in (401, 403):
        raise ForbiddenError(
            f"{label}: HTTP {status}, which is either the rate limit or a region the market does not serve; "
            "wait ten minutes, then try from an allowed region or run from a tape"
        )
    if status == 429:
        raise RateLimitedError(f"{label}: HTTP 429, too many requests; wait, or lower the request rate")
    if status >= 500:
        raise OutageError(f"{label}: HTTP {status}, the market is out of order; try again later")
