import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from clipgen_core.errors import ClipgenError
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.parts import read_parts
from clipgen_core.generation.sampling import sample_codes
from clipgen_core.settings.sampling import SamplingConfig
from tests.conftest import COLOURS, draw


@pytest.fixture(scope="module")
def generator(checkpoint: str) -> TextToImage:
    return TextToImage.from_pretrained(checkpoint)


def test_a_prompt_and_a_seed_give_the_same_pictures_whatever_the_batch(generator: TextToImage) -> None:
    alone = generator.generate(["a red disc"], n=2, seed=1)[0]
    batch = generator.generate(["a blue square", "a red disc"], n=2, seed=1)[1]
    assert [a.tobytes() for a in alone] == [b.tobytes() for b in batch]
    assert alone[0].size == (32, 32)
    other = generator.generate(["a red disc"], n=2, seed=2)[0]
    assert [a.tobytes() for a in alone] != [b.tobytes() for b in other]


def test_variations_are_made_from_the_pictures_own_embedding(generator: TextToImage) -> None:
    pictures = [draw("red", "disc"), draw("blue", "square", 50)]
    made = generator.variations(pictures, n=2, seed=3, candidates=3)
    alone = generator.variations(pictures[1:], n=2, seed=3, candidates=3)[0]
    assert [one.image.tobytes() for one in made[1]] == [one.image.tobytes() for one in alone]
    own = generator.embed_images(pictures)
    for row, embedding in zip(made, own, strict=True):
        assert [one.clip_score for one in row] == sorted((one.clip_score for one in row), reverse=True)
        scores = generator.embed_images([one.image for one in row]) @ embedding
        assert [one.clip_score for one in row] == pytest.approx(scores.tolist(), abs=0.02)
    assert generator.embed_text(["a red disc"]).shape == own[:1].shape


def test_threads_get_what_they_would_get_alone(generator: TextToImage) -> None:
    prompts = [f"a {colour} disc" for colour in COLOURS[:6]]
    expected = [generator.generate([prompt], seed=5)[0][0].tobytes() for prompt in prompts]
    with ThreadPoolExecutor(6) as threads:
        got = threads.map(lambda prompt: generator.generate([prompt], seed=5)[0][0].tobytes(), prompts)
        assert list(got) == expected


def test_candidates_are_ranked_by_clip_score(generator: TextToImage) -> None:
    best = generator.generate_scored(["a red disc"], n=3, candidates=4)[0]
    scores = [one.clip_score for one in best]
    assert scores == sorted(scores, reverse=True)
    every = generator.generate_scored(["a red disc"], n=12, candidates=1)[0]
    assert scores == pytest.approx([one.clip_score for one in every[:3]], abs=1e-3)
    embedded = generator.clip.encode_images([best[0].image])[0]
    assert scores[0] == pytest.approx(
        float(embedded @ generator.clip.encode_texts(["a red disc"])[0]), abs=0.02
    )


def test_the_condition_is_the_weighted_mean_of_the_nearest_images(generator: TextToImage) -> None:
    text = generator.clip.encode_texts(["a red disc"])[0]
    assert (generator.conditioner.of_text(text, SamplingConfig(condition="text")).numpy() == text).all()
    table = generator.conditioner.table.table.to_table()
    stored = dict(zip(table["id"].to_pylist(), np.array(table["vector"].to_pylist()), strict=True))
    (first, cosine), (second, lower) = generator.search(text, 2)
    one = generator.conditioner.of_text(text, SamplingConfig(neighbours=1))[0, 0]
    assert np.allclose(one, stored[first], atol=1e-5)
    mean = stored[first] + np.exp((lower - cosine) / 0.1) * stored[second]
    two = generator.conditioner.of_text(text, SamplingConfig(neighbours=2, neighbour_temperature=0.1))[0, 0]
    assert np.allclose(two, mean / np.linalg.norm(mean), atol=1e-4)
    shifted = generator.conditioner.of_text(text, SamplingConfig(condition="shifted"))[0, 0]
    gap = generator.conditioner.gap
    assert np.allclose(gap.image_mean, np.stack(list(stored.values())).mean(0), atol=0.1)
    moved = text - gap.text_mean.numpy() + gap.image_mean.numpy()
    assert np.allclose(shifted, moved / np.linalg.norm(moved), atol=1e-5)


def test_candidates_take_the_nearest_images_in_turn(
    generator: TextToImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = generator.embed_text(["a red disc"])[0]
    settings = {"condition": "nearest", "neighbours": 3, "candidates": 1}
    conditions = generator.conditioner.of_text(text, SamplingConfig(**settings))
    one, two, three = (id for id, _ in generator.search(text, 3))
    table = generator.conditioner.table.table.to_table()
    stored = dict(zip(table["id"].to_pylist(), np.array(table["vector"].to_pylist()), strict=True))
    assert np.allclose(conditions[:, 0], [stored[one], stored[two], stored[three]], atol=1e-5)
    given = []
    monkeypatch.setattr(
        "clipgen_core.generation.generator.sample_codes",
        lambda model, rows, *rest, **options: (
            given.append(rows) or sample_codes(model, rows, *rest, **options)
        ),
    )
    generator.generate(["a red disc"], n=6, **settings)
    assert np.allclose(given[0][:, 0], [stored[id] for id in (one, two, three, one, two, three)], atol=1e-5)


def test_a_saved_generator_is_self_contained(generator: TextToImage, tmp_path: Path) -> None:
    generator.save_pretrained(tmp_path / "first")
    shutil.move(tmp_path / "first", tmp_path / "moved")
    loaded = TextToImage.from_pretrained(str(tmp_path / "moved"))
    assert not list((tmp_path / "moved").rglob("*.pt"))
    for part in ("clip", "vqgan", "transformer", "embeddings"):
        assert str(tmp_path / "moved") in getattr(loaded.parts, part)
    one, other = (g.generate(["a red disc"], seed=3)[0][0].tobytes() for g in (generator, loaded))
    assert one == other


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([""], {}, "a prompt is empty"),
        (["x" * 1001], {}, "at most 1000"),
        (["ok"], {"n": 0}, "choose between 1 and 256"),
        (["ok"], {"n": 1000}, "choose between 1 and 256"),
        (["ok"], {"temperature": 0.0}, "sampling setting temperature"),
        (["ok"], {"top_p": 1.5}, "sampling setting top_p"),
    ],
)
def test_bad_requests_are_one_sentence(
    generator: TextToImage, prompts: list[str], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ClipgenError, match=message):
        generator.generate(prompts, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("prompt", ["ein rotes Herz", "赤いハート", "❤️🎈", "a\0b", "x " * 400])
def test_any_text_is_a_prompt(generator: TextToImage, prompt: str) -> None:
    assert len(generator.generate([prompt], candidates=1)[0]) == 1


def test_missing_or_damaged_models_are_one_sentence(generator: TextToImage, tmp_path: Path) -> None:
    with pytest.raises(ClipgenError, match="there is no model at"):
        TextToImage.from_pretrained(str(tmp_path / "none"))
    with pytest.raises(ClipgenError, match="is no checkpoint: it has no config.json"):
        read_parts(str(tmp_path))
    with pytest.raises(ClipgenError, match="is no transformer checkpoint"):
        read_parts(generator.parts.vqgan)
    folder = tmp_path / "damaged"
    generator.save_pretrained(folder)
    weights = folder / "vqgan" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ClipgenError, match=r"model.safetensors cannot be read"):
        TextToImage.from_pretrained(str(folder))


def test_another_clip_than_it_was_trained_with_is_refused(generator: TextToImage) -> None:
    with pytest.raises(ClipgenError, match="was trained with other"):
        TextToImage(generator.parts.model_copy(update={"clip_key": "other"}))
