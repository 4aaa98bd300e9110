"""The errors of the log: one for each reaction of a caller."""

from licet_engine.domain.errors import LicetError


class LogError(LicetError):
    """Root of the log's errors."""

    default_code = "log-error"


class StaleFacts(LogError):
    """The facts changed since they were read: read them and decide again. Nothing was logged.

    Attributes:
        tenant_id: Whose facts.
        expected: The facts version the submission was made on.
        found: The facts version at the moment of the commit.
    """

    status = 503
    default_code = "stale-facts"

    def __init__(self, tenant_id: str, expected: int, found: int) -> None:
        super().__init__(f"the facts of {tenant_id!r} are at version {found}, not {expected}: decide again")
        self.tenant_id = tenant_id
        self.expected = expected
        self.found = found


class SpendRefused(LogError):
    """Less of a consumable remains than was to be spent. Nothing was logged.

    Attributes:
        tenant_id: Whose budget.
        name: Which budget.
        amount: How much was to be spent.
        remaining: How much there was; 0 where there is no such budget.
    """

    status = 409
    default_code = "spend-refused"

    def __init__(self, tenant_id: str, name: str, amount: int, remaining: int) -> None:
        super().__init__(f"budget {name!r} of {tenant_id!r} has {remaining} left, {amount} was asked for")
        self.tenant_id = tenant_id
        self.name = name
        self.amount = amount
        self.remaining = remaining


class SubmissionConflict(LogError):
    """A row that the submission inserts is there already, or one that it changes is not as expected. Nothing was logged."""

    status = 409
    default_code = "conflict"


class InvalidSubmission(LogError):
    """The submission contradicts itself: a defect of the caller. Nothing was logged."""

    default_code = "invalid-submission"


class LogBusy(LogError):
    """Too much waits to be logged: try again later. Nothing was logged."""

    status = 503
    default_code = "log-busy"


class LogUnavailable(LogError):
    """The log cannot be written.

    Attributes:
        may_be_logged: Whether the submission may nevertheless be durable, because the database broke off at the commit and could not be
            asked afterwards. Where false, nothing was logged.
    """

    status = 503
    default_code = "log-unavailable"

    def __init__(self, message: str, *, may_be_logged: bool = False) -> None:
        super().__init__(message)
        self.may_be_logged = may_be_logged


class LogPutBack(LogUnavailable):
    """A log is not what it was: an old database was put in its place. Nothing was logged, and nothing is until the newer one is back.

    Names no log: whoever is told may belong to another tenant.
    """

    default_code = "log-put-back"

    def __init__(self) -> None:
        super().__init__(
            "a log is not what it was, so nothing is decided; operators: stop the service, bring the newer database back, see licet doctor"
        )


class LogCorrupt(LogError):
    """The stored log contradicts itself: stop, run fsck, restore."""

    default_code = "log-corrupt"


class NoSuchEntry(LogError):
    """The log has no such entry, or was never that large."""

    default_code = "no-such-entry"
