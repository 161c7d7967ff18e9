import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipgen_core.errors import ClipgenError
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.parts import read_parts
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
    given, sampler = [], generator.worker.sampler
    job = sampler.job
    monkeypatch.setattr(
        sampler, "job", lambda rows, *rest, **options: given.append(rows) or job(rows, *rest, **options)
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
        (["ok"], {"n": 1.0}, "n is 1.0: give an integer"),
        (["ok"], {"n": True}, "n is True: give an integer"),
        (["ok"], {"candidates": 0}, "the setting 'candidates' is 0: it should be greater"),
        (["ok"], {"temperature": -0.1}, "the setting 'temperature' is -0.1: it should be greater"),
        (["ok"], {"temperature": float("nan")}, "the setting 'temperature' is nan: it should be"),
        (["ok"], {"temperature": float("inf")}, "the setting 'temperature' is inf: it should be a finite"),
        (["ok"], {"top_p": 1.5}, "the setting 'top_p' is 1.5: it should be less"),
        (["ok"], {"top_p": 0}, "the setting 'top_p' is 0: it should be greater"),
        (["ok"], {"guidance_scale": -1}, "the setting 'guidance_scale' is -1: it should be greater"),
        (["ok"], {"seed": 1.5}, "seed is 1.5: give an integer"),
        (["ok"], {"seed": False}, "seed is False: give an integer"),
        (["ok"], {"seed": 2**64}, "the seed has more than 64 bits"),
        ([None], {}, "a prompt is of type NoneType: give a text"),
        ([b"ok"], {}, "a prompt is of type bytes: give a text"),
        (5, {}, "the prompts are of type int: give a text, or several"),
        (["\ud83d"], {}, "is no valid Unicode"),
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


def test_a_single_prompt_or_image_is_one_row_and_none_are_no_rows(generator: TextToImage) -> None:
    alone, listed = (generator.generate(given, n=2, candidates=1) for given in ("a heart", ["a heart"]))
    assert [image.tobytes() for image in alone[0]] == [image.tobytes() for image in listed[0]]
    assert len(alone) == 1
    assert len(generator.variations(draw("red", "disc"), candidates=1)) == 1
    assert generator.generate([]) == generator.variations([]) == []
    with pytest.raises(ClipgenError, match="an image is of type str: give a PIL image"):
        generator.variations(["disc.png"])  # type: ignore[list-item]


def test_equal_seeds_of_any_integer_type_give_the_same_images(generator: TextToImage) -> None:
    made = [
        generator.generate("a red disc", seed=seed, candidates=1)[0][0].tobytes()  # type: ignore[arg-type]
        for seed in (3, np.int64(3), np.uint8(3))
    ]
    assert made[0] == made[1] == made[2]


def test_at_temperature_zero_the_seed_does_not_matter(generator: TextToImage) -> None:
    greedy = [generator.generate_scored("a red disc", seed=seed, temperature=0)[0][0] for seed in (1, 2)]
    assert (greedy[0].codes == greedy[1].codes).all()
    likeliest = generator.generate_scored("a red disc", seed=3, top_k=1)[0][0]
    assert (greedy[0].codes == likeliest.codes).all()


def test_the_end_of_a_long_prompt_is_said_not_to_be_read(
    generator: TextToImage, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = "a red disc on a blue square and a cross"  # 10 words, of which the CLIP reads 6
    generator.generate([prompt, "a red disc"], candidates=1)
    said = capsys.readouterr().err.splitlines()
    assert said == [f"the CLIP does not read the last 4 tokens of the prompt '{prompt}': shorten it"]
    assert generator.dropped_tokens([prompt, "a red disc", "a red disc on a blue"]) == [4, 0, 0]
    cut = generator.embed_text([prompt, "a red disc on a blue"])
    assert (cut[0] == cut[1]).all()


NUMBERS = st.one_of(
    st.none(),
    st.floats(width=64),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, -1, 5e-324, 1e-40, 1e-9, 1e300, float("inf"), float("nan"), True, "1", "x"]),
    st.sampled_from([np.int64(2), np.float32(0.5), np.uint8(0), np.array([1, 2])]),
)
PROMPTS = st.one_of(
    st.text(),
    st.text(alphabet=st.characters()),  # lone surrogates too
    st.lists(st.one_of(st.text(max_size=20), st.none(), st.integers(), st.binary()), max_size=2),
    st.sampled_from([None, 5, b"heart", "x" * 10_000, ("a heart",), "❤️" * 300, "שלום"]),
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    prompts=PROMPTS,
    n=st.one_of(st.integers(-1, 2), NUMBERS),
    seed=NUMBERS,
    given=st.dictionaries(st.sampled_from(list(SamplingConfig.model_fields)), NUMBERS, max_size=3),
)
def test_any_request_gives_images_or_one_sentence(
    generator: TextToImage, prompts: Sequence[str], n: int, seed: int, given: dict[str, Any]
) -> None:
    try:
        rows = generator.generate(prompts, n, seed, **({"candidates": 1} | given))
    except ClipgenError as error:
        assert str(error) and "\n" not in str(error)
        return
    assert len(rows) == (1 if isinstance(prompts, str) else len(prompts))
    assert all(image.size == (32, 32) for row in rows for image in row)
    assert all(len(row) == n for row in rows)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    prompt=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(str.strip),
    seed=st.integers(-(2**64) + 1, 2**64 - 1),
    temperature=st.floats(0, allow_infinity=False),
    top_k=st.integers(0, 2**40),
    top_p=st.floats(0, 1, exclude_min=True),
    guidance_scale=st.floats(0, 1000),
    neighbours=st.integers(1, 1000),
    neighbour_temperature=st.floats(0, exclude_min=True, allow_infinity=False),
    condition=st.sampled_from(["text", "shifted", "retrieval", "nearest"]),
)
def test_every_allowed_request_gives_images(generator: TextToImage, prompt: str, **settings: Any) -> None:
    assert generator.generate(prompt, candidates=1, **settings)[0][0].size == (32, 32)


def test_missing_or_damaged_models_are_one_sentence(generator: TextToImage, tmp_path: Path) -> None:
    with pytest.raises(ClipgenError, match="there is no model at"):
        TextToImage.from_pretrained(str(tmp_path / "none"))
    with pytest.raises(
        ClipgenError, match=r"has neither .*: give a model file, a generator folder, .*\(step-N\) or a reg"
    ):
        read_parts(str(tmp_path))
    with pytest.raises(ClipgenError, match="is no transformer checkpoint: give a model file"):
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
