import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from clipgen_core import filesystem
from clipgen_core.cli import app
from clipgen_core.data.tables import upsert
from clipgen_core.data.upkeep import tag
from clipgen_core.errors import ClipgenError
from clipgen_core.registry.unused import artefacts, remove, remove_artefact, unused
from clipgen_core.schema import CHAMPIONS, codes_fingerprint, embeddings_schema
from clipgen_core.storage import Storage
from clipgen_core.tracking import mlflow_client

MONTH = timedelta(days=30)
OLD, NEW = ("old", "a"), ("new", "b")  # names of trainings and of a CLIP
WRITTEN_AGAIN = {  # where a training needs them; its checkpoint does not
    "tokens/v-old-a-old",
    f"codes/{codes_fingerprint('v-old', 1, 0.9)}.lance",
}


def write(folder: Path, record: dict[str, Any], *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(record))


def generation(root: Path, name: str, clip: str, started_from: str | None = None) -> None:
    """All that one training of everything leaves, as its records name it."""
    reference = f"local-dir:{{root}}/clips/{clip}"
    row = pa.table({"id": ["0" * 64], "folder": ["x"], "vector": [[1.0, 0.0]]})
    schema = embeddings_schema(2, reference, clip)
    table = f"{root}/embeddings/{clip}.lance"
    upsert(table, row.cast(schema), "id", overwrite=False)
    for kind, file in (("codes", codes_fingerprint(f"v-{name}", 1, 0.9)), ("duplicates", clip)):
        upsert(f"{root}/{kind}/{file}.lance", row.select(["id", "folder"]), "id", overwrite=False)
    manifest = {
        "clip": reference,
        "embeddings": f"{{root}}/embeddings/{clip}.lance",
        "vqgan": f"{{root}}/checkpoints/vqgan/v-{name}/step-1",
        "vqgan_digest": f"v-{name}",
        "views": 1,
        "smallest_crop": 0.9,
    }
    start = {"started_from": {"url": started_from}, "config": {"start_from": started_from}}
    write(root / "clips" / clip, {}, "open_clip_config.json")
    write(root / "checkpoints" / "vqgan" / f"v-{name}" / "step-1", {"clip": reference}, "config.json")
    write(root / "tokens" / f"v-{name}-{clip}-{name}", manifest, "manifest.json")
    folder = root / "checkpoints" / "transformer" / name / "step-1"
    write(folder, {"tokens": manifest, **start}, "config.json", "state.json")
    write(root / "reports" / name, {}, "metrics.json")
    tag(table, 1, f"tokens-{name}")
    tag(table, 1, f"transformer-{name}")


@pytest.fixture
def out(tmp_path: Path) -> Storage:
    """A root of two generations, long ago, of which the second started from the first."""
    root = tmp_path / "root"
    generation(root, *OLD)
    generation(root, *NEW, started_from="{root}/checkpoints/transformer/old/step-1")
    made = Storage(str(root))
    made.publish_current("transformer", f"{root}/checkpoints/transformer/new/step-1", "new")
    made.publish_current("tokens", f"{root}/tokens/v-new-b-new", "new")
    made.publish_current("evaluation", f"{root}/reports/new", "new")
    for file in root.rglob("*"):
        os.utime(file, (1e9, 1e9))
    return made


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return mlflow_client(f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db")


def names_of(name: str, clip: str) -> set[str]:
    return {
        f"checkpoints/transformer/{name}",
        f"checkpoints/vqgan/v-{name}",
        f"tokens/v-{name}-{clip}-{name}",
        f"codes/{codes_fingerprint(f'v-{name}', 1, 0.9)}.lance",
        f"embeddings/{clip}.lance",
        f"duplicates/{clip}.lance",
        f"reports/{name}",
        f"clips/{clip}",
    }


def test_what_the_newest_artefacts_were_made_from_stays_and_the_rest_goes(out: Storage, client: Any) -> None:
    assert {one.name for one in artefacts(out)} == names_of(*OLD) | names_of(*NEW)
    gone = unused(out, client, MONTH)
    assert {one.name for one in gone} == names_of(*OLD) and all(one.size for one in gone)
    remove(out, gone)
    assert {one.name for one in artefacts(out)} == names_of(*NEW) and unused(out, client, MONTH) == []


def test_tags_of_what_is_gone_go_too(out: Storage, client: Any) -> None:
    import lance

    shared = out.embeddings("b")
    tag(shared, 1, "transformer-old")
    tag(shared, 1, "of-somebody-else")
    remove(out, unused(out, client, MONTH))
    assert set(lance.dataset(shared).tags.list()) == {"tokens-new", "transformer-new", "of-somebody-else"}


def test_what_a_registered_version_names_stays_also_where_the_root_was_moved(
    out: Storage, client: Any
) -> None:
    client.create_registered_model("mine")
    named = {"transformer": "/elsewhere/checkpoints/transformer/old/step-1", "started_from": "/x/reports/new"}
    client.create_model_version("mine", source="file:///none", tags=named)
    assert {one.name for one in unused(out, client, MONTH)} == WRITTEN_AGAIN | {"reports/old"}
    client.delete_registered_model("mine")
    assert len(unused(out, client, MONTH)) == len(names_of(*OLD))


def test_what_is_young_stays_with_all_that_it_was_made_from(out: Storage, client: Any) -> None:
    os.utime(Path(out.root) / "checkpoints" / "transformer" / "old" / "step-1" / "state.json")
    assert {one.name for one in unused(out, client, MONTH)} == WRITTEN_AGAIN | {"reports/old"}


def test_a_registry_that_lacks_a_champion_may_be_another(out: Storage, client: Any) -> None:
    row = {"number": 1, "version": "3", "before": "", "reason": "promotion", "at": datetime.now(UTC)}
    upsert(out.champions("mine"), pa.Table.from_pylist([row], schema=CHAMPIONS), "number", overwrite=False)
    with pytest.raises(ClipgenError, match="version 3 of mine, which .* is no longer in MLflow"):
        unused(out, client, MONTH)


def test_a_folder_in_a_store_is_removed() -> None:
    for name in ("report.html", "metrics.json"):
        filesystem.write_bytes(f"memory://root/reports/1/{name}", b"{}")
    remove_artefact("memory://root/reports/1")
    assert not filesystem.exists("memory://root/reports/1/report.html")


def test_the_command_reports_first_and_removes_with_yes(
    out: Storage, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    said = CliRunner().invoke(app, ["gc", "--root", out.root]).output
    assert said.count("\n") == len(names_of(*OLD)) + 1 and "would be removed; repeat with --yes" in said
    assert len(list(artefacts(out))) == 2 * len(names_of(*OLD))
    assert "are removed" in CliRunner().invoke(app, ["gc", "--root", out.root, "--yes"]).output
    assert CliRunner().invoke(app, ["gc", "--root", out.root]).output.startswith("0 artefacts, 0.0 MB")
