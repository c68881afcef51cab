"""What goes wrong between here and a server, as kinds of `KleinbildError`: by exit code, and by what can be done.

    AnswerError                 the server's answer is an error; it says status, type, code, param and request_id
     ├── BadRequestError        400, 413, 415, 422: what was asked for is wrong     a RequestError
     │    └── ConflictError     409, 422 of a key: another request had it           a RequestError
     ├── AuthenticationError    401: no key, or one that is not known               a RequestError
     ├── ForbiddenError         403: this key may not                               a RequestError
     ├── NotFoundError          404: no such job or path                            a RequestError
     ├── ModelNotFoundError     404: the server does not have this model            an UnknownModelError
     ├── BusyError              429, 503: later, perhaps; `retry_after` in seconds  an EngineError
     ├── ServerError            other 5xx: the server failed                        an EngineError
     └── JobFailedError         the job ended without a picture                     an EngineError
    UnreachableError            no server there, or the connection broke            a NetworkError

A job that was cancelled raises CancelledError, one that is not done in time DeadlineError.
"""

from __future__ import annotations

from dataclasses import dataclass

from kleinbild.core.errors import EngineError, KleinbildError, NetworkError, RequestError, UnknownModelError


@dataclass(frozen=True, slots=True)
class Reason:
    """An error as the server tells it, in OpenAI's fields."""

    message: str
    type: str = ""
    code: str | None = None
    param: str | None = None


class AnswerError(KleinbildError):
    """The server says no. `status` is HTTP's, 0 if the error came as part of a job."""

    exit_code = 6
    default_hint = ""

    def __init__(
        self, reason: Reason, status: int = 0, request_id: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(reason.message, self.default_hint)
        self.type = reason.type
        self.code = reason.code
        self.param = reason.param
        self.status = status
        self.request_id = request_id
        self.retry_after = retry_after


class BadRequestError(AnswerError, RequestError):
    exit_code = RequestError.exit_code  # without a hint of ours: the server's message ends with what to do


class ConflictError(BadRequestError):
    default_hint = "use a new idempotency key for another request"


class AuthenticationError(AnswerError, RequestError):
    exit_code = RequestError.exit_code
    default_hint = "set KLEINBILD_API_KEY, or give api_key, to a key of this server"


class ForbiddenError(AnswerError, RequestError):
    exit_code = RequestError.exit_code
    default_hint = "ask whoever runs the server for a key that may"


class NotFoundError(AnswerError, RequestError):
    exit_code = RequestError.exit_code
    default_hint = "check the id, and that base_url is a Kleinbild server's"


class ModelNotFoundError(AnswerError, UnknownModelError):
    exit_code = UnknownModelError.exit_code
    default_hint = "`Client.models()` lists what the server has"


class BusyError(AnswerError, EngineError):
    default_hint = "try again later"


class ServerError(AnswerError, EngineError):
    default_hint = "the server's log says more"


class JobFailedError(AnswerError, EngineError):
    default_hint = "the server's log says more"


class UnreachableError(NetworkError):
    pass


_BY_STATUS: dict[int, type[AnswerError]] = {
    401: AuthenticationError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    429: BusyError,
    503: BusyError,
}


def answer_error(
    status: int, reason: Reason, request_id: str | None = None, retry_after: float | None = None
) -> AnswerError:
    """The error for an answer with `status`."""
    kind = _BY_STATUS.get(status, BadRequestError if status < 500 else ServerError)
    if reason.code == "model_not_found":
        kind = ModelNotFoundError
    elif reason.type == "idempotency_error":
        kind = ConflictError
    return kind(reason, status, request_id, retry_after)


def job_error(reason: Reason) -> AnswerError:
    """The error of a job that failed: a wrong request is one, however late that showed."""
    if reason.code == "model_not_found":
        return ModelNotFoundError(reason)
    wrong = reason.type in ("invalid_request_error", "image_generation_user_error")
    return (BadRequestError if wrong else JobFailedError)(reason)
