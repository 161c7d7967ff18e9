import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from clipgen_core.plan import source
from clipgen_core.plan.source import survey
from clipgen_core.settings.images import Config


def png(side: int) -> bytes:
    written = io.BytesIO()
    Image.effect_noise((side, side), 50).convert("RGB").save(written, "PNG")
    return written.getvalue()


def write_tar(path: Path, count: int) -> None:
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            for ending, data in (("png", png(32)), ("mask.png", png(16)), ("txt", b"a caption")):
                header = tarfile.TarInfo(f"{number:05d}.{ending}")
                header.size = len(data)
                archive.addfile(header, io.BytesIO(data))


def test_large_archives_are_counted_by_their_first_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "MEMBERS", 8)
    write_tar(tmp_path / "a.tar", 200)
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        archive.addfile(tarfile.TarInfo("99999.png"))  # without a byte, and not among the first
    seen = survey(str(tmp_path), Config())
    assert (seen.files, seen.usable) == (1, 1.0)
    assert seen.images == pytest.approx(400, rel=0.3)


def test_only_the_images_that_the_recipe_reads_are_sampled(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", 10)
    assert survey(str(tmp_path), Config()).images == 20
    masks = survey(str(tmp_path), Config(key="mask.png"))
    assert (masks.images, masks.mean_side) == (10, 16)
    assert survey(str(tmp_path), Config(max_bytes=2000)).usable == pytest.approx(0.5)


def test_a_zip_file_says_how_many_images_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MEMBERS", 8)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(100):
            archive.writestr(f"{number}.png", png(32 if number < 8 else 200))
            archive.writestr(f"{number}.txt", b"a caption")
    assert survey(str(tmp_path), Config()).images == 100
