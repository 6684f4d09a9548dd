"""The errors that the tasks raise.

A night is the run for one as-of date; a tape is a folder of recorded market data that takes the place of a market.

TaskError
├── MarketError                 an outside market did not return what was requested
│   ├── NoNetworkError          no address outside this machine responds
│   ├── OutageError             temporary: the client retries the request with back-off, then the task is retried
│   │   ├── RateLimitedError    HTTP 429, Bybit 10006
│   │   └── MarketDownError     an outage for so many symbols that the night cannot go on
│   ├── ForbiddenError          HTTP 403: rate limit or region, the response does not tell which; not retried at once
│   ├── UnknownSymbolError      the market does not list the symbol
│   ├── NoPricesError           the symbol is listed, but has no bar in the requested time range
│   ├── RefusedError            any other refusal, with the market's own code
│   ├── MalformedAnswerError    a response that does not have the documented shape
│   ├── NightOutOfRangeError    the source has no market for this date
│   ├── UnknownSourceError      the source is neither live, recorded nor simulated
│   ├── UnknownProviderError    the provider is not registered in session.py
│   ├── OnlyRecordedError       a live or simulated night of a provider that has only recordings
│   └── TapeError
│       ├── TapeMissingError    the folder, or the requested file in it, does not exist
│       └── TapeMalformedError  a file that does not have the documented layout
├── TooManyBadSymbolsError      more symbols failed than a night may lose
├── NightBlockedError           validation failed and accepted no row, or the night is not fit to publish
├── NoBarsError                 the warehouse has no bars of the universe, or bars where its calendar has none
├── NoFoldsError                the history is too short for a single walk-forward fold
├── NoForecastsError            a model has no stored predictions, or a night has no network or session for signals
├── NoModelError                no published fold of the requested model, or a model that is not a network
├── SourceMismatchError         the night is live and has a tape, or is recorded and has none
└── LeakFoundError              the audit found a stored row that differs when recomputed without later data
"""


class TaskError(Exception):
    """A step of the night failed."""


class MarketError(TaskError):
    """An outside market, or the tape in its place, did not return what was requested."""


class NoNetworkError(MarketError):
    """No market could be reached at all."""


class OutageError(MarketError):
    """The market did not respond, or its response was incomplete; the same request may work later."""


class RateLimitedError(OutageError):
    """The market refuses further requests for a while."""


class MarketDownError(OutageError):
    """Requests for too many symbols met an outage; the night may be run again later."""


class ForbiddenError(MarketError):
    """HTTP 403: the market limits this address, or does not serve its region."""


class UnknownSymbolError(MarketError):
    """The market does not list this symbol."""


class NoPricesError(MarketError):
    """The symbol is listed, but the market has no bar in the requested time range."""


class RefusedError(MarketError):
    """The market refused the request for a reason that no other error covers; the message has the market's code."""


class MalformedAnswerError(MarketError):
    """The market's response does not have the documented shape."""


class NightOutOfRangeError(MarketError):
    """The source has no market for this date."""


class UnknownSourceError(MarketError):
    """The source is neither live, recorded nor simulated."""


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
    """A blocking rule failed, too many rows would be quarantined, or the night is not validated and audited."""


class NoBarsError(TaskError):
    """The warehouse holds no bars of the universe, or bars where its calendar has none."""


class NoFoldsError(TaskError):
    """The history is too short for a single walk-forward fold."""


class NoForecastsError(TaskError):
    """A model has no stored predictions, or the night has no network or no closed session for signals."""


class NoModelError(TaskError):
    """No published night has a fold of the model, or the model is not a network of the zoo."""


class SourceMismatchError(TaskError):
    """The night's source is live and it has a tape, or recorded and it has none."""


class LeakFoundError(TaskError):
    """The audit found a row that depends on later data; nothing of the night is published."""
