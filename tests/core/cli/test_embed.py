from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from clipgen_core.cli import app
from clipgen_core.stages import images
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker

runner = CliRunner()


@pytest.mark.parametrize(
    ("clip", "said"),
    [
        ("ViT-B-32", "is neither hub:MODEL/PRETRAINED nor hf-hub:ORG/NAME nor local-dir:FOLDER"),
        ("hub:ViT-B-32/x", "not 'x': choose one of them"),
        ("hf-hub:a b", "is neither hub:MODEL/PRETRAINED nor hf-hub:ORG/NAME"),
        ("hf-hub:-a/b", "'hf-hub:-a/b' names no repository (Repo id must use alphanumeric chars"),
        ("hf-hub:a/b.git", "names no repository (Repo_id cannot end by '.git'"),
        ("local-dir:/no/such/clip", "CLIP folder /no/such/clip has no"),
    ],
)
def test_a_bad_clip_is_refused_before_images_are_read(clip: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (40, 30), "red").save(tmp_path / "in" / "a.png")
    given = ["embed", str(tmp_path / "in"), "--root", str(tmp_path / "root"), "--clip", clip]
    refused = runner.invoke(app, given)
    assert refused.exit_code == 2 and said in refused.output
    assert not (tmp_path / "root").exists()


def test_embed_goes_on_with_the_clip_of_the_embeddings(clip_reference: str, tmp_path: Path) -> None:
    source, root = tmp_path / "in", str(tmp_path / "root")
    for name in ("red", "blue"):
        (source / name).mkdir(parents=True)
        Image.new("RGB", (40, 30), name).save(source / name / "1.png")
    given = ["embed", str(source), "--root", root]
    assert "there is no clip_checkpoint" in runner.invoke(app, given).output
    assert runner.invoke(app, [*given, "--clip", clip_reference]).exit_code == 0
    (source / "red").rename(source / "crimson")
    said = runner.invoke(app, given).output
    assert "2 images were found, 0 of them new" in said and f"by {clip_reference}" in said
    command = f"clipgen prune red --source {source} --root {root}"
    assert f"the folder red is gone from {source}: its rows stay until `{command}`" in said.replace("\n", "")


def test_embed_counts_after_images_that_are_gone_were_set_aside(clip_reference: str, tmp_path: Path) -> None:
    storage, source = Storage(str(tmp_path / "root")), tmp_path / "in"
    source.mkdir()
    for name in ("red", "blue", "green", "white"):
        Image.new("RGB", (40, 30), name).save(source / f"{name}.png")
    images.run(images.Config(store="references"), source=str(source), out=storage, tracker=NullTracker())
    (source / "red.png").unlink()
    given = ["embed", str(source), "--root", storage.root, "--clip", clip_reference]
    said = runner.invoke(app, given).output
    assert "3 images were found, 0 of them new; the images table holds 3 now" in said
    assert "3 images were embedded in" in said
    assert said.startswith(f"listing {source} and reading its new images\n")
    assert "1 image is gone from the source or damaged, and set aside: see `clipgen rejects`" in said
    listed = runner.invoke(app, ["rejects", "--root", storage.root]).output
    assert listed.startswith(f"unreadable: file://{source}/red.png (No such file or directory")
    assert listed.count("red.png") == 1
