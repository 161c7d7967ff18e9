from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from clipgen_core.cli import app
from clipgen_core.data import forget as forget_module
from clipgen_core.data.tables import column
from clipgen_core.stages import images
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker

Forget = Callable[..., Result]


@pytest.fixture
def source(storage: Storage, tmp_path: Path) -> Path:
    """Three images that were read."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("red", "blue", "green"):
        Image.new("RGB", (40, 30), name).save(folder / f"{name}.png")
    images.run(images.Config(), source=str(folder), out=storage, tracker=NullTracker())
    return folder


@pytest.fixture
def forget(source: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Forget:
    monkeypatch.chdir(source.parent)
    return lambda *args: CliRunner().invoke(app, ["forget", "--root", storage.root, *args])


def left(storage: Storage) -> set[str]:
    return {Path(uri).stem for uri in column(storage.images, "uri")}


def test_forget_counts_first_and_removes_with_yes(forget: Forget, source: Path, storage: Storage) -> None:
    (source / "red.png").unlink()
    (source.parent / "list.txt").write_text(f"file://{source}/blue.png\n\n")
    given = ("--missing", str(source), "--list", "list.txt")
    assert forget(*given).output == "2 images would be removed; repeat with --yes\n"
    assert forget(*given, "--yes").output == "2 images are removed\n"
    assert left(storage) == {"green"}
    for args, said in (((), "no image is named"), (("--list", "none.txt"), "there is no file none.txt")):
        refused = forget(*args)
        assert refused.exit_code == 2 and said in refused.output


@pytest.mark.parametrize("name", ["{source}/red.png", "in/red.png", "../{parent}/in/./red.png"])
def test_an_image_is_named_by_its_file(name: str, forget: Forget, source: Path, storage: Storage) -> None:
    named = name.format(source=source, parent=source.parent.name)
    assert forget(named, "--yes").output == "1 images are removed\n"
    assert left(storage) == {"blue", "green"}


def test_an_image_that_lies_elsewhere_too_stays_and_that_is_said(
    forget: Forget, source: Path, storage: Storage
) -> None:
    (source / "again.png").write_bytes((source / "red.png").read_bytes())
    images.run(images.Config(), source=str(source), out=storage, tracker=NullTracker())
    stays = "1 lie at other places too and stay: name them by their ids to remove them\n"
    for name in ("red", "again"):
        assert forget(f"in/{name}.png").output == f"0 images would be removed; repeat with --yes\n{stays}"
    both = forget("in/red.png", "in/again.png", "in/blue.png", "--yes")
    assert both.output == "2 images are removed\n"
    assert left(storage) == {"green"}


def test_a_folder_that_is_no_root_is_not_cleared(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "mine" / "v1").mkdir(parents=True)
    refused = CliRunner().invoke(app, ["gc", "--root", str(tmp_path), "--yes"])
    assert refused.exit_code == 2 and f"{tmp_path} is no root" in refused.output


def test_names_of_no_image_are_said_and_nothing_is_removed(
    forget: Forget, source: Path, storage: Storage
) -> None:
    known = column(storage.images, "id")[0]
    wrong = ["0" * 64, f"file://{source}", "in/red.png#x", "in/teal.png", known[:12]]
    for names in (wrong, [f"in/{number}.png" for number in range(7)]):
        refused = forget(known, *names, "--yes")
        assert refused.exit_code == 2, refused.output
        assert f"{len(names)} of the {len(names) + 1} entries name no image" in refused.output
        assert all((one in refused.output) for one in names[:5])
        assert ("and 2 more" in refused.output) == (len(names) == 7)
    assert left(storage) == {"red", "blue", "green"}


def test_a_list_may_begin_with_a_mark_and_must_be_utf_8(
    forget: Forget, source: Path, storage: Storage
) -> None:
    listed = source.parent / "list.txt"
    listed.write_text("in/red.png\nin/blue.png", "utf-8-sig")
    assert forget("--list", "list.txt", "--yes").output == "2 images are removed\n"
    for encoding in ("latin-1", "utf-16"):
        listed.write_text("in/gr\xfcn.png", encoding)
        refused = forget("--list", "list.txt")
        assert refused.exit_code == 2 and "list.txt is no text in UTF-8" in refused.output
    assert left(storage) == {"green"}


def test_a_source_of_which_nothing_is_left_may_be_unmounted(
    forget: Forget, source: Path, storage: Storage
) -> None:
    source.rename(source.parent / "away")
    source.mkdir()
    (source / "README").write_text("mount the disk here")
    refused = forget("--missing", "in", "--yes")
    assert refused.exit_code == 2 and "no file is left of the 3 images" in refused.output
    refused = forget("--missing", "away", "--yes")
    assert refused.exit_code == 2 and "was read from away: check the address" in refused.output
    assert left(storage) == {"red", "blue", "green"}


def test_a_list_whose_call_was_killed_is_repeated(
    forget: Forget, source: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = sorted(column(storage.images, "id"))
    (source.parent / "list.txt").write_text("\n".join(ids[:2]))
    monkeypatch.setattr(forget_module, "AT_ONCE", 1)
    whole = forget_module.delete

    def killed(url: str, where: str) -> None:
        if url == storage.images and ids[1] in where:
            raise KeyboardInterrupt
        whole(url, where)

    monkeypatch.setattr(forget_module, "delete", killed)
    assert forget("--list", "list.txt", "--yes").output == "stopped\n"
    monkeypatch.setattr(forget_module, "delete", whole)
    assert set(column(storage.images, "id")) == set(ids[1:])
    again = forget("--list", "list.txt", "--yes")
    assert again.output == (
        "1 of the 2 entries were forgotten already, by a call that was stopped\n1 images are removed\n"
    )
    refused = forget("--list", "list.txt", "--yes")
    assert refused.exit_code == 2 and "2 of the 2 entries name no image" in refused.output


def test_images_of_a_folder_that_is_gone_are_forgotten_together(
    forget: Forget, source: Path, storage: Storage
) -> None:
    other = source.parent / "other"
    other.mkdir()
    (source / "blue.png").rename(other / "blue.png")
    images.run(images.Config(), source=str(other), out=storage, tracker=NullTracker())
    source.rename(source.parent / "away")
    assert "no image under" in forget("--under", "i").output
    stays = "1 lie at other places too and stay: name them by their ids to remove them\n"
    assert forget("--under", "in").output == f"2 images would be removed; repeat with --yes\n{stays}"
    assert forget("--under", "in/", "--yes").output == f"2 images are removed\n{stays}"
    assert column(storage.images, "uri") == [f"file://{other}/blue.png"]


def test_a_root_without_models_needs_no_mlflow(forget: Forget, storage: Storage) -> None:
    gc = ["gc", "--root", storage.root]
    done = CliRunner().invoke(app, gc)
    assert done.exit_code == 0 and done.output == "0 artefacts, 0.0 MB, would be removed\n"
    Path(storage.path("reports", "one")).mkdir(parents=True)
    refused = CliRunner().invoke(app, gc)
    assert refused.exit_code == 2 and "there is no MLflow" in refused.output
    assert "which registered models saw them is not known" in forget("in/red.png").output
