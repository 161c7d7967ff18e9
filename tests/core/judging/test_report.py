import re

import numpy as np
from PIL import Image

from clipgen_core.judging.checks import Verdict
from clipgen_core.judging.copies import Nearest
from clipgen_core.judging.impartiality import Impartiality
from clipgen_core.judging.page import MOST_BYTES, render
from clipgen_core.judging.report import Curve, Report, Sample

METRICS = {
    "train/prompts": 20.0,
    "held_out/prompts": 20.0,
    **{
        f"{split}/{kind}/{name}": value
        for split in ("train", "held_out")
        for kind, value in (("generated", 0.3), ("reconstructed", 0.4), ("real", 0.5))
        for name in ("clip_score", "recall@1", "recall@5")
    },
    **{f"{split}/generated/clip_score/half_width": 0.05 for split in ("train", "held_out")},
    **{f"{split}/generated/other_prompts": 0.1 for split in ("train", "held_out")},
    "against_reference/images": 40.0,
    **{
        f"against_reference/{kind}/{name}": value
        for kind, kid in (("generated", 0.08), ("reconstructed", 0.07), ("real", 0.02))
        for name, value in (("kid_clip", kid), ("precision", 1.0), ("kid_clip_1", kid))
    },
    **{f"against_reference/{kind}/kid_clip_{k}": 0.1 for kind in ("generated", "real") for k in (2, 4, 8)},
}


def report(samples: list[Sample], **changed: object) -> Report:
    content = {
        "model": "sprites",
        "date": "2026-01-31",
        "metrics": METRICS,
        "names": 100,
        "judge": Impartiality("tiny", False, None),
        "reference": [],
        "champion": None,
        "verdicts": [
            Verdict("enough_prompts", True, {"prompts": 40}, ""),
            Verdict("not_worse_than_champion", True, {}, "there is no champion"),
        ],
        "copy_share": 0.9,
        "views": 1,
        "samples": [],
        "scored": samples,
        "reconstructions": [],
        "starts": [],
        "curves": [Curve("loss", [(1, 2), (2, 1)])],
        "made_from": {"configuration": "{}"},
    }
    return Report(**(content | changed))  # type: ignore[arg-type]


def noise(seed: int, side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def sample(number: int, split: str, side: int = 8) -> Sample:
    nearest = Nearest(f"id{number}", noise(number, side), 0.5, 0.95)
    return Sample(
        prompt=f"prompt {number} <b>",
        pictures=[noise(number, side)],
        score=1 - number / 100,
        nearest=nearest,
        split=split,
    )


def test_scores_are_drawn_between_their_floor_and_their_ceiling() -> None:
    gauge, recall = report([]).gauges[:2]
    assert gauge.split == "train" and [mark.kind for mark in gauge.marks] == [
        "floor",
        "generated",
        "reconstructed",
        "real",
    ]
    assert np.allclose([mark.place for mark in gauge.marks], [0, 0.5, 0.75, 1])
    assert np.allclose(gauge.marks[1][4:], [0.375, 0.625])
    assert gauge.marks[0].text == "0.100" and gauge.marks[1].text == "0.300 ± 0.050"
    assert recall.marks[0].name == "by chance" and recall.marks[0].text == "0.05"


def test_the_page_begins_with_the_best_and_the_worst_and_says_nothing_empty() -> None:
    samples = [sample(i, "train" if i % 2 else "held_out") for i in range(20)]
    page = render(report(samples))
    best, worst, every = (
        page.index(f"<h2>{one}") for one in ("Best images", "Worst images", "All scored images")
    )
    assert best < worst < page.index("How well images fit") < every
    assert page.index("prompt 0 &lt;b&gt;") < worst < page.index("prompt 19 &lt;b&gt;")
    assert page.count("a memorised copy") == 20 + 2 * 8
    assert "sprites: evaluation of 2026-01-31" in page
    assert "1000 KID, CLIP space" in page and "precision" not in page  # it is 1.00 in each row
    assert "enough prompts" in page and "not worse than champion" not in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page) and "<script" not in page
    for number in (1, 2):
        assert f"body:has(#split-{number}:checked)" in page and f'id="split-{number}"' in page
    assert "Best images" not in render(report(samples[:15]))


def test_a_page_of_many_large_images_stays_below_its_limit() -> None:
    assert len(render(report([sample(i, "train", side=64) for i in range(400)]))) < MOST_BYTES
    page = render(report([sample(i, "train", side=256) for i in range(60)]))
    assert len(page) < MOST_BYTES and page.count("data:image/webp") == 2 * (60 + 2 * 8)


def test_doubts_stand_above_the_scores_and_pixels_are_compared() -> None:
    mush = {
        f"detail/{kind}/{name}": value
        for kind, value in (("generated", 0.2), ("reconstructed", 0.9))
        for name in ("sharpness", "shape", "variety")
    }
    page = render(report([], metrics=METRICS | mush | {"vqgan/psnr": 17.25}))
    doubt = page.index("have 20% of the contrast that real images have: they are blotches")
    assert doubt < page.index("differ from each other by 20%") < page.index("How well images fit")
    table = page[page.index("Compared by their pixels") :]
    assert re.findall(r"<td>(.*?)</td>", table)[:8] == [
        "this model",
        *["0.20"] * 3,
        "reconstructions",
        *["0.90"] * 3,
    ]
    assert "a PSNR of 17.2 dB" in table
    without = render(report([]))
    assert "Compared by their pixels" not in without and 'class="doubts"' not in without
