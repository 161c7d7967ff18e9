"""The members of archives that were rewritten, so that those that left them are forgotten."""

from clipgen_core.data.examine import Outcome
from clipgen_core.data.forget import forget_left
from clipgen_core.storage import Storage


class Members:
    """Notes the members of archives while these are read again, one archive after the other.

    An archive that was not read to its end, or not without a fault, says nothing of members that it lacks.
    """

    def __init__(self) -> None:
        self.archives = set[str]()  # files that were rewritten; those that are no archives hold themselves
        self.seen, self.whole = set[str](), True
        self.ended: dict[str, set[str]] = {}

    def note(self, outcome: Outcome) -> None:
        """Note a member of an archive, or the archive's end."""
        held = outcome.row or outcome.reject
        if outcome.file.uri not in self.archives:
            return
        if outcome.ends:
            self.ended |= {outcome.file.uri: self.seen} if self.whole else {}
            self.seen, self.whole = set(), True
        elif held and held["uri"] != outcome.file.uri and outcome.lost:
            self.seen.add(held["uri"])
        elif held:
            self.whole = False  # the fault is the archive's, or of an archive in it

    def forget_left(self, out: Storage) -> int:
        """Forget what left the archives that ended since the last call; returns how many images."""
        gone = forget_left(out, self.ended) if self.ended else 0
        self.ended = {}
        return gone
