"""How often the markets may be asked, and how long to wait when they do not answer."""

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
    """One client's manners, shared by all its threads.

    At most ``per_second`` requests a second (None: no limit, for a tape). An attempt that meets an outage is made up to
    ``attempts`` times in all, after waits that double from ``first_wait_s`` to ``longest_wait_s``, each drawn between
    half and the whole of it so that threads do not come back together. A 403 is asked about only once more, after the
    longest wait: it may be a rate limit, and where it is not, asking on makes it worse.
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
        """Returns once one more request is allowed."""
        if self._limiter is not None:
            self._limiter.try_acquire("request")

    def ask(self, attempt: Callable[[], T], what: str) -> T:
        """What ``attempt`` returns, or its last error once the attempts are used up; ``what`` names it in logs."""
        forbidden = False
        for k in range(self.attempts - 1):
            try:
                return attempt()
            except OutageError as error:
                wait = min(self.first_wait_s * 2**k, self.longest_wait_s) * random.uniform(0.5, 1.0)
                logger.info("%s: %s; trying again in %.1f s", what, error, wait)
            except ForbiddenError as error:
                if forbidden:
                    raise
                forbidden, wait = True, self.longest_wait_s
                logger.warning("%s: %s; asking once more in %.0f s", what, error, wait)
            self.sleep(wait)
        return attempt()

    def close(self) -> None:
        """Stops the limiter's own thread."""
        if self._limiter is not None:
            self._limiter.close()


NO_RETRY = RetryPolicy(attempts=1)  # a tape never tires, and answers the same way twice


def refuse_status(status: int, what: str) -> None:
    """Raises the error an HTTP status stands for; returns on a status that carries an answer (2xx, 400, 404)."""
    if status in (401, 403):
        raise ForbiddenError(
            f"{what}: HTTP {status}, which is either the rate limit or a region the market does not serve; "
            "wait ten minutes, then try from an allowed region or run from a tape"
        )
    if status == 429:
        raise RateLimitedError(f"{what}: HTTP 429, too many requests; wait, or lower the request rate")
    if status >= 500:
        raise OutageError(f"{what}: HTTP {status}, the market is out of order; try again later")
