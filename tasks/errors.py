"""The tasks room's error tree.

TaskError
├── MarketError                 an outside market did not return what was requested
│   ├── NoNetworkError          no address outside this machine responds
│   ├── OutageError             temporary: retried with back-off, then by the task
│   │   ├── RateLimitedError    HTTP 429, Bybit 10006
│   │   └── MarketDownError     an outage of so many symbols that the night cannot go on
│   ├── ForbiddenError          HTTP 403: rate limit or region, the response does not tell which; not retried at once
│   ├── UnknownSymbolError      the market does not list the symbol
│   ├── NoPricesError           the symbol is listed, but has no bar in the requested span
│   ├── RefusedError            any other refusal, with the market's own code
│   ├── MalformedAnswerError    a response that does not have the documented shape
│   ├── NightOutOfRangeError    a date this source has no market for
│   ├── UnknownSourceError      a source that is neither live, recorded nor simulated
│   ├── UnknownProviderError    a provider that session.py does not register
│   ├── OnlyRecordedError       a live or simulated night of a provider that has only recordings
│   └── TapeError
│       ├── TapeMissingError    the folder, or the requested file in it, does not exist
│       └── TapeMalformedError  a file that does not have the documented layout
├── TooManyBadSymbolsError      more symbols failed than a night may lose
├── NightBlockedError           a blocking rule of the validation failed; nothing of the night was accepted
├── NoBarsError                 the warehouse holds no usable bars of the universe to compute on
├── NoFoldsError                the history is too short for a single walk-forward fold
├── NoForecastsError            a model has no stored predictions, or a night has no network for signals
├── NoModelError                no published fold of the requested model, or a model that is never fitted
├── SourceMismatchError         a night of one source would write rows of another source
└── LeakFoundError              a stored row differs when recomputed without later data
"""


class TaskError(Exception):
    """A step of the night that could not be done."""


class MarketError(TaskError):
    """An outside market, or the tape in its place, did not return what was requested."""


class NoNetworkError(MarketError):
    """No market could be reached at all."""


class OutageError(MarketError):
    """The market did not respond, or only in part; the same request may work later."""


class RateLimitedError(OutageError):
    """The market refuses further requests for a while."""


class MarketDownError(OutageError):
    """Requests for too many symbols met an outage; the night may be run again later."""


class ForbiddenError(MarketError):
    """HTTP 403: the market limits this address, or does not serve its region."""


class UnknownSymbolError(MarketError):
    """The market does not list this symbol."""


class NoPricesError(MarketError):
    """The symbol is listed, but the market has no bar in the requested span."""


class RefusedError(MarketError):
    """The market refused the request for a reason of its own."""


class MalformedAnswerError(MarketError):
    """The market's response does not have the documented shape."""


class NightOutOfRangeError(MarketError):
    """The source has no market for this date."""


class UnknownSourceError(MarketError):
    """A source that is neither live, recorded nor simulated."""


class UnknownProviderError(MarketError):
    """A universe names a provider that is not registered."""


class OnlyRecordedError(MarketError):
    """This provider has recordings only, no live or simulated market."""


class TapeError(MarketError):
    """The tape cannot be read."""


class TapeMissingError(TapeError):
    """The tape's folder, or the file that a request needs, does not exist."""


class TapeMalformedError(TapeError):
    """A file of the tape does not have the documented layout."""


class TooManyBadSymbolsError(TaskError):
    """More symbols failed than a night may lose."""


class NightBlockedError(TaskError):
    """A blocking data rule failed, or too much of the night's data went to quarantine."""


class NoBarsError(TaskError):
    """The warehouse holds no bars of the universe, or bars where its calendar has none."""


class NoFoldsError(TaskError):
    """The history is too short for a single walk-forward fold."""


class NoForecastsError(TaskError):
    """A model has no predictions to score, or the night has none to publish."""


class NoModelError(TaskError):
    """No published night has a fold of the model, or it is no network of the zoo."""


class SourceMismatchError(TaskError):
    """The night's source is live and it has a tape, or recorded and it has none."""


class LeakFoundError(TaskError):
    """The audit found a row that depends on later data; nothing of the night is published."""
