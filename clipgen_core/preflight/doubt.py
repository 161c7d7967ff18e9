"""What a check raises if the run may fail, but need not."""

from clipgen_core.errors import ClipgenError


class Doubt(ClipgenError):
    """A finding that does not stop a run."""
