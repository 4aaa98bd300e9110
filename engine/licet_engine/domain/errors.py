"""The engine's errors: one root, a subclass per reaction of the caller, a stable code per cause.

A denial is never an error: it is the value of a decision. Whether a resource exists is never told by an error either:
unknown and foreign resources are denied alike.
"""


class LicetError(Exception):
    """Root of the engine's errors.

    Args:
        message: What is wrong, where, and what to do about it; safe to show to the caller.
        code: Stable word for HTTP bodies, log lines and metrics.
    """

    status = 500
    default_code = "internal"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code


class InvalidInput(LicetError):
    """The caller must change what it sent."""

    status = 400
    default_code = "invalid-input"


class Unauthenticated(LicetError):
    """The caller must present a valid token."""

    status = 401
    default_code = "unauthenticated"


class Conflict(LicetError):
    """The state of the resource does not permit this, whoever asks; look at it again."""

    status = 409
    default_code = "conflict"


class Erased(LicetError):
    """What is asked for was there, and was erased for good."""

    status = 410
    default_code = "erased"


class TooLarge(LicetError):
    """The caller must send less."""

    status = 413
    default_code = "too-large"


class UnsupportedMedia(LicetError):
    """The caller must send the body in another form."""

    status = 415
    default_code = "unsupported-media-type"


class Busy(LicetError):
    """The caller should try again later; nothing was done."""

    status = 503
    default_code = "busy"


class TooManyRequests(LicetError):
    """The caller asks more than it may; it should wait, and then try again. Nothing was done.

    Args:
        message: As for `LicetError`.
        retry_after_s: How long to wait.
    """

    status = 429
    default_code = "too-many-requests"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(LicetError):
    """A part that this needs does not answer; nothing was done. The operator should look."""

    status = 503
    default_code = "unavailable"


class ConfigurationError(LicetError):
    """The installation cannot start like this; the operator must mend it."""

    default_code = "configuration"
