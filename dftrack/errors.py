"""What can go wrong through no fault of dftrack: one family of errors, each with its exit code."""

EXIT_INTERRUPTED = 130  # Ctrl-C (128 + SIGINT), the run is closed as KILLED and can go on
EXIT_TERMINATED = 143  # SIGTERM (128 + SIGTERM), likewise


class DftrackError(Exception):
    """A mistake the user can mend: `message` says what was seen, `hint` what to do about it."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SettingError(DftrackError):
    """A setting that is unknown, of the wrong type or out of its range."""

    exit_code = 2


class DataError(DftrackError):
    """A data set that is missing, incomplete, unreadable or unfit for the work asked for."""

    exit_code = 3


class StoreError(DftrackError):
    """The tracking store cannot be opened, written or understood."""

    exit_code = 4


class BusyExperiment(StoreError):  # noqa: N818 - says how it is
    """Another process trains this very experiment now. It passes: that process ends, or hears that it was overtaken."""


class DeviceError(DftrackError):
    """The device or precision asked for is not to be had on this machine."""

    exit_code = 5


class TrainingError(DftrackError):
    """Training cannot go on: a loss that is not finite, memory exhausted."""

    exit_code = 6


class MetricError(DftrackError):
    """A metric that is undefined for these scores and labels."""

    exit_code = 7


class DetectorError(DftrackError):
    """A saved detector that is missing, damaged, incomplete or of another format."""

    exit_code = 8


class PromotionRefused(DftrackError):  # noqa: N818 - a verdict: nothing broke
    """A run that does not pass the gates, or a promotion that has nothing to go back to. No alias was moved."""

    exit_code = 9


class Interrupted(Exception):  # noqa: N818 - not an error: a request, carried out at a safe point
    """Somebody asked the process to stop (`exit_code` says who) and it stopped at a safe point."""

    def __init__(self, exit_code: int, goes_on: bool = True) -> None:
        super().__init__(f"stopped on request (exit code {exit_code})")
        self.exit_code = exit_code
        self.goes_on = goes_on  # the same command takes the work up again
        self.command = ""  # or this one, where the same would begin anew


class Abandoned(Exception):  # noqa: N818 - not an error: news
    """Somebody else does this work now: drop it, and leave its run and its files as they are."""


def require(condition: bool, message: str, hint: str = "") -> None:
    """Raise SettingError(message, hint) unless `condition` holds."""
    if not condition:
        raise SettingError(message, hint)
