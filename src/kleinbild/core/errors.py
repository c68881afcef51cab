"""What can go wrong, in words for the person who asked.

Every error says what was given and what is allowed (`message`), and what to do (`hint`). Whatever else is raised is a
bug of ours. `exit_code` is what the command line leaves with; the codes are documented in its help.

    KleinbildError
     ├── RequestError          the request itself is wrong                     exit 2
     │    ├── PromptError      empty, too long, words that the model lacks
     │    ├── SizeError        not a size, or beyond the model's range
     │    ├── PictureError     a reference picture that cannot be used
     │    │    └── MaskError   a mask that cannot be used
     │    ├── AdapterError     an adapter that is not there, or not for this model
     │    ├── DestinationError a URL that the server will not go to
     │    └── FetchError       a URL at which there is nothing that can be used
     ├── ModelError            no such model, or its weights are not here      exit 3
     │    ├── UnknownModelError
     │    ├── MissingWeightsError
     │    └── WeightsError     a weight file that does not fit or is damaged
     ├── OutputError           the result cannot be written                    exit 4
     ├── DatabaseError         the server's database cannot be used            exit 4
     ├── NetworkError          the hub or a server cannot be reached           exit 5
     ├── PlacesError           no place could make the picture                 exit 5
     │    ├── NoPlaceError     none may, or can, by what was asked for
     │    ├── ModeratedError   a service refused what was asked for or made
     │    ├── BusyError        all are at their limits, for now
     │    ├── LateError        none was done in time
     │    └── UnsureError      one may have made it and its answer was lost
     └── EngineError           the engine could not make the picture           exit 6
          ├── CapacityError    it needs more memory than there is
          ├── CancelledError   the caller did not want it any more
          ├── DeadlineError    it was not done in time
          └── WorkerError      the engine's process ended
"""

from __future__ import annotations


class KleinbildError(Exception):
    """Base of all errors that Kleinbild raises on purpose."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class RequestError(KleinbildError):
    exit_code = 2


class PromptError(RequestError):
    pass


class SizeError(RequestError):
    pass


class PictureError(RequestError):
    """A reference picture, or a file that should be a picture, that cannot be used."""


class MaskError(PictureError):
    """A mask that cannot be used, or not with its picture."""


class AdapterError(RequestError):
    """An adapter that nobody knows by that name, or that was trained for models of another family."""


class DestinationError(RequestError):
    """A URL that a server will not go to for a caller: not on the public internet, or not written as one."""


class FetchError(RequestError):
    """A permitted URL whose server did not answer, or not with what was asked for."""


class ModelError(KleinbildError):
    exit_code = 3


class UnknownModelError(ModelError):
    pass


class MissingWeightsError(ModelError):
    pass


class WeightsError(ModelError):
    pass


class OutputError(KleinbildError):
    exit_code = 4


class DatabaseError(KleinbildError):
    """The server's database: not to be reached, not to be read, or of another version."""

    exit_code = 4


class NetworkError(KleinbildError):
    exit_code = 5


class PlacesError(KleinbildError):
    """Of all places that were asked, on this machine or elsewhere, none made the picture."""

    exit_code = 5


class NoPlaceError(PlacesError):
    """No place that is configured may or can do what was asked for."""

    exit_code = 2


class ModeratedError(PlacesError):
    """A service's own rules are against the prompt, a picture given, or the picture made."""

    exit_code = 2


class BusyError(PlacesError):
    """All places are given a rest or are at their limits; `retry_after` seconds later that may be otherwise."""

    def __init__(self, message: str, hint: str = "", *, retry_after: float = 1.0) -> None:
        super().__init__(message, hint)
        self.retry_after = retry_after


class LateError(PlacesError):
    pass


class UnsureError(PlacesError):
    """Whether a picture was made, and will be charged, is not known; asking elsewhere could pay twice."""


class EngineError(KleinbildError):
    exit_code = 6


class CapacityError(EngineError):
    pass


class CancelledError(EngineError):
    pass


class DeadlineError(EngineError):
    pass


class WorkerError(EngineError):
    pass


def error_of(kind: str, message: str, hint: str) -> KleinbildError:
    """The error that a message from another process tells of: of class `kind`, or EngineError if there is none."""
    found = globals().get(kind)
    if isinstance(found, type) and issubclass(found, KleinbildError):
        return found(message, hint)
    return EngineError(f"{kind}: {message}", hint or "this is a bug in Kleinbild; please report it")
