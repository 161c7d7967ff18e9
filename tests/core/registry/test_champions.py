import base64
import io
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image
from typer.testing import CliRunner

from clipgen_core.cli import app
from clipgen_core.data.pixels import png_bytes
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.generator import TextToImage
from clipgen_core.judging.checks import Verdict
from clipgen_core.mlflow_tracker import mlflow_run
from clipgen_core.registry.champions import Registry
from clipgen_core.registry.lineage import way_back
from clipgen_core.registry.versions import PARAMS
from clipgen_core.stages import evaluation
from clipgen_core.storage import Storage
from clipgen_core.tracking import describe, mlflow_client
from tests.conftest import PROCESSES, answers, free_port, wait_for

GOOD = [Verdict("enough_prompts", True, {}, "")]


@dataclass(frozen=True)
class Judged:
    """An evaluation as the registry sees it."""

    verdicts: list[Verdict]
    metrics: dict[str, float] = field(default_factory=dict)
    report: str = "/reports/1/report.html"


def mark(registry: Registry, version: str, verdicts: list[Verdict], judged_against: str | None) -> None:
    registry.mark(version, Judged(verdicts), judge=None, judged_against=judged_against, run_id="1")


@pytest.fixture
def tracking_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    uri = f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


def versions(uri: str, out: Storage, count: int) -> Registry:
    """A registry with `count` versions of nothing: promotion never opens a model. The root has been used."""
    Path(out.root, "reports").mkdir(parents=True, exist_ok=True)
    client = mlflow_client(uri)
    client.create_registered_model("clip-gen")
    for _ in range(count):
        client.create_model_version("clip-gen", source="file:///nothing")
    return Registry(client, out)


def aliases(registry: Registry) -> dict[str, str]:
    found = registry.client.get_registered_model("clip-gen").aliases
    return {alias: str(version) for alias, version in found.items()}


def test_a_second_root_with_the_same_name_takes_nothing_over(
    tracking_uri: str, storage: Storage, tmp_path: Path
) -> None:
    registry = versions(tracking_uri, storage, 2)
    mark(registry, "1", GOOD, None)
    registry.promote()
    other = Registry(registry.client, Storage(str(tmp_path / "other")))
    mark(other, "2", GOOD, None)
    for call in (other.promote, other.rollback):
        with pytest.raises(
            ClipgenError, match="@champion is version 1, which another root promoted: give each"
        ):
            call()
    assert aliases(registry)["champion"] == "1" and other.champion() is None


def test_a_champion_that_mlflow_lost_stops_what_needs_it_until_it_is_repaired(
    tracking_uri: str, storage: Storage
) -> None:
    registry = versions(tracking_uri, storage, 3)
    assert registry.repair() == []
    mark(registry, "1", GOOD, None)
    registry.promote("1")
    mark(registry, "2", GOOD, "1")
    registry.promote("2")
    mark(registry, "3", GOOD, "2")
    registry.client.delete_model_version("clip-gen", "2")
    before = registry.history()
    lost = "version 2 of clip-gen, which .* names, is no longer in MLflow: `clipgen champions --repair`"
    for call in (registry.rollback, lambda: registry.uri("2")):
        with pytest.raises(ClipgenError, match=lost):
            call()
    assert registry.history() == before
    done = CliRunner().invoke(app, ["champions", "--repair", "--root", storage.root])
    assert done.exit_code == 0 and "the champion is 1 now" in done.output
    assert registry.champion() == "1" and aliases(registry) == {"candidate": "3", "champion": "1"}
    assert registry.repair() == []


def test_a_version_that_was_compared_with_a_champion_lost_since_is_promoted(
    tracking_uri: str, storage: Storage
) -> None:
    registry = versions(tracking_uri, storage, 2)
    mark(registry, "1", GOOD, None)
    registry.promote("1")
    mark(registry, "2", GOOD, "1")
    registry.client.delete_model_version("clip-gen", "1")
    assert registry.promote("2").before == ""
    assert registry.champion() == "2" and aliases(registry) == {"candidate": "2", "champion": "2"}
    with pytest.raises(ClipgenError, match="no other champion to roll back to"):
        registry.rollback()


def test_versions_of_a_new_database_are_not_those_of_the_same_numbers(
    tracking_uri: str, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = versions(tracking_uri, storage, 1)
    mark(registry, "1", GOOD, None)
    registry.promote()
    monkeypatch.setattr("clipgen_core.registry.champions.SKEW", timedelta(0))
    anew = versions(f"sqlite:///{tmp_path}/anew/mlflow.db", storage, 1)
    mark(anew, "1", GOOD, "1")
    with pytest.raises(ClipgenError, match="is no longer in MLflow"):
        anew.uri("1")
    assert anew.repair() and anew.champion() is None and "champion" not in aliases(anew)
    mark(anew, "1", GOOD, None)
    assert anew.promote().version == "1" and aliases(anew)["champion"] == "1"


def test_aliases_that_differ_from_the_table_are_healed(tracking_uri: str, storage: Storage) -> None:
    registry = versions(tracking_uri, storage, 3)
    for version, before in (("1", None), ("2", "1")):
        mark(registry, version, GOOD, before)
        registry.promote(version)
    registry.client.set_registered_model_alias("clip-gen", "champion", "1")
    registry.client.delete_registered_model_alias("clip-gen", "previous")
    assert registry.repair() == ["the alias champion is 2 again", "the alias previous is 1 again"]
    assert aliases(registry) == {"candidate": "2", "champion": "2", "previous": "1"}
    registry.client.delete_model_version("clip-gen", "1")
    assert registry.repair() == ["there is no way back any more: MLflow lost version 1"]
    assert aliases(registry) == {"candidate": "2", "champion": "2"} and registry.repair() == []
    registry.client.set_registered_model_alias("clip-gen", "champion", "3")
    with pytest.raises(ClipgenError, match="version 3, which another root promoted"):
        registry.repair()


class ReadOnly:
    """A client of an MLflow from which some calls get no answer, such as those that write."""

    def __init__(self, client: Any, *refused: str) -> None:
        self.client, self.refused = client, refused

    def __getattr__(self, name: str) -> Any:
        if name in self.refused:
            raise MlflowException("API request to http://x failed with [Errno 111] Connection refused'))")
        return getattr(self.client, name)


def test_a_promotion_is_written_only_if_mlflow_takes_it(tracking_uri: str, storage: Storage) -> None:
    registry = versions(tracking_uri, storage, 1)
    mark(registry, "1", GOOD, None)
    client = registry.client
    registry.client = ReadOnly(client, "set_model_version_tag", "set_registered_model_alias")
    with pytest.raises(ClipgenError, match=r"did not answer \(connection refused\): nothing was changed"):
        registry.promote()
    assert registry.history() == [] and aliases(registry) == {"candidate": "1"}
    registry.client = ReadOnly(client, "set_registered_model_alias")  # away between the two
    with pytest.raises(ClipgenError, match="names version 1 as champion, and `clipgen champions --repair`"):
        registry.promote()
    registry.client = client
    assert registry.champion() == "1" and aliases(registry) == {"candidate": "1"}
    assert registry.repair() == ["the alias champion is 1 again"] and aliases(registry)["champion"] == "1"


def test_promotion_roll_back_and_their_history(tracking_uri: str, storage: Storage) -> None:
    registry = versions(tracking_uri, storage, 3)
    with pytest.raises(ClipgenError, match="no other champion"):
        registry.rollback()
    mark(registry, "1", GOOD, None)
    assert registry.promote().before == ""
    assert aliases(registry) == {"candidate": "1", "champion": "1"}
    mark(registry, "2", GOOD, "1")
    assert registry.promote("2").before == "1"
    assert aliases(registry) == {"candidate": "2", "champion": "2", "previous": "1"}
    assert registry.promote("2").number == 2  # it is champion already
    mark(registry, "3", GOOD, "1")
    with pytest.raises(ClipgenError, match="compared with version 1, but the champion is 2 now"):
        registry.promote("3")
    runner = CliRunner()
    done = runner.invoke(app, ["rollback", "--root", storage.root])
    assert done.exit_code == 0 and "version 1 again" in done.output
    assert aliases(registry) == {"candidate": "3", "champion": "1", "previous": "2"}
    said = [runner.invoke(app, ["promote", "3", "--root", storage.root]) for _ in range(2)]
    assert [one.exit_code for one in said] == [0, 0]
    assert "(before: 1)" in said[0].output and "(as it was before)" in said[1].output
    shown = runner.invoke(app, ["champions", "--root", storage.root]).output
    assert [row.version for row in registry.history()] == ["1", "2", "1", "3"]
    assert shown.count("promotion") == 3 and shown.count("rollback") == 1


def test_a_failed_check_or_none_at_all_is_not_promoted(tracking_uri: str, storage: Storage) -> None:
    registry = versions(tracking_uri, storage, 2)
    with pytest.raises(ClipgenError, match="version 1 was not judged"):
        registry.promote("1")
    with pytest.raises(ClipgenError, match="the registry has no models:/clip-gen@candidate"):
        registry.promote()
    with pytest.raises(ClipgenError, match="the registry has no models:/clip-gen/9"):
        registry.promote("9")
    mark(registry, "1", [*GOOD, Verdict("not_memorised", False, {}, "0.90 of the pictures copy")], None)
    with pytest.raises(ClipgenError, match=r"check.not_memorised failed: 0.90 of the pictures"):
        registry.promote("1")
    assert registry.champion() is None and aliases(registry) == {"candidate": "1"}


def test_a_check_that_was_not_measured_stops_the_candidate_but_not_a_named_version(
    tracking_uri: str, storage: Storage
) -> None:
    registry = versions(tracking_uri, storage, 2)
    unmeasured = Verdict("codebook_in_use", False, {}, "no figure", measured=False)
    mark(registry, "1", [*GOOD, unmeasured], None)
    with pytest.raises(ClipgenError, match=r"codebook_in_use not measured: no figure.*clipgen promote 1"):
        registry.promote()
    assert registry.champion() is None
    assert CliRunner().invoke(app, ["promote", "1", "--root", storage.root]).exit_code == 0
    assert registry.champion() == "1"
    mark(registry, "2", [unmeasured, Verdict("enough_prompts", False, {}, "too few")], "1")
    with pytest.raises(ClipgenError, match="enough_prompts failed: too few$"):
        registry.promote("2")


def race(uri: str, root: str, version: str, at: float) -> str:
    registry = Registry(mlflow_client(uri), Storage(root))
    time.sleep(max(at - time.time(), 0))
    try:
        return f"won {registry.promote(version).version}"
    except ClipgenError as error:
        return str(error)


@pytest.mark.slow
def test_of_promotions_at_once_one_wins_and_the_alias_is_on_it(tracking_uri: str, storage: Storage) -> None:
    registry = versions(tracking_uri, storage, 5)
    mark(registry, "1", GOOD, None)
    registry.promote("1")
    rivals = ["2", "3", "4", "5"]
    for version in rivals:
        mark(registry, version, GOOD, "1")
    with ProcessPoolExecutor(4, PROCESSES) as pool:
        at = time.time() + 15
        asked = [pool.submit(race, tracking_uri, storage.root, version, at) for version in rivals]
        said = [one.result() for one in asked]
    winners = [one.removeprefix("won ") for one in said if one.startswith("won")]
    assert len(winners) == 1
    assert registry.champion() == winners[0]
    assert aliases(registry) == {"candidate": "5", "champion": winners[0], "previous": "1"}
    for one in said:
        assert one.startswith("won") or "came first" in one or "compared with version 1" in one


@pytest.fixture
def registered(
    tracking_uri: str,
    tmp_path: Path,
    pictures: Path,
    checkpoint: str,
    pipeline: Storage,
    storage: Storage,
) -> Registry:
    config = evaluation.Config(shown=("a red disc",), images_shown=1, scored=6, candidates=1)
    artifacts = f"file://{tmp_path}/artifacts"
    with mlflow_run("evaluation", tracking_uri=tracking_uri, artifacts=artifacts, tags={}) as tracker:
        result = evaluation.run(
            config,
            transformer=checkpoint,
            images=pipeline.images,
            prompts=str(pictures / "prompts.csv"),
            out=storage,
            tracker=tracker,
        )
        tracker.file(Path(result.report))
        registry = Registry(tracker.client, storage)
        assert registry.register(checkpoint, tracker) == "1"
        registry.mark("1", result, judge=None, judged_against=None, run_id=tracker.run_id)
    return registry


@pytest.mark.slow
def test_a_registered_model_gives_pictures_holds_no_pickle_and_knows_its_origin(
    registered: Registry, tmp_path: Path, checkpoint: str, pipeline: Storage
) -> None:
    version = registered.client.get_model_version_by_alias("clip-gen", "candidate")
    assert version.tags["order"] == "raster"
    assert version.tags["transformer"] == checkpoint and version.tags["report"].endswith("report.html")
    assert float(version.tags["score.train/generated/clip_score"]) <= 1
    files = [str(p) for p in (tmp_path / "artifacts").rglob("*")]
    assert not [f for f in files if f.endswith((".pkl", ".pickle", ".pt", ".pyc"))]
    assert [f for f in files if f.endswith("generator/vqgan/model.safetensors")]
    assert [f for f in files if f.endswith("report.html")]

    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    loaded = mlflow.pyfunc.load_model("models:/clip-gen@candidate")
    params = {param.name for param in loaded.metadata.signature.params}
    assert params == {"n", "seed", *PARAMS}
    assert loaded.metadata.saved_input_example_info
    (png,) = loaded.predict(["a red heart"], params={"seed": 3})
    generator = TextToImage.from_pretrained("models:/clip-gen@candidate")
    assert png == png_bytes(generator.generate(["a red heart"], seed=3)[0][0])
    with pytest.raises(ClipgenError, match="is not available from MLflow"):
        TextToImage.from_pretrained("models:/clip-gen@typo")
    export = ["export", "-m", "models:/clip-gen@candidate", "--layout", "huggingface", "-o"]
    assert CliRunner().invoke(app, [*export, str(tmp_path / "hub")]).exit_code == 0
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert (config["name"], config["version"]) == ("clip-gen", "1")

    shown = CliRunner().invoke(app, ["lineage", "models:/clip-gen@candidate"]).output
    assert "gone" not in shown and shown.count("@ version") == 2
    assert any(line.split()[0] == "transformer" and line.endswith(checkpoint) for line in shown.splitlines())
    tags = describe("models:/clip-gen@candidate")
    way = {step.name: step for step in way_back(tags)}
    assert way["transformer"].where == checkpoint
    assert way["images"].where.startswith(pipeline.images)
    assert way["embeddings"].where.startswith(pipeline.current("embeddings", "tests").path)
    missing = way_back({**tags, "vqgan": "/no/longer/there", "images_version": "999"})
    assert [step.name for step in missing if not step.there] == ["vqgan", "images"]


def test_a_model_without_champions_names_those_that_have_some(tmp_path: Path) -> None:
    (tmp_path / "champions" / "mine.lance").mkdir(parents=True)
    registry = Registry.at(f"sqlite:///{tmp_path}/mlflow.db", Storage(str(tmp_path)), "clip-gen")
    said = registry.without_history()
    assert said.startswith("no version of clip-gen was promoted yet") and said.endswith("by --name: mine")


@pytest.mark.slow
def test_a_checkpoint_is_registered_once_and_has_the_tags_of_the_last_judgement(
    registered: Registry, tracking_uri: str, tmp_path: Path, checkpoint: str
) -> None:
    first = registered.client.get_model_version("clip-gen", "1")
    assert (
        first.tags["judge"] == "the conditioning CLIP" and "Scored by the conditioning" in first.description
    )
    artifacts = f"file://{tmp_path}/artifacts"
    bad = [Verdict("not_memorised", False, {}, "0.90 of the images copy")]
    with mlflow_run("again", tracking_uri=tracking_uri, artifacts=artifacts, tags={}) as tracker:
        assert registered.register(checkpoint, tracker) == "1"
        again = Judged(bad, {"train/generated/recall@5": 0.5})
        registered.mark("1", again, judge="hub:other/clip", judged_against="7", run_id=tracker.run_id)
    assert not (tmp_path / "artifacts" / tracker.run_id).exists()  # nothing was copied
    tags = registered.client.get_model_version("clip-gen", "1").tags
    assert {k: v for k, v in tags.items() if k.startswith(("score.", "check."))} == {
        "score.train/generated/recall_at_5": "0.5",
        "check.not_memorised": "failed: 0.90 of the images copy",
    }
    assert (tags["judge"], tags["judged_against"]) == ("hub:other/clip", "7")
    assert tags["report"] == f"runs:/{tracker.run_id}/report.html" and tags["transformer"] == checkpoint
    elsewhere = shutil.copytree(checkpoint, tmp_path / "another" / "step-6")
    with mlflow_run("new", tracking_uri=tracking_uri, artifacts=artifacts, tags={}) as tracker:
        assert registered.register(str(elsewhere), tracker) == "2"
    assert aliases(registered) == {"candidate": "1"}  # the second was not judged yet
    with pytest.raises(ClipgenError, match="version 2 was not judged"):
        registered.promote("2")


@pytest.fixture
def served(registered: Registry, tmp_path: Path) -> Iterator[str]:
    """`mlflow models serve` on the candidate, as a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/clip-gen@candidate"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it calls uvicorn
    with (tmp_path / "serve.log").open("wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, env=os.environ | {"PATH": path}
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(
            lambda: answers(f"{url}/ping"), "the server", alive=lambda: server.poll() is None, seconds=180
        )
        yield url
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    header = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/invocations", json.dumps(body).encode(), header)
    with urllib.request.urlopen(request, timeout=120) as answer:
        made: dict[str, Any] = json.load(answer)
    return made


@pytest.mark.slow
def test_mlflow_serves_the_model_over_http(served: str) -> None:
    body = {"inputs": ["a red disc", "a blue square"], "params": {"seed": 7, "candidates": 2}}
    pictures = [base64.b64decode(one) for one in post(served, body)["predictions"]]
    assert [Image.open(io.BytesIO(png)).size for png in pictures] == [(32, 32)] * 2
    generator = TextToImage.from_pretrained("models:/clip-gen@candidate")
    expected = generator.generate(body["inputs"], seed=7, candidates=2)
    assert pictures == [png_bytes(row[0]) for row in expected]
    chosen = {"n": 2, "candidates": 1, "top_k": 3, "top_p": 0.9, "condition": "text"}
    pictures = [base64.b64decode(one) for one in post(served, body | {"params": chosen})["predictions"]]
    expected = generator.generate(body["inputs"], **chosen)
    assert pictures == [png_bytes(image) for row in expected for image in row]


@pytest.mark.slow
def test_mlflow_passes_a_refusal_on_as_a_sentence(served: str) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"inputs": [" "]}, "a prompt is empty"),
        ({"inputs": ["a"], "params": {"n": 0}}, "n x candidates is 0"),
        ({"inputs": ["a"], "params": {"condition": "typo"}}, "condition"),
    ]
    for body, sentence in refused:
        with pytest.raises(urllib.error.HTTPError) as error:
            post(served, body)
        said = json.load(error.value)
        assert error.value.code == 400 and sentence in said["message"]
        assert "stack_trace" not in said and "Traceback" not in said["message"]
