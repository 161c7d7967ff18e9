import json
import re
from pathlib import Path

import numpy as np
import pytest

from clipgen_core.stages import evaluation
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker

CONFIG = evaluation.Config(shown=("a red disc",), pictures_shown=2, scored=6, candidates=2, reconstructions=3)


def evaluate(prompts: Path, checkpoint: str, pipeline: Storage, out: Storage) -> evaluation.Result:
    return evaluation.run(
        CONFIG,
        transformer=checkpoint,
        images=pipeline.images,
        prompts=str(prompts),
        out=out,
        tracker=NullTracker(),
    )


def test_scores_by_hand() -> None:
    names, embedded = ["up", "right", "between"], np.array([[0, 1], [1, 0], [0.6, 0.8]])
    pictures = np.array([[0, 1.0], [0.8, 0.6]])
    scores = evaluation.score(pictures, ["up", "right"], names, embedded)
    assert scores["clip_score"] == pytest.approx((1 + 0.8) / 2)
    assert scores["recall@1"] == 0.5
    assert scores["recall@5"] == 1.0


def test_the_report_is_one_page_with_everything_inside(
    pictures: Path, checkpoint: str, pipeline: Storage, storage: Storage
) -> None:
    result = evaluate(pictures / "prompts.csv", checkpoint, pipeline, storage)
    page = Path(result.report).read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert page.count("data:image/png") == 2 + 2 * 3
    assert "the CLIP that conditions the model" in page and checkpoint in page
    metrics = json.loads((Path(result.report).parent / "metrics.json").read_text())
    assert metrics == result.metrics
    for kind in ("generated", "reconstructed", "real"):
        assert -1 <= metrics[f"train/{kind}/clip_score"] <= 1
    assert metrics["train/prompts"] == 6
    assert 0 < metrics["vqgan/codebook_usage"] <= 1
    assert metrics["transformer/pictures_per_second"] > 0
    assert result.grid.height > 96 and result.grid.width > 2 * 96


def test_prompts_without_pictures_are_judged_by_the_nearest_one(
    checkpoint: str, pipeline: Storage, storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "prompts.csv").write_text("prompt\na red disc\na blue square\n")
    metrics = evaluate(tmp_path / "prompts.csv", checkpoint, pipeline, storage).metrics
    assert metrics["all/prompts"] == 2
    assert "all/real/clip_score" in metrics
