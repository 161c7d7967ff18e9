from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipgen_core.data import captioned
from clipgen_core.data.captions import read_captions
from clipgen_core.data.prompts import read_prompts
from clipgen_core.data.referenced import take_images
from clipgen_core.errors import ClipgenError
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.recipes import named
from clipgen_core.stages import clip, images
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker
from tests.conftest import COLOURS, SHAPES, draw, tiny_clip_config

CAPTIONS = ("a cat", "a Cat", "the dog", "a dog and a cat", "#", "the sea otter")


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=3), min_size=2, max_size=30))
def test_batches_share_a_caption_only_where_too_many_images_do(captions: list[list[str]]) -> None:
    batches = clip.distinct_batches(captions, size=4, seed=0, epoch=1)
    used = [i for batch in batches for i, _ in batch]
    assert batches and len(used) == len(set(used))
    for batch in batches:
        taken = [set(captions[i]) for i, _ in batch]
        assert len(batch) <= 4
        assert all(caption in captions[i] for i, caption in batch)
        if sum(map(len, taken)) > len(set.union(*taken)):
            assert len(batch) == min(4, len(captions))


def test_class_names_as_captions_give_whole_batches() -> None:
    batches = clip.distinct_batches([[f"class {i % 10}"] for i in range(2_000)], size=160, seed=0, epoch=0)
    assert [len(batch) for batch in batches] == [160] * 12
    few = clip.distinct_batches([["cat"], ["dog"]] * 20, size=16, seed=0, epoch=0)
    assert {len(batch) for batch in few} == {16}
    fewer = clip.distinct_batches([["cat"], ["dog"]] * 4, size=160, seed=0, epoch=0)
    assert [len(batch) for batch in fewer] == [8]


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


def test_equal_captions_are_positives_of_each_other() -> None:
    words = torch.eye(3)[[0, 1, 0, 2]]
    alike = clip.same_rows(torch.tensor([[1, 2], [3, 4], [1, 2], [1, 4]]))
    assert clip.soft_targets(words, 0, alike).tolist() == [
        [0.5, 0, 0.5, 0],
        [0, 1, 0, 0],
        [0.5, 0, 0.5, 0],
        [0, 0, 0, 1],
    ]
    alone = clip.same_rows(torch.arange(4).unsqueeze(1))
    shared = torch.rand(4, 3)
    assert torch.equal(clip.soft_targets(shared, 0.3, alone), clip.soft_targets(shared, 0.3))


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


def task_for(folder: Path, rows: list[str]) -> clip.ClipTask:
    """The training on a captions file."""
    file = folder / "captions.csv"
    file.write_text("\n".join(["file,caption", *rows]))
    return clip.ClipTask(tiny_clip_config(), str(file), read_captions(str(file)))


def test_validation_images_are_not_trained_on(pictures: Path) -> None:
    file = str(pictures / "captions.csv")
    task = clip.ClipTask(tiny_clip_config(), file, read_captions(file))
    trained = {i for epoch in range(9) for batch in task.epoch(epoch) for i, _ in batch}
    assert len(task.held_out[0]) == 72 // 8 and len(trained) == 72 - 72 // 8
    assert trained == set(task.rows)


def test_the_held_out_images_stay_the_same_as_images_are_added() -> None:
    files = [f"{i}.png" for i in range(2_000)]
    before = {files[i] for i in clip.held_out_rows(files)}
    more = [f"new-{i}.png" for i in range(100)] + files
    after = {more[i] for i in clip.held_out_rows(more)}
    assert len(before) == 40 and len(after) == 42
    assert len(before - after) < 5
    assert clip.held_out_rows(files[:15]) == []


def test_a_few_images_are_enough_to_train(tmp_path: Path, storage: Storage) -> None:
    for colour in ("red", "blue"):
        draw(colour, "disc").save(tmp_path / f"{colour}.png")
    (tmp_path / "captions.csv").write_text(f"file,caption\nred.png,red\n{tmp_path}/blue.png,blue\n")
    result = clip.run(
        tiny_clip_config(), captions=str(tmp_path / "captions.csv"), out=storage, tracker=NullTracker()
    )
    assert result.images == 2 and result.fitted.metrics["validation_loss"] > 0


def test_captions_that_are_all_alike_are_refused(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").symlink_to(pictures / "pictures")
    files = [row.partition(",")[0] for row in (pictures / "captions.csv").read_text().splitlines()[1:]]
    long = "one two three four five six seven and then"
    for text in ("a photo", long):  # the CLIP reads 8 tokens
        rows = [f"{file},{text} {i if text == long else ''}" for i, file in enumerate(files)]
        with pytest.raises(ClipgenError, match="all captions in .* are the same to a CLIP that reads 8"):
            task_for(tmp_path, rows)


def test_few_captions_are_warned_of_and_fill_the_batch(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures").symlink_to(pictures / "pictures")
    rows = (pictures / "captions.csv").read_text().splitlines()[1:]
    shapes = [f"{row.partition(',')[0]},{row.rpartition(' ')[2]}" for row in rows]
    task = task_for(tmp_path, shapes)
    assert "72 images have only 3 different captions" in capsys.readouterr().err
    batch = task.batch(0)
    assert len(batch[0]) == 16
    ((_, loss, _),) = task.losses(batch, 0.0)
    loss.backward()
    assert 0 < loss.item() < 10
    metrics = task.validate().metrics
    assert metrics["recall_at_5"] >= metrics["recall_at_1"]


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("none.png", "names do not exist, the first is .*none.png"),
        ("text.png", "names text.png, which cannot be used"),
        ("../x.png", "leaves the folder"),
        ("/etc/passwd", "leaves the folder"),
    ],
)
def test_an_unusable_picture_is_named(tmp_path: Path, file: str, problem: str) -> None:
    for name in ("text.png", "other.png"):
        (tmp_path / name).write_text("no image")
    with pytest.raises(ClipgenError, match=problem):
        task_for(tmp_path, [f"{file},a thing", "other.png,another"])


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        ("vision_width", 100, "vision_width' is 100: it should be a multiple of 64"),
        ("text_width", 0, "text_width"),
        ("image_size", 60, "image_size 60 is not a multiple of patch_size 8"),
        ("vision_layers", 0, "vision_layers"),
        ("smallest_crop", 0.0, "smallest_crop"),
        ("smallest_crop", 1.5, "smallest_crop"),
        ("patch_dropout", 1.0, "patch_dropout"),
        ("context_length", 2, "context_length"),
        ("embed_dim", 0, "embed_dim"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(setting: str, value: float, problem: str) -> None:
    with pytest.raises(ClipgenError, match=problem):
        named("demo").override({f"clip.{setting}": value})


def test_an_images_table_with_captions_trains_as_its_files_do(
    pictures: Path, storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for i, colour in enumerate(COLOURS):
        draw(colour, "disc").save(tmp_path / "in" / f"{i}.png")
        (tmp_path / "in" / f"{i}.txt").write_text(f"a {colour} disc\na round thing in {colour}")
    images.run(images.Config(), source=str(tmp_path / "in"), out=storage, tracker=NullTracker())
    result = clip.run(tiny_clip_config(), captions=storage.images, out=storage, tracker=NullTracker())
    assert (result.images, result.captions) == (8, 16)
    rows = [f"in/{i}.png,a {colour} disc" for i, colour in enumerate(COLOURS)]
    from_files = task_for(tmp_path, rows)
    from_table = clip.ClipTask(tiny_clip_config(), storage.images, read_captions(storage.images))
    by_caption = {own[0]: i for i, own in enumerate(from_table.captions)}
    same = [by_caption[own[0]] for own in from_files.captions]
    for _ in range(2):  # read, and kept
        assert from_files.images.take([*range(8), 0]) == from_table.images.take([*same, same[0]])
    (held_out, *_) = prompts = read_prompts(storage.images)
    assert (held_out.split, held_out.file, len(prompts)) == ("held out", storage.images, 1)
    assert held_out.text.startswith("a ") and held_out.text.endswith(" disc")


def test_references_are_read_many_at_once(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for i, colour in enumerate(COLOURS):
        draw(colour, "disc").save(tmp_path / "in" / f"{i}.png")
        (tmp_path / "in" / f"{i}.txt").write_text(f"a {colour} disc")
    config, calls = images.Config(store="references"), list[int]()
    images.run(config, source=str(tmp_path / "in"), out=storage, tracker=NullTracker())
    task = clip.ClipTask(tiny_clip_config(), storage.images, read_captions(storage.images))
    expected = task.images.take([*range(8)])
    task.images.kept.clear()
    monkeypatch.setattr(captioned, "take_images", lambda *a: calls.append(len(a[1])) or take_images(*a))
    assert task.images.take([*range(8)]) == expected and calls == [8]
    assert task.images.take([3, 5]) == [expected[3], expected[5]] and calls == [8]


def test_an_images_table_without_captions_is_one_sentence(pipeline: Storage) -> None:
    with pytest.raises(ClipgenError, match="0 images of .*images.lance have captions: at least 2"):
        read_captions(pipeline.images)
    with pytest.raises(ClipgenError, match="no held-out image of .* has a caption: name a prompts file"):
        read_prompts(pipeline.images)
