from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from clipgen_core import plan as plans
from clipgen_core import proposal
from clipgen_core.assets import JOBS
from clipgen_core.data.listing import Entry
from clipgen_core.data.prompts import by_split, read_prompts
from clipgen_core.data.sources import Source
from clipgen_core.errors import ClipgenError
from clipgen_core.plan import speed
from clipgen_core.proposal import clips, propose
from clipgen_core.run_config import read_run

QUICK = {"clip.train.batch_size": 8, "transformer.train.batch_size": 8, "vqgan.train.batch_size": 4}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(reference: str) -> str:
        raise ClipgenError(f"CLIP {reference!r} could not be fetched: check the network")

    monkeypatch.setattr(clips, "available", unreachable)
    monkeypatch.setattr(speed, "_seconds", lambda _: 0.01)
    monkeypatch.setattr(speed, "_seconds_of", lambda _, rows, most: 0.01 * rows)
    monkeypatch.chdir(tmp_path)


def test_a_folder_with_names_becomes_a_run_that_dagster_takes(pictures: Path) -> None:
    source = str(pictures / "pictures")
    one = propose(source, overrides=QUICK)
    assert one.name == "pictures" and one.recipe == "photos"
    assert one.clip.reference == "trained" and one.prompts == f"names:{source}"
    lines = one.lines()
    assert len(lines) == 5 and "about 72 of 33 px" in lines[0] and "24 different ones" in lines[1]
    assert "64 px in 16 x 16 codes" in lines[2] and "1,400 steps of 8 images" in lines[2]
    assert one.settings.evaluation.thresholds.min_prompts == 24
    files = one.write()
    assert list(files) == ["clip_training", "clip_gen"]
    for job, file in files.items():
        run = read_run(yaml.safe_load(file.read_text()), JOBS[job])
        assert not run.problems and run.root == str(Path(".clipgen/pictures").resolve())
    assert run.recipe.vqgan.train.batch_size == 4 and run.own["evaluation_report"] == {
        "prompts": f"names:{source}"
    }


def test_a_public_clip_comes_before_names(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "available", lambda _: "there")
    monkeypatch.setattr(clips, "PUBLIC", "hub:ViT-B-32/laion2b_s34b_b79k")
    choice = clips.choose(str(pictures / "pictures"), None, None)
    assert choice.reference == clips.PUBLIC and choice.captions is None
    captions = clips.choose(str(pictures / "pictures"), None, str(pictures / "captions.csv"))
    assert captions.reference == "trained" and "the captions of 72 images" in captions.said
    assert captions.different == 24
    (pictures / "other.csv").write_text("file,caption\nno.png,a\nnone.png,b\n")
    with pytest.raises(ClipgenError, match="2 of 2 files that captions file .*other.csv names do not exist"):
        clips.choose(str(pictures / "pictures"), None, str(pictures / "other.csv"))
    (pictures / "other.csv").unlink()


def test_captions_that_train_the_clip_are_the_prompts(pictures: Path) -> None:
    captions = str(pictures / "captions.csv")
    one = propose(str(pictures / "pictures"), captions=captions, overrides=QUICK)
    assert one.prompts == captions and "prompts  the captions" in one.lines()
    assert one.settings.evaluation.thresholds.min_prompts == 24
    prompts = read_prompts(captions)
    assert len(by_split(prompts)["all"]) == 24 and Path(prompts[0].file or "").is_file()


def test_without_a_clip_and_names_the_error_says_what_to_download(tmp_path: Path) -> None:
    (tmp_path / "DCIM").mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / "DCIM" / f"IMG_{i}.png")
    with pytest.raises(ClipgenError) as caught:
        propose(str(tmp_path / "DCIM"))
    said = str(caught.value)
    assert "do not say what the images show" in said and "--clip local-dir:clip" in said
    assert said.count("laion/CLIP") == 4 and "hf download laion/CLIP-ViT-B-32" in said
    with pytest.raises(ClipgenError, match="exclude each other"):
        propose(str(tmp_path / "DCIM"), clip="local-dir:x", captions="y.csv")


def test_minutes_scale_all_trainings_alike(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_seconds_of", lambda _, rows, most: 0.5 * rows)
    monkeypatch.setattr(plans, "survey", lambda *_: plans.Survey(72, 9000, 72, 1.0, 33.0, 0.001))
    source = str(pictures / "pictures")
    whole = propose(source, overrides=QUICK)
    half = propose(source, overrides=QUICK, minutes=60 * whole.hours / 2)
    assert half.hours == pytest.approx(whole.hours / 2, rel=0.02)
    ratios = [
        getattr(half.settings, stage).train.steps / getattr(whole.settings, stage).train.steps
        for stage in ("clip", "vqgan", "transformer")
    ]
    assert max(ratios) - min(ratios) < 0.01 and 0.4 < ratios[0] < 0.5
    long = propose(source, overrides=QUICK | {"clip.train.steps": 7}, minutes=10_000).settings
    assert long.vqgan.train.steps == 4 * whole.settings.vqgan.train.steps and long.clip.train.steps == 7
    with pytest.raises(ClipgenError, match=r"4 minutes are too few .*: give at least \d+"):
        propose(source, overrides=QUICK, minutes=4)


def test_what_can_be_known_at_once_is_refused_before_anything_is_listed_or_measured(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("looked at the folder, or measured")

    monkeypatch.setattr(clips, "choose", never)
    monkeypatch.setattr(plans, "plan", never)
    source = str(pictures / "pictures")
    for given, said in (
        ({"minutes": 1}, "^1 minute is too few .*: give at least 5$"),
        ({"recipe": "huge"}, "there is no recipe 'huge'"),
        ({"overrides": {"vqgan.train.step": 3}}, "vqgan.train.step"),
        ({"name": "a/b"}, "--name 'a/b' cannot name a run"),
        ({"name": ".."}, "cannot name a run"),
        ({"name": ""}, "cannot name a run"),
    ):
        with pytest.raises(ClipgenError, match=said):
            propose(source, **given)  # type: ignore[arg-type]
    with pytest.raises(ClipgenError, match="pictres does not exist"):
        propose(str(pictures / "pictres"))


def test_the_folder_is_listed_twice_once_for_its_names_and_once_to_be_measured(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked, walk = list[str](), Source._walk

    def counted(source: Source, folder: str) -> Iterator[tuple[str, list[Entry] | None]]:
        walked.append(folder)
        return walk(source, folder)

    monkeypatch.setattr(Source, "_walk", counted)
    propose(str(pictures / "pictures"), overrides=QUICK)
    folders = Source(str(pictures / "pictures")).folders()
    assert len(walked) == 2 * len(folders) + 1  # and the first folder, to see whether there is any file


def test_the_machine_decides_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        total_memory = 80e9

    assert proposal._fitting() == "photos"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: Device)
    assert proposal._fitting() == "l"
    Device.total_memory = 24e9
    assert proposal._fitting() == "b"


def test_a_folder_that_cannot_be_used_is_refused_without_a_word_of_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "red rose.jpg").write_bytes(b"")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for source, message in (
        (str(tmp_path / "empty"), r"empty is empty: name the folder that holds the images"),
        (str(tmp_path / "gone"), r"gone does not exist: check the path"),
        (str(tmp_path / "red rose.jpg"), r"red rose.jpg is a file: name the folder that holds it"),
        ("s3://no-such-bucket/x", r"s3://no-such-bucket/x cannot be read \(.*credentials\): check the path"),
        ("nowhere://x/y", r"nowhere"),
    ):
        with pytest.raises(ClipgenError, match=message) as caught:
            propose(source)
        assert "hf download" not in str(caught.value) and "\n" not in str(caught.value)


def test_images_named_in_quotes_and_in_other_scripts_become_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "my 12 'photos'"
    folder.mkdir()
    for i, name in enumerate(('it\'s a "rose"', "薔薇 赤", "blue, tulip; big") * 4):
        Image.new("RGB", (70, 70), (20 * i, 0, 99)).save(folder / f"{name} {i}.png")
    one = propose(str(folder), recipe="quick")
    assert one.name == "my-12-photos" and "the names of 12 images, 3 different ones" in one.lines()[1]
    for job, file in one.write().items():
        run = read_run(yaml.safe_load(file.read_text()), JOBS[job])
        assert not run.problems and run.root == str(Path(".clipgen/my-12-photos").resolve())
