from dataclasses import dataclass
from typing import Any

import pytest

from clipgen_core.judging.impartiality import Impartiality


@dataclass
class Clip:
    reference: str
    key: str


ONE, SAME, TWO, THREE = (
    Clip("local-dir:one", "local-32px-aaaa"),
    Clip("hub:one/one", "one-one-aaaa"),
    Clip("local-dir:two", "local-32px-bbbb"),
    Clip("hub:three/3", "three-3-cccc"),
)


@pytest.mark.parametrize(
    ("judge", "candidate", "champion", "said", "fair"),
    [
        (ONE, ONE, None, "conditions the model, which flatters it", True),
        (SAME, ONE, None, "conditions the model, which flatters it", True),
        (TWO, ONE, None, "local-dir:two, which did not condition the model", True),
        (ONE, ONE, ONE, "conditions both models, which flatters both", True),
        (THREE, ONE, TWO, "hub:three/3, which conditions neither model", True),
        (ONE, ONE, TWO, "conditions the candidate, which flatters it; the champion is conditioned", False),
        (TWO, ONE, TWO, "conditions the champion, which flatters it; the candidate is conditioned", False),
    ],
)
def test_whom_the_judge_flatters(judge: Any, candidate: Any, champion: Any, said: str, fair: bool) -> None:
    impartiality = Impartiality.of(judge, candidate, champion)
    assert said in impartiality.said
    assert (impartiality.unfair is None) == fair
    assert fair or "set evaluation.judge" in str(impartiality.unfair)
