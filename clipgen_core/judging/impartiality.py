"""Whom the judge favours: a CLIP gives high scores to the images of the model that it conditions."""

from dataclasses import dataclass

from clipgen_core.models.clip import ClipEncoder


@dataclass(frozen=True)
class Impartiality:
    """Which of the compared models the judge's CLIP conditions.

    Attributes:
        judge: Reference of the judge's CLIP.
        candidate: Whether it conditions the candidate.
        champion: Whether it conditions the champion; None if there is no champion.
    """

    judge: str
    candidate: bool
    champion: bool | None

    @classmethod
    def of(cls, judge: ClipEncoder, candidate: ClipEncoder, champion: ClipEncoder | None) -> "Impartiality":
        """Compare CLIPs by their weights.

        Args:
            judge: The CLIP that scores.
            candidate: The CLIP that conditions the candidate.
            champion: The CLIP that conditions the champion, if there is one.

        Returns:
            Which models the judge conditions.
        """
        same = _weights(judge) == _weights(champion) if champion else None
        return cls(judge.reference, _weights(judge) == _weights(candidate), same)

    @property
    def said(self) -> str:
        """Who scored, for the report."""
        if self.champion is None:
            if self.candidate:
                return "the CLIP that conditions the model, which flatters it"
            return f"{self.judge}, which did not condition the model"
        if self.candidate and self.champion:
            return "the CLIP that conditions both models, which flatters both"
        if self.candidate or self.champion:
            favoured, other = self._names
            return (
                f"the CLIP that conditions the {favoured}, which flatters it; "
                f"the {other} is conditioned by another"
            )
        return f"{self.judge}, which conditions neither model"

    @property
    def unfair(self) -> str | None:
        """Why the scores of candidate and champion cannot be compared; None if they can."""
        if self.champion is None or self.champion == self.candidate:
            return None
        favoured, other = self._names
        return (
            f"the judge is the CLIP that conditions the {favoured}, but not the {other}: "
            "set evaluation.judge to a CLIP that conditions neither, and evaluate again"
        )

    @property
    def _names(self) -> tuple[str, str]:
        """The model that is favoured, and the other."""
        return ("candidate", "champion") if self.candidate else ("champion", "candidate")


def _weights(clip: ClipEncoder) -> str:
    """The digest of a CLIP's weights, without the name under which it was loaded."""
    return clip.key.rpartition("-")[2]
