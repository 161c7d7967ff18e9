"""The one exception a person is meant to read."""


class ClipgenError(Exception):
    """Bad input or a bad setting: one sentence that says what is wrong, where, and what to do.

    The command line prints it and exits with 2; Dagster shows it as the step's failure.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
