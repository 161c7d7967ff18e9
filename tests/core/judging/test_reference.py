from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipgen_core.data.images import ImageTable
from clipgen_core.data.keys import keys_of_texts
from clipgen_core.data.tables import open_table
from clipgen_core.errors import ClipgenError
from clipgen_core.judging.distances import Frechet, cmmd, kid
from clipgen_core.judging.judge import Judge
from clipgen_core.judging.metrics import blurred
from clipgen_core.judging.reference import Block, Chosen, Reference, choose_files, choose_stored
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.storage import Storage
from tests.conftest import COLOURS, SHAPES, draw

IMAGES = [draw(colour, shape) for colour in COLOURS for shape in SHAPES]


def chosen(images: list[Image.Image], block: int = 12) -> Chosen:
    keys = keys_of_texts(map(str, range(len(images))))
    parts = [slice(start, start + block) for start in range(0, len(images), block)]
    return Chosen(iter([Block(keys[part], images[part]) for part in parts]), len(images), "drawn")


@pytest.fixture(scope="module")
def judge(clip_reference: str) -> Judge:
    return Judge(ClipEncoder(clip_reference), ["a red disc"])


def test_distances_are_taken_in_the_judges_space_sharp_and_blurred(judge: Judge) -> None:
    reference = Reference(judge, chosen(IMAGES[:12]))
    metrics = reference.distances(IMAGES[12:])
    real, other = (judge.clip.encode_images(some) for some in (IMAGES[:12], IMAGES[12:]))
    assert metrics["cmmd"] == pytest.approx(cmmd(real).to(other).value)
    assert metrics["kid_clip"] == pytest.approx(kid(real * 32**0.5).to(other * 32**0.5).value)
    soft = [judge.clip.encode_images(blurred(some, 4)) * 32**0.5 for some in (IMAGES[:12], IMAGES[12:])]
    assert metrics["kid_clip_4"] == pytest.approx(kid(soft[0]).to(soft[1]).value, rel=1e-4)
    assert {"kid_clip/standard_error", "kid_clip_1", "kid_clip_8", "precision", "coverage"} <= metrics.keys()
    assert "kid" not in metrics and "inception_score" not in metrics
    assert reference.distances(IMAGES[12:], embeddings=other) == metrics
    assert reference.distances(IMAGES[12:], embeddings=real)["cmmd"] != metrics["cmmd"]


def test_fid_and_the_floor_need_enough_images(judge: Judge) -> None:
    few = Reference(judge, chosen(IMAGES))
    said = " ".join(few.notes(20))
    assert (
        "24 images: drawn" in said
        and "needs 320 images" in said
        and "floor: the reference set needs 40" in said
    )
    assert not few.floor(20) and "fid_clip" not in few.distances(IMAGES[:5])
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(320)]
    enough = Reference(judge, chosen(noise))
    assert len(enough.notes(20)) == 1
    floor, drawn = enough.floor(20), enough.distances(IMAGES[:20])
    assert drawn["fid_clip"] > floor["fid_clip"] > 0 and "fid_clip/standard_error" in floor
    own = Frechet(judge.clip.encode_images(noise)).to(judge.clip.encode_images(IMAGES[:20]))
    assert drawn["fid_clip"] == pytest.approx(own, rel=1e-3)
    assert abs(floor["kid_clip"]) < 3 * floor["kid_clip/standard_error"]


def test_stored_images_are_chosen_by_id_held_out_ones_first_and_never_the_prompts_own(
    pipeline: Storage, judge: Judge
) -> None:
    table = ImageTable(pipeline.images)
    ids = sorted(open_table(pipeline.images).to_table(columns=["id"])["id"].to_pylist())
    first = choose_stored(pipeline.images, 32, 20, without=())
    assert first.origin.startswith(
        f"{len(table.validation)} held-out and {20 - len(table.validation)} training"
    )
    keys = np.concatenate([block.keys for block in first.blocks])
    assert [key.hex() for key in keys.tolist()] == [
        one[: 2 * len(key)] for one, key in zip(ids, keys.tolist(), strict=False)
    ]
    assert (
        Reference(judge, choose_stored(pipeline.images, 32, 20, without=())).digest
        == Reference(judge, choose_stored(pipeline.images, 32, 20, without=(ids[-1],))).digest
    )
    without = choose_stored(pipeline.images, 32, 100, without=ids[:2])
    assert without.most == 70
    (block,) = without.blocks
    assert keys[0] not in block.keys and block.images[0].size == (32, 32)


def test_a_folder_is_a_reference_set_too(pictures: Path, judge: Judge, tmp_path: Path) -> None:
    reference = Reference(judge, choose_files(str(pictures / "pictures" / "cross"), 32, 10))
    assert reference.count == 10 and "cross" in reference.origin
    (tmp_path / "one").mkdir()
    draw("red", "disc").save(tmp_path / "one" / "1.png")
    with pytest.raises(ClipgenError, match="has 1 images .* at least 3"):
        Reference(judge, choose_files(str(tmp_path), 32, 10))
    (tmp_path / "one" / "2.png").write_bytes(b"no image")
    with pytest.raises(ClipgenError, match="no usable reference image"):
        Reference(judge, choose_files(str(tmp_path), 32, 10))


def test_a_generator_of_selected_images_is_compared_with_these(pipeline: Storage) -> None:
    every, some = (choose_stored(pipeline.images, 8, 72, (), where) for where in (None, "id < '8'"))
    assert every.most == 72 > some.most > 0
    keys = np.concatenate([block.keys for block in some.blocks])
    assert len(keys) == some.most and all(key[0] < 0x80 for key in keys.tolist() if key)
