"""The exceptions whose messages are written for people."""


class ClipgenError(Exception):
    """An error in the input or the settings; its one sentence says what is wrong, where, and what to do.

    The command line prints it and exits with status 2; Dagster shows it as the failure of the step.
    """


class Interrupted(ClipgenError):
    """A training was requested to stop and has saved a checkpoint."""


class MlflowAway(ClipgenError):
    """MLflow does not answer."""


def reason_of(error: BaseException) -> str:
    """What the system says of an error, without the path that it names, or the first line of its text."""
    return getattr(error, "strerror", None) or first_line(error)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
