from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipgen_core.errors import ClipgenError
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.stages import clip
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from tests.conftest import COLOURS, SHAPES, draw, tiny_clip_config

CAPTIONS = ("a cat", "a Cat", "the dog", "a dog and a cat", "#", "the sea otter")


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=3), min_size=2, max_size=30))
def test_no_batch_holds_a_shared_caption(captions: list[list[str]]) -> None:
    for batch in clip.distinct_batches(captions, size=4, seed=0, epoch=1):
        taken = [set(captions[i]) for i, _ in batch]
        assert len(batch) <= 4
        assert sum(map(len, taken)) == len(set.union(*taken))
        assert all(caption in captions[i] for i, caption in batch)


def test_an_epoch_visits_every_picture_when_captions_differ() -> None:
    batches = clip.distinct_batches([[str(i)] for i in range(12)], size=4, seed=0, epoch=3)
    assert sorted(i for batch in batches for i, _ in batch) == list(range(12))


@given(
    st.lists(st.lists(st.sampled_from(CAPTIONS), min_size=1), min_size=2, max_size=9),
    st.sampled_from([0, 0.1, 0.9]),
)
def test_soft_targets_go_to_captions_with_words_in_common(captions: list[list[str]], soften: float) -> None:
    vectors = torch.from_numpy(clip.word_vectors(captions).toarray())
    wanted = clip.soft_targets(vectors, soften)
    said = [set(" ".join(own).lower().split()) for own in captions]
    assert wanted.sum(1).tolist() == pytest.approx([1] * len(captions))
    for i, own in enumerate(said):
        others = [j for j in range(len(said)) if j != i and own & said[j]]
        assert wanted[i, i].item() == pytest.approx(1 - soften if others else 1, abs=1e-5)
        assert not soften or all(wanted[i, j] > 0 for j in others)


def test_rare_words_in_common_count_for_more() -> None:
    captions = [["a river otter"], ["a sea otter"], ["a river bank"], ["a river"], ["a bird"]]
    wanted = clip.soft_targets(torch.from_numpy(clip.word_vectors(captions).toarray()), 0.3)
    assert wanted[0, 1] > wanted[0, 2] > wanted[0, 4] > 0


@pytest.mark.slow
def test_a_trained_clip_tells_shapes_and_colours_apart(pictures: Path, storage: Storage) -> None:
    result = clip.run(
        tiny_clip_config(steps=150),
        captions=str(pictures / "captions.csv"),
        out=storage,
        tracker=NullTracker(),
    )
    assert result.images == 72 and result.captions == 72
    encoder = ClipEncoder(result.clip)
    names = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]
    images = encoder.encode_images([draw(c, s) for c in COLOURS for s in SHAPES])
    right = (images @ encoder.encode_texts(names).T).argmax(1) == range(len(names))
    assert right.mean() > 0.6  # chance is 1 / 24
    assert storage.current("clip", "tests").path == result.clip


def test_an_unusable_picture_is_named(pictures: Path, storage: Storage, tmp_path: Path) -> None:
    for file, problem in (("none.png", "none.png, which cannot be used"), ("../x.png", "leaves the folder")):
        (tmp_path / "captions.csv").write_text(f"file,caption\n{file},a thing\nother.png,another")
        with pytest.raises(ClipgenError, match=problem):
            clip.run(
                tiny_clip_config(),
                captions=str(tmp_path / "captions.csv"),
                out=storage,
                tracker=NullTracker(),
            )
