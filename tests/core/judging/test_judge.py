from pathlib import Path

import numpy as np
import pytest
import torch

from clipgen_core.errors import ClipgenError
from clipgen_core.judging.inception import FEATURES, LOGITS, Inception
from clipgen_core.judging.judge import Judge
from clipgen_core.judging.metrics import blurred, cmmd, frechet_distance
from clipgen_core.models.clip import ClipEncoder
from tests.conftest import COLOURS, SHAPES, draw

NAMES = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]
IMAGES = [draw(colour, shape) for colour in COLOURS for shape in SHAPES]


@pytest.fixture(scope="module")
def clip(clip_reference: str) -> ClipEncoder:
    return ClipEncoder(clip_reference)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights in torch-fidelity's file format; the real ones come from its release page.

    Scaled so that images stay apart through the network's depth (He et al. 2015), else every distance is 0.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, file)
    with pytest.MonkeyPatch.context() as patch:
        keep = lambda network, _: torch.save(network.state_dict(), file)  # noqa: E731
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", keep)
        network = FeatureExtractorInceptionV3(
            "inception", [FEATURES, LOGITS], feature_extractor_weights_path=str(file)
        )
    same = torch.Generator().manual_seed(0)
    for one in network.parameters():
        if one.ndim > 1:
            torch.nn.init.kaiming_normal_(one, generator=same)
    torch.save(network.state_dict(), file)
    return str(file)


def test_scores_by_hand(clip: ClipEncoder) -> None:
    judge = Judge(clip, ["up", "right", "between", "up"])
    judge.__dict__["name_embeddings"] = np.array([[0, 1], [1, 0], [0.6, 0.8]])
    scored = judge.score_embedded(["up", "right"], [], np.array([[0, 1.0], [0.8, 0.6]]))
    assert scored.clip_score.tolist() == pytest.approx([1, 0.8])
    assert scored.rank.tolist() == [0, 1]  # "between" fits the second image better
    metrics = scored.metrics()
    assert metrics["clip_score"] == pytest.approx(0.9)
    assert metrics["recall@1"] == 0.5 and metrics["recall@5"] == 1.0
    assert metrics["clip_score/half_width"] == pytest.approx(0.1)


def test_distances_are_taken_in_the_judges_space_sharp_and_blurred(clip: ClipEncoder) -> None:
    reference = Judge(clip, NAMES).reference(IMAGES[:12])
    metrics = reference.distances(IMAGES[12:])
    real, other = (clip.encode_images(some) for some in (IMAGES[:12], IMAGES[12:]))
    assert metrics["cmmd"] == pytest.approx(cmmd(real, other))
    soft = [clip.encode_images(blurred(some, 4)) for some in (IMAGES[:12], IMAGES[12:])]
    assert metrics["fid_clip_4"] == pytest.approx(frechet_distance(*map(torch.from_numpy, soft)), rel=1e-3)
    assert {"fid_clip", "fid_clip_1", "fid_clip_2", "fid_clip_8", "precision", "coverage"} <= metrics.keys()
    assert "fid" not in metrics and "inception_score" not in metrics
    assert reference.distances(IMAGES[12:], embeddings=other) == metrics
    assert reference.distances(IMAGES[12:], embeddings=real)["cmmd"] != metrics["cmmd"]
    same = reference.distances(IMAGES[:12])
    assert same["fid_clip"] == pytest.approx(0, abs=1e-3) and same["coverage"] == 1


@pytest.mark.slow
def test_inception_adds_its_distances_and_score(clip: ClipEncoder, weights: str) -> None:
    features, logits = Inception(weights).features_and_logits(IMAGES[:3])
    assert features.shape == (3, 2048) and logits.shape == (3, 1008)
    metrics = Judge(clip, NAMES, weights).reference(IMAGES[:4]).distances(IMAGES[4:8])
    assert metrics["fid"] > 1e-3 and metrics["fid_8"] > 1e-3 and metrics["inception_score"] > 1.0001


def test_weights_that_are_none_or_could_run_code_are_refused(tmp_path: Path) -> None:
    (tmp_path / "evil.pth").write_bytes(b"cos\nsystem\n(S'touch /nowhere/pwned'\ntR.")
    for name in ("evil.pth", "missing.pth"):
        with pytest.raises(ClipgenError, match="holds no Inception weights"):
            Inception(str(tmp_path / name))
