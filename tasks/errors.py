"""The tasks room's error tree.

TaskError
├── MarketError                 an outside market did not give what was asked
│   ├── NoNetworkError          nothing outside this machine answers
│   ├── OutageError             it may pass: retried with back-off, then by the task
│   │   ├── RateLimitedError    HTTP 429, Bybit 10006
│   │   └── MarketDownError     so many symbols met an outage that the night cannot go on
│   ├── ForbiddenError          HTTP 403: rate limit or region, the answer does not say which; never hammered
│   ├── UnknownSymbolError      the market does not list the symbol
│   ├── NoPricesError           the symbol is listed, but has no bar in the span asked for
│   ├── RefusedError            any other refusal, with the market's own code
│   ├── MalformedAnswerError    an answer in a shape that is not known
│   ├── NightOutOfRangeError    a date this source has no market for
│   ├── UnknownSourceError      a source that is neither live, recorded nor simulated
│   ├── OnlyRecordedError       a provider whose market is on record alone, asked for live or simulated
│   └── TapeError
│       ├── TapeMissingError    no such folder, or not the file asked for
│       └── TapeMalformedError  a file that is not what the layout says
├── TooManyBadSymbolsError      more symbols failed than a night may lose
├── NightBlockedError           a blocking rule of the validation failed; nothing of the night was accepted
├── NoBarsError                 the warehouse holds no usable bars of the universe to compute on
├── NoFoldsError                the history is too short for a single walk-forward fold
├── NoForecastsError            a model has no stored predictions, or a night no network to give signals
├── NoModelError                no published fold of the model asked for, or the model is none that is fitted
├── SourceMismatchError         a night of one source would write what belongs to another
└── LeakFoundError              recomputed without the future, a stored row comes out different
"""


class TaskError(Exception):
    """A step of the night that could not be done."""


class MarketError(TaskError):
    """An outside market, or the tape that stands in for it, did not give what was asked."""


class NoNetworkError(MarketError):
    """No market could be reached at all."""


class OutageError(MarketError):
    """The market did not answer, or not wholly; the same request may work later."""


class RateLimitedError(OutageError):
    """The market asked for fewer requests."""


class MarketDownError(OutageError):
    """Too many symbols met an outage for the night to go on; it may be tried again later."""


class ForbiddenError(MarketError):
    """HTTP 403: the market limits this address, or does not serve its region."""


class UnknownSymbolError(MarketError):
    """The market does not list this symbol."""


class NoPricesError(MarketError):
    """The symbol is listed, but the market has no bar in the span asked for."""


class RefusedError(MarketError):
    """The market refused the request for a reason of its own."""


class MalformedAnswerError(MarketError):
    """The market answered in a shape that is not known."""


class NightOutOfRangeError(MarketError):
    """The source has no market for this date."""


class UnknownSourceError(MarketError):
    """A source that is neither live, recorded nor simulated."""


class OnlyRecordedError(MarketError):
    """Nothing but a recording serves this provider's market."""


class TapeError(MarketError):
    """The tape cannot be played."""


class TapeMissingError(TapeError):
    """The tape's folder, or the file a request needs, is not there."""


class TapeMalformedError(TapeError):
    """A file of the tape does not hold what the layout says."""


class TooManyBadSymbolsError(TaskError):
    """More symbols failed than a night may lose."""


class NightBlockedError(TaskError):
    """A data rule that must hold does not, or too much of the night's data went to quarantine."""


class NoBarsError(TaskError):
    """The warehouse holds no bars of the universe, or bars where its calendar has none."""


class NoFoldsError(TaskError):
    """The history is too short for a single walk-forward fold."""


class NoForecastsError(TaskError):
    """A model has no predictions to be scored on, or the night has none to publish."""


class NoModelError(TaskError):
    """No published night has a fold of the model, or it is no network of the zoo."""


class SourceMismatchError(TaskError):
    """A night says live and has a tape, or says recorded and has none."""


class LeakFoundError(TaskError):
    """The audit found a row that depends on what came after it; nothing of the night is published."""
