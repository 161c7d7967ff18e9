"""Which training goes on, what is said of a new one, and which weights it starts from."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clipgen_core.errors import ClipgenError
from clipgen_core.generation.generator import TextToImage
from clipgen_core.generation.parts import FILE, copy_parts, read_parts
from clipgen_core.recipes import named
from clipgen_core.registry.lineage import lineage
from clipgen_core.schema import TokenManifest
from clipgen_core.settings.catalogue import settings_of
from clipgen_core.settings.sampling import SamplingConfig
from clipgen_core.stages import clip, images, tokens, transformer, vqgan
from clipgen_core.storage import Storage
from clipgen_core.tracking import NullTracker, mlflow_client
from clipgen_core.training import loop
from clipgen_core.training.checkpoint import Checkpoint, Checkpoints, Saved
from clipgen_core.training.provenance import Provenance, TrainingState
from clipgen_core.training.runs import runs
from tests.conftest import draw, tiny_clip_config, tiny_transformer_config, tiny_vqgan_config

Seen = Callable[..., list[int]]
TRACKER = NullTracker()


def config(steps: int = 6, **train: Any) -> transformer.Config:
    """Without dropout, whose draws depend on how a batch is split."""
    made = tiny_transformer_config(steps)
    settings = made.train.model_copy(update={"precision": "fp32", **train})
    model = made.model.model_copy(update={"dropout": 0.0})
    return made.model_copy(update={"train": settings, "model": model})


def train(made: transformer.Config, pipeline: Storage, out: Storage, texts: str | None = None) -> Any:
    shards = pipeline.current("tokens", "tests").path
    return transformer.run(made, tokens=shards, out=out, tracker=TRACKER, texts=texts)


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Calls something that trains, and kills it at a step."""

    def kill(step: int, call: Callable[[], object]) -> None:
        whole = loop._Run.train

        def until(self: Any, current: int, batches: Any) -> None:
            if current == step:
                raise SystemExit
            whole(self, current, batches)

        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(loop._Run, "train", until)
            call()

    return kill


@pytest.fixture
def steps_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], list[int]]:
    """The steps that something trains."""

    def seen(call: Callable[[], object]) -> list[int]:
        whole, steps = loop._Run.train, list[int]()

        def noted(self: Any, step: int, batches: Any) -> None:
            steps.append(step)
            whole(self, step, batches)

        with monkeypatch.context() as patch:
            patch.setattr(loop._Run, "train", noted)
            call()
        return steps

    return seen


def weights(result: Any) -> dict[str, torch.Tensor]:
    return Checkpoint(result.checkpoint).weights()


def alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], atol: float = 0.0) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[k], other[k], 0, atol) for k in one)


@pytest.fixture(scope="module")
def whole(pipeline: Storage, tmp_path_factory: pytest.TempPathFactory) -> transformer.Result:
    """An undisturbed training. Tests must not write to its root."""
    return train(config(), pipeline, Storage(str(tmp_path_factory.mktemp("whole"))))


def root_of(result: transformer.Result) -> Storage:
    return Storage(str(Path(result.checkpoint).parents[3]))


@pytest.fixture
def trained(whole: transformer.Result, tmp_path: Path) -> Storage:
    """A root of one's own with a finished training."""
    shutil.copytree(root_of(whole).root, tmp_path / "trained")
    return Storage(str(tmp_path / "trained"))


def test_trainings_are_found_on_an_object_store() -> None:
    out = Storage("memory://trainings")
    for name, steps in (("b", (1, 2)), ("a", (3,))):
        url, record = out.checkpoints("vqgan", name), Provenance(config={"a": name})
        for step in steps:
            Checkpoints(url=url, provenance=record).save(Saved(weights={}, state=TrainingState(step=step)))
    found = runs(out, "vqgan")
    assert [(run.name, run.newest.state.step) for run in found] == [("a", 3), ("b", 2)]
    assert max(found, key=lambda run: run.written).name == "a"
    assert runs(out, "clip") == []


def test_what_may_change_is_how_it_computes_and_what_it_saves() -> None:
    recipe = named("demo")
    marked, of_vqgan = (
        {one.name for one in settings_of(stage) if one.may_change}
        for stage in (recipe.transformer, recipe.vqgan)
    )
    sampling = {f"sampling.{name}" for name in SamplingConfig.model_fields}
    computes = {"train.micro_batch", "train.precision", "train.compile", "train.parallel", "recompute"}
    saves = {"train.log_every", "train.checkpoint_every", "train.keep_checkpoints"}
    assert marked == computes | saves | sampling
    assert of_vqgan == computes | saves


@pytest.mark.parametrize(
    ("changed", "atol"),
    [
        ({"log_every": 1}, 0.0),
        ({"checkpoint_every": 3}, 0.0),
        ({"keep_checkpoints": 1}, 0.0),
        ({"parallel": "fsdp"}, 0.0),
        ({"recompute": True}, 1e-4),
        ({"micro_batch": 4}, 1e-3),
        ({"precision": "bf16"}, 1e-2),
    ],
    ids=str,
)
def test_a_training_goes_on_with_another_value_of_what_may_change(
    changed: dict[str, Any],
    atol: float,
    whole: transformer.Result,
    trained: Storage,
    pipeline: Storage,
    steps_of: Seen,
) -> None:
    shutil.rmtree(Path(trained.root, *Path(whole.checkpoint).parts[-4:]))
    other = config(**{name: value for name, value in changed.items() if name != "recompute"})
    other = other.model_copy(update={"recompute": "recompute" in changed})
    assert steps_of(lambda: train(other, pipeline, trained)) == [4, 5]
    result = train(config(), pipeline, trained)
    assert result.digest == whole.digest
    assert alike(weights(result), weights(whole), atol)
    assert Checkpoint(result.checkpoint).provenance == Checkpoint(whole.checkpoint).provenance


def test_other_defaults_of_generation_reach_the_trained_model(
    whole: transformer.Result, trained: Storage, pipeline: Storage, steps_of: Seen
) -> None:
    other = config().model_copy(update={"sampling": SamplingConfig(temperature=0.1, candidates=1)})
    assert steps_of(lambda: train(other, pipeline, trained)) == []
    result = train(other, pipeline, trained)
    assert read_parts(result.checkpoint).sampling == other.sampling
    assert result.digest == whole.digest
    assert TextToImage.from_pretrained(result.checkpoint).generate(["a red disc"])


def test_a_new_training_says_which_settings_differ(
    trained: Storage, pipeline: Storage, capfd: pytest.CaptureFixture[str]
) -> None:
    train(config(learning_rate=2e-3, warmup_share=0.1, seed=1, clip_norm=2.0), pipeline, trained)
    (told,) = [line for line in capfd.readouterr().err.splitlines() if "a new training" in line]
    assert "a new training of the transformer begins" in told
    assert "step-00000006 (step 6 of 6)" in told
    assert "train.learning_rate 0.001 -> 0.002" in told and "1 more" in told
    assert "start_from: latest" in told
    train(config(learning_rate=3e-3), pipeline, trained)
    told = capfd.readouterr().err
    assert "train.learning_rate 0.001 -> 0.003;" in told, "the most similar training is compared"
    assert f"start_from: {trained.root}" in told, "which is not the newest"


def test_a_new_training_says_how_many_images_there_were(
    pipeline: Storage, pictures: Path, clip_reference: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, source = Storage(str(tmp_path / "root")), tmp_path / "source"
    shutil.copytree(pictures / "pictures" / "disc", source / "disc")

    def run() -> vqgan.Result:
        images.run(images.Config(), source=str(source), out=out, tracker=TRACKER)
        return vqgan.run(
            tiny_vqgan_config(2), images=out.images, clip=clip_reference, out=out, tracker=TRACKER
        )

    first = run()
    assert run().checkpoint == first.checkpoint
    assert "a new training" not in capfd.readouterr().err
    draw("pink", "disc", 40).save(source / "disc" / "new.png")
    assert run().checkpoint != first.checkpoint
    told = capfd.readouterr().err
    assert f"{first.checkpoint} (step 2 of 2) has other settings or inputs: 25 images instead of 24;" in told


def test_latest_starts_from_the_newest_weights_once(
    whole: transformer.Result, trained: Storage, pipeline: Storage, steps_of: Seen
) -> None:
    further = config(4, learning_rate=1e-9).model_copy(update={"start_from": "latest"})
    result = train(further, pipeline, trained)
    start = Checkpoint(str(Path(trained.root, *Path(whole.checkpoint).parts[-4:])))
    source = Checkpoint(result.checkpoint).provenance.started_from
    assert result.started_from == start.url and source and source.digest == start.provenance.digest
    assert alike(weights(result), start.weights(), 1e-6)
    first, *_ = [row for row in result.fitted.history if "validation_loss" in row]
    assert first["step"] == 0
    assert first["validation_loss"] == pytest.approx(whole.fitted.metrics["validation_loss"], rel=1e-4)
    assert steps_of(lambda: train(further, pipeline, trained)) == [], "it is its own latest"
    assert lineage(read_parts(result.checkpoint))["started_from"] == start.url
    onwards = further.model_copy(update={"start_from": result.checkpoint})
    assert train(onwards, pipeline, trained).started_from == result.checkpoint


def test_a_checkpoint_without_its_training_state_can_still_be_started_from(
    whole: transformer.Result, trained: Storage, pipeline: Storage, steps_of: Seen
) -> None:
    for file in Path(trained.root).rglob("training.pt"):
        file.unlink()
    assert steps_of(lambda: train(config(), pipeline, trained)) == [], "a finished training is found"
    shutil.rmtree(Path(trained.root, *Path(whole.checkpoint).parts[-4:]))
    with pytest.raises(ClipgenError, match=r"cannot go on from there: .* set start_from: \S+step-00000004"):
        train(config(), pipeline, trained)
    further = config(2).model_copy(update={"start_from": "latest"})
    assert steps_of(lambda: train(further, pipeline, trained)) == [0, 1]


def test_a_killed_warm_start_goes_on_without_its_source(
    whole: transformer.Result,
    trained: Storage,
    pipeline: Storage,
    tmp_path: Path,
    killed_at: Callable[..., None],
    steps_of: Seen,
) -> None:
    further = config(5).model_copy(update={"start_from": "latest"})
    undisturbed = Storage(str(tmp_path / "undisturbed"))
    shutil.copytree(trained.root, undisturbed.root)
    first = train(further, pipeline, undisturbed)
    killed_at(1, lambda: train(further, pipeline, trained))
    killed_at(3, lambda: train(further, pipeline, trained))
    shutil.rmtree(Path(trained.root, *Path(whole.checkpoint).parts[-4:-1]))
    assert steps_of(lambda: train(further, pipeline, trained)) == [2, 3, 4]
    assert alike(weights(train(further, pipeline, trained)), weights(first))


def test_the_best_weights_may_be_those_it_started_from(trained: Storage, pipeline: Storage) -> None:
    bad = config(8, learning_rate=0.5, patience=2).model_copy(update={"start_from": "latest"})
    result = train(bad, pipeline, trained)
    assert result.checkpoint.endswith("step-00000000")
    assert result.fitted.history[-1]["step"] == 4
    assert alike(weights(result), Checkpoint(result.started_from or "").weights(), 1e-6)


@pytest.fixture
def generator(whole: transformer.Result, tmp_path: Path) -> Path:
    folder = tmp_path / "model" / "artifacts" / "generator"
    copy_parts(read_parts(whole.checkpoint), folder)
    return folder


def test_it_starts_from_a_generator_and_from_the_champion(
    whole: transformer.Result,
    generator: Path,
    pipeline: Storage,
    clip_reference: str,
    storage: Storage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    client = mlflow_client(f"sqlite:///{tmp_path}/mlflow.db")
    client.create_registered_model("clip-gen")
    client.create_model_version("clip-gen", source=f"file://{tmp_path}/model")
    client.set_registered_model_alias("clip-gen", "champion", "1")
    for address in (str(generator), "models:/clip-gen@champion"):
        made = config(2, learning_rate=1e-9).model_copy(update={"start_from": address})
        result = train(made, pipeline, storage)
        assert result.started_from == address
        assert alike(weights(result), weights(whole), 1e-6)
    tuned = tiny_vqgan_config(1).model_copy(update={"start_from": str(generator)})
    started = vqgan.run(
        tuned,
        images=pipeline.images,
        clip=clip_reference,
        out=storage,
        tracker=TRACKER,
    )
    assert started.started_from == str(generator)


def test_weights_that_do_not_fit_are_refused(
    whole: transformer.Result, generator: Path, pipeline: Storage, storage: Storage
) -> None:
    made = config().model_copy(update={"start_from": "latest"})
    with pytest.raises(ClipgenError, match="no transformer was trained under"):
        train(made, pipeline, storage)
    wide = config().model.model_copy(update={"width": 64})
    made = config().model_copy(update={"start_from": whole.checkpoint, "model": wide})
    with pytest.raises(ClipgenError, match="another shape than the recipe's .model.width 32 instead of 64"):
        train(made, pipeline, storage)
    parts = generator / FILE
    parts.write_text(parts.read_text().replace(read_parts(str(generator)).clip_key, "another"))
    made = config().model_copy(update={"start_from": str(generator)})
    with pytest.raises(ClipgenError, match=r"trained on embeddings of the CLIP another.* without start_from"):
        train(made, pipeline, storage)
    assert not Path(storage.root, "checkpoints").exists()


def test_codes_of_another_vqgan_are_refused(
    whole: transformer.Result, pipeline: Storage, clip_reference: str, storage: Storage
) -> None:
    other = vqgan.run(
        tiny_vqgan_config(1), images=pipeline.images, clip=clip_reference, out=storage, tracker=TRACKER
    )
    embeddings = pipeline.current("embeddings", "tests").path
    shards = tokens.run(
        tokens.Config(),
        images=pipeline.images,
        embeddings=embeddings,
        vqgan=other.checkpoint,
        out=storage,
        tracker=TRACKER,
    )
    made = config().model_copy(update={"start_from": whole.checkpoint})
    codes = Checkpoint(whole.checkpoint).codes
    assert isinstance(codes, TokenManifest)
    with pytest.raises(ClipgenError, match=f"VQGAN {codes.vqgan_digest}, .* codes of {other.digest}"):
        transformer.run(made, tokens=shards.shards, out=storage, tracker=TRACKER)


def test_a_vqgan_and_a_clip_start_from_the_latest_too(
    pipeline: Storage, pictures: Path, clip_reference: str, storage: Storage
) -> None:
    first = vqgan.run(
        tiny_vqgan_config(1), images=pipeline.images, clip=clip_reference, out=storage, tracker=TRACKER
    )
    tuned = tiny_vqgan_config(2)
    quantizer = tuned.model.quantizer.model_copy(update={"replace_below": 0.1, "decay": 0.9})
    model = tuned.model.model_copy(update={"quantizer": quantizer})
    tuned = tuned.model_copy(update={"start_from": "latest", "model": model})
    second = vqgan.run(tuned, images=pipeline.images, clip=clip_reference, out=storage, tracker=TRACKER)
    assert second.started_from == first.checkpoint and second.digest != first.digest
    assert Checkpoint(second.checkpoint).provenance.digest == second.digest
    captions = str(pictures / "captions.csv")
    one = clip.run(tiny_clip_config(1), captions=captions, out=storage, tracker=TRACKER)
    further = tiny_clip_config(2).model_copy(update={"start_from": "latest"})
    two = clip.run(further, captions=captions, out=storage, tracker=TRACKER)
    assert two.fitted.history[0]["step"] == 0 and two.clip_key != one.clip_key
    for address, problem in ((first.checkpoint, "is no checkpoint of a CLIP"), ("latest", "another shape")):
        other = further.model_copy(update={"start_from": address, "text_layers": 2})
        with pytest.raises(ClipgenError, match=problem):
            clip.run(other, captions=captions, out=storage, tracker=TRACKER)
