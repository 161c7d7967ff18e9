import json
import re
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clipgen_core.data.decode import decode_stored
from clipgen_core.data.pixels import fit_square, to_tensor
from clipgen_core.data.tables import open_table
from clipgen_core.data.tokens import read_manifest
from clipgen_core.device import autocast
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.requests import Generated
from clipgen_core.judging import copies
from clipgen_core.judging.checks import Verdict
from clipgen_core.judging.classes import class_prompts
from clipgen_core.judging.copies import TrainingImages
from clipgen_core.judging.figures import started
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.stages import clip as clip_stage
from clipgen_core.stages import evaluation
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from clipgen_core.training.provenance import TrainingState
from tests.conftest import tiny_clip_config

CONFIG = evaluation.Config(shown=("a red disc",), images_shown=2, scored=6, candidates=2, reconstructions=3)


def evaluate(
    prompts: Path | None,
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
        prompts=str(prompts) if prompts else None,
        out=out,
        tracker=NullTracker(),
    )


def test_the_report_is_one_page_with_everything_inside(
    pictures: Path, checkpoint: str, pipeline: Storage, storage: Storage
) -> None:
    result = evaluate(pictures / "prompts.csv", checkpoint, pipeline, storage)
    page = Path(result.report).read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert page.count("data:image/webp") == 2 + 6 * (1 + 1) + 2 * 3  # samples, scored with nearest, pairs
    assert "<script" not in page and page.count('data-split="train"') == 6 + 1
    assert "the CLIP that conditions the model" in page and checkpoint in page
    assert "champion" not in page
    metrics = json.loads((Path(result.report).parent / "metrics.json").read_text())
    assert metrics == result.metrics
    for kind in ("generated", "reconstructed", "real"):
        assert -1 <= metrics[f"train/{kind}/clip_score"] <= 1
        distances = {name: metrics[f"against_reference/{kind}/{name}"] for name in ("cmmd", "kid_clip_8")}
        assert distances["cmmd"] >= 0
    assert metrics["against_reference/images"] == 6 and metrics["against_reference/reference_images"] == 66
    assert metrics["against_reference/floor/kid_clip/standard_error"] > 0
    assert "none of them a prompt&#39;s" in page and "Too few images for FID in CLIP space" in page
    assert "of whose 2 stored views" in page
    assert not [name for name in metrics if "champion" in name]
    records = json.loads((Path(result.report).parent / "prompts.json").read_text())
    mean = np.mean([record["clip_score"]["generated"] for record in records])
    assert len(records) == 6 and mean == pytest.approx(metrics["train/generated/clip_score"])
    assert metrics["train/prompts"] == 6
    assert 0 < metrics["vqgan/codebook_usage"] <= 1
    manifest = read_manifest(pipeline.current("tokens", "tests").path)
    assert metrics["tokens/codebook_usage"] == manifest.codebook_usage
    assert metrics["transformer/images_per_second"] > 0
    assert not [name for name in metrics if name.startswith("detail/")]  # of six images
    assert result.grid.height > 96 and result.grid.width > 2 * 96


def test_prompts_without_pictures_are_judged_by_the_nearest_one(
    checkpoint: str, pipeline: Storage, storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "prompts.csv").write_text("prompt\na red disc\na blue square\n")
    result = evaluate(tmp_path / "prompts.csv", checkpoint, pipeline, storage)
    assert result.metrics["all/prompts"] == 2
    assert "all/real/clip_score" in result.metrics
    assert not [name for name in result.metrics if name.startswith("against_reference")]
    assert "Too few images: sets of fewer than three are not compared" in Path(result.report).read_text()


def test_without_prompts_classes_that_the_images_resemble_are_scored(
    checkpoint: str, pipeline: Storage, storage: Storage
) -> None:
    result = evaluate(None, checkpoint, pipeline, storage, scored=5)
    records = json.loads((Path(result.report).parent / "prompts.json").read_text())
    assert len({record["prompt"] for record in records}) == 5 and result.metrics["all/prompts"] == 5
    generator = TextToImage.from_pretrained(checkpoint)
    chosen, many = (class_prompts(generator, count) for count in (5, 1000))
    assert [one.text for one in chosen] == [one.text for one in many[:5]] and len(set(many)) > 990
    best = generator.search(generator.embed_text([f"a photo of a {chosen[0].text}"])[0], 1)[0][1]
    worst = generator.search(generator.embed_text([f"a photo of a {many[-1].text}"])[0], 1)[0][1]
    assert best > worst


def test_images_of_a_hardly_trained_model_are_doubted_whatever_their_scores(
    pictures: Path, checkpoint: str, pipeline: Storage, storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evaluate(pictures / "prompts.csv", checkpoint, pipeline, storage, scored=12)
    assert result.metrics["detail/generated/shape"] < 0.5
    assert 0 < result.metrics["detail/reconstructed/sharpness"] < 1
    doubt = "of the contrast that real images have"
    assert doubt in Path(result.report).read_text() and doubt in "".join(capsys.readouterr())


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
    assert f"compared with {checkpoint}" in page and "Against the champion" in page


def test_a_champion_of_another_clip_is_compared_only_by_a_third(
    pictures: Path, checkpoint: str, pipeline: Storage, storage: Storage, tmp_path: Path
) -> None:
    champion = tmp_path / "champion"
    TextToImage.from_pretrained(checkpoint).save_pretrained(champion)
    clips = {name: another_clip(tmp_path / name, seed) for name, seed in (("second", 2), ("third", 3))}
    shutil.rmtree(champion / "clip")
    shutil.copytree(tmp_path / "second", champion / "clip")
    parts = json.loads((champion / "generator.json").read_text())
    parts["clip_key"] = ClipEncoder(clips["second"]).key
    (champion / "generator.json").write_text(json.dumps(parts))

    def judged(judge: str | None) -> tuple[Verdict, str]:
        result = evaluate(
            pictures / "prompts.csv", checkpoint, pipeline, storage, champion=str(champion), judge=judge
        )
        (one,) = (one for one in result.verdicts if one.name == "not_worse_than_champion")
        assert ("against_champion/mean" in result.metrics) == one.measured
        return one, Path(result.report).read_text()

    verdict, page = judged(None)
    assert verdict.said.startswith("not measured: ") and "set evaluation.judge" in verdict.said
    assert "the CLIP that conditions the candidate, which flatters it; the champion is" in page
    assert "cannot be compared" in page and "not measured: the judge is" in page
    verdict, page = judged(clips["third"])
    assert verdict.measured and "which conditions neither model" in page


def another_clip(folder: Path, seed: int) -> str:
    config = tiny_clip_config()
    torch.manual_seed(seed)
    clip_stage.save_local_dir(open_clip.CLIP(**config.open_clip_config()), config, str(folder))
    return f"local-dir:{folder}"


def test_held_out_pictures_are_what_sets_are_compared_with(
    pictures: Path, checkpoint: str, pipeline: Storage, storage: Storage
) -> None:
    folder = str(pictures / "pictures" / "cross")
    result = evaluate(pictures / "prompts.csv", checkpoint, pipeline, storage, reference=folder)
    assert result.metrics["against_reference/reference_images"] == 24
    assert f"24 images: images of {folder}" in Path(result.report).read_text()


def test_a_training_picture_is_its_own_copy(checkpoint: str, pipeline: Storage) -> None:
    generator = TextToImage.from_pretrained(checkpoint)
    table = open_table(pipeline.images).to_table(columns=["id", "image"]).slice(0, 3)
    shown = [fit_square(decode_stored(data), 32) for data in table["image"].to_pylist()]
    with autocast("cpu"):
        codes = generator.vqgan.encode(to_tensor(shown)).numpy()
    taken = [Generated(image, 0.0, grid) for image, grid in zip(shown, codes, strict=True)]
    for near in TrainingImages(generator, pipeline.images).nearest(taken):
        assert near and near.same_codes > 0.9 and near.cosine > 0.98
    other = [Generated(one.image, 0.0, (one.codes + 1) % 16) for one in taken]
    for near in TrainingImages(generator, pipeline.images).nearest(other):
        assert near and near.same_codes < 0.5


def recitals(generator: TextToImage, pipeline: Storage, view: int) -> dict[str, Generated]:
    """What a transformer generates that recites one view of each training image, by the image's id."""
    shards = pipeline.current("tokens", "tests").path
    parts = [pq.read_table(file) for file in sorted(Path(shards).glob("part-*.parquet"))]
    rows = [row for row in pa.concat_tables(parts).to_pylist() if row["view"] == view]
    codes = np.array([row["codes"] for row in rows]).astype(np.int64)
    images = generator.decode(torch.from_numpy(codes))
    side = generator.vqgan.config.grid
    return {
        row["id"]: Generated(image, 0.0, grid.reshape(side, side))
        for row, image, grid in zip(rows, images, codes, strict=True)
    }


def test_a_recital_of_a_crop_is_a_copy(
    checkpoint: str, pipeline: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "CANDIDATES", 72)  # an untrained CLIP does not find the image of a crop
    generator = TextToImage.from_pretrained(checkpoint)
    for view in (0, 1):
        recited = recitals(generator, pipeline, view)
        near = TrainingImages(generator, pipeline.images).nearest(list(recited.values()))
        assert [one.same_codes if one else 0 for one in near] == [1.0] * 72
    moved = Storage(str(tmp_path / "moved"))
    shutil.copytree(pipeline.images, moved.images)
    without_codes = TrainingImages(generator, moved.images)
    assert without_codes.views is None
    near = without_codes.nearest(list(recited.values()))
    assert np.mean([one.same_codes > 0.9 if one else True for one in near]) < 0.9


def test_the_report_says_when_crops_could_not_be_compared(
    pictures: Path, checkpoint: str, pipeline: Storage, tmp_path: Path
) -> None:
    moved = Storage(str(tmp_path / "moved"))
    shutil.copytree(pipeline.images, moved.images)
    result = evaluate(pictures / "prompts.csv", checkpoint, moved, moved)
    assert "only centre crops were compared" in Path(result.report).read_text()
    assert "memory/copies" in result.metrics


def test_without_training_images_nothing_is_nearest(
    checkpoint: str, pipeline: Storage, tmp_path: Path
) -> None:
    generator = TextToImage.from_pretrained(checkpoint)
    taken = [next(iter(recitals(generator, pipeline, 0).values()))]
    emptied = Storage(str(tmp_path / "emptied"))
    shutil.copytree(pipeline.images, emptied.images)
    open_table(emptied.images).delete("true")
    assert TrainingImages(generator, emptied.images).nearest(taken) == [None]
    without = TextToImage(generator.parts.model_copy(update={"embeddings": None}))
    assert TrainingImages(without, pipeline.images).nearest(taken) == [None]


def test_a_warm_start_is_told_with_its_gain() -> None:
    history = [
        {"step": 0, "validation_loss": 3.0},
        {"step": 2, "validation_loss": 2.0},
        {"step": 4, "loss": 1.0},
    ]
    told = started("transformer", "champion", TrainingState(step=4, history=history))
    assert told == "The transformer was started from champion: validation loss 3.000 → 2.000."
    assert started("vqgan", "taming", TrainingState(step=4)) == "The vqgan was started from taming."


def test_curves_hold_the_row_before_the_first_step_and_the_codes_replaced() -> None:
    history = [
        {"step": 0, "validation_loss": 3.0},
        {"step": 2, "validation_loss": 2.0, "codes_replaced": 5.0},
    ]
    curves = evaluation._curves({"transformer": TrainingState(step=2, history=history)})
    assert {curve.title: curve.points for curve in curves} == {
        "transformer: validation loss": [(0, 3.0), (2, 2.0)],
        "transformer: codes replaced": [(2, 5.0)],
    }
