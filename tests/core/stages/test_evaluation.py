import json
import re
from pathlib import Path

import numpy as np
import pytest

from clipgen_core.data.pixels import decode_stored, fit_square, to_tensor
from clipgen_core.data.tables import open_table
from clipgen_core.device import autocast
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.requests import Generated
from clipgen_core.judging.copies import nearest_training
from clipgen_core.stages import evaluation
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker

CONFIG = evaluation.Config(shown=("a red disc",), images_shown=2, scored=6, candidates=2, reconstructions=3)


def evaluate(
    prompts: Path,
    checkpoint: str,
    pipeline: Storage,
    out: Storage,
    champion: str | None = None,
    **settings: object,
) -> evaluation.Result:
    return evaluation.run(
        CONFIG.model_copy(update=settings),
        champion=champion,
        transformer=checkpoint,
        images=pipeline.images,
        prompts=str(prompts),
        out=out,
        tracker=NullTracker(),
    )


def test_the_report_is_one_page_with_everything_inside(
    pictures: Path, checkpoint: str, pipeline: Storage, storage: Storage
) -> None:
    result = evaluate(pictures / "prompts.csv", checkpoint, pipeline, storage)
    page = Path(result.report).read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert page.count("data:image/png") == (2 + 1) + 2 * 6 * (1 + 1) + 2 * 3  # samples, best and worst, pairs
    assert (
        "There is no champion yet" in page
        and "the CLIP that conditions the model" in page
        and checkpoint in page
    )
    metrics = json.loads((Path(result.report).parent / "metrics.json").read_text())
    assert metrics == result.metrics
    for kind in ("generated", "reconstructed", "real"):
        assert -1 <= metrics[f"train/{kind}/clip_score"] <= 1
        assert metrics[f"train/{kind}/cmmd"] >= 0 and f"train/{kind}/fid_clip_8" in metrics
    assert metrics["train/real/coverage"] == 1 and metrics["train/real/fid_clip"] < 0.001
    assert not [name for name in metrics if "champion" in name]
    records = json.loads((Path(result.report).parent / "prompts.json").read_text())
    mean = np.mean([record["clip_score"]["generated"] for record in records])
    assert len(records) == 6 and mean == pytest.approx(metrics["train/generated/clip_score"])
    assert metrics["train/prompts"] == 6
    assert 0 < metrics["vqgan/codebook_usage"] <= 1
    assert metrics["transformer/images_per_second"] > 0
    assert result.grid.height > 96 and result.grid.width > 2 * 96


def test_prompts_without_pictures_are_judged_by_the_nearest_one(
    checkpoint: str, pipeline: Storage, storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "prompts.csv").write_text("prompt\na red disc\na blue square\n")
    metrics = evaluate(tmp_path / "prompts.csv", checkpoint, pipeline, storage).metrics
    assert metrics["all/prompts"] == 2
    assert "all/real/clip_score" in metrics


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("prompt,file\na red disc,no/such.png\na blue disc,\n", "1 of 1 files that prompts file "),
        ("prompt\na red disc\n", "the split 'all' of prompts file "),
        ("prompt,split\na,x\nb,x\nc,y\n", "the split 'y' of prompts file "),
        ("prompt\na red disc\na red disc\n", "at least 2 are needed"),
        (f"prompt\n{'x' * 1001}\na\n", "has 1001 characters: at most 1000 are allowed"),
    ],
)
def test_prompts_that_cannot_be_scored_are_refused_before_a_model_is_loaded(
    prompts: str, message: str, pipeline: Storage, storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "prompts.csv").write_text(prompts)
    with pytest.raises(ClipgenError, match=re.escape(message)):
        evaluate(tmp_path / "prompts.csv", "/no/such/checkpoint", pipeline, storage)


def test_the_champion_is_compared_on_the_same_prompts_and_seeds(
    pictures: Path, checkpoint: str, pipeline: Storage, storage: Storage
) -> None:
    result = evaluate(pictures / "prompts.csv", checkpoint, pipeline, storage, champion=checkpoint)
    assert [result.metrics[f"against_champion/{name}"] for name in ("mean", "low", "high")] == [0, 0, 0]
    ours, theirs = (result.metrics[f"train/{kind}/clip_score"] for kind in ("generated", "champion"))
    assert ours == theirs
    page = Path(result.report).read_text()
    assert f"The champion is {checkpoint}" in page and "against the champion" in page


def test_held_out_pictures_are_what_sets_are_compared_with(
    pictures: Path, checkpoint: str, pipeline: Storage, storage: Storage
) -> None:
    folder = str(pictures / "pictures" / "cross")
    made = evaluate(pictures / "prompts.csv", checkpoint, pipeline, storage, reference=folder).metrics
    assert made["train/real/fid_clip"] > 0.001


def test_a_training_picture_is_its_own_copy(checkpoint: str, pipeline: Storage) -> None:
    generator = TextToImage.from_pretrained(checkpoint)
    table = open_table(pipeline.images).to_table(columns=["id", "image"]).slice(0, 3)
    shown = [fit_square(decode_stored(data), 32) for data in table["image"].to_pylist()]
    with autocast("cpu"):
        codes = generator.vqgan.encode(to_tensor(shown)).numpy()
    copies = [Generated(image, 0.0, grid) for image, grid in zip(shown, codes, strict=True)]
    for near in nearest_training(generator, copies, pipeline.images):
        assert near and near.same_codes > 0.9 and near.cosine > 0.98
    other = [Generated(one.image, 0.0, (one.codes + 1) % 16) for one in copies]
    for near in nearest_training(generator, other, pipeline.images):
        assert near and near.same_codes < 0.5
