from pathlib import Path

import numpy as np
import pytest
import torch

from clipgen_core.errors import ClipgenError
from clipgen_core.judging.distances import kid
from clipgen_core.judging.inception import FEATURES, LOGITS, Inception
from clipgen_core.judging.judge import CLIP, Judge
from clipgen_core.judging.reference import Reference
from clipgen_core.models.clip import ClipEncoder
from tests.conftest import COLOURS, SHAPES, draw
from tests.core.judging.test_reference import chosen

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
    assert scored.above_others.tolist() == pytest.approx([1 - 0, 0.8 - 0.6])  # "between" was not asked for
    assert scored.rank.tolist() == [0, 1]  # "between" fits the second image better
    metrics = scored.metrics()
    assert metrics["clip_score"] == pytest.approx(0.9)
    assert metrics["recall@1"] == 0.5 and metrics["recall@5"] == 1.0
    assert metrics["clip_score/half_width"] == pytest.approx(0.1)


def test_features_are_those_of_the_judges_clip(clip: ClipEncoder) -> None:
    features = Judge(clip, NAMES).features(IMAGES[:3])
    assert list(features) == [CLIP] and np.array_equal(features[CLIP], clip.encode_images(IMAGES[:3]))
    given = np.ones((3, 32), np.float32)
    assert Judge(clip, NAMES).features(IMAGES[:3], given)[CLIP] is given


@pytest.mark.slow
def test_inception_adds_its_distances_and_score(clip: ClipEncoder, weights: str) -> None:
    features, logits = Inception(weights).features_and_logits(IMAGES[:3])
    assert features.shape == (3, 2048) and logits.shape == (3, 1008)
    reference = Reference(Judge(clip, NAMES, weights), chosen(IMAGES[:4]))
    metrics = reference.distances(IMAGES[4:8])
    real, other = (Inception(weights).features_and_logits(some)[0] for some in (IMAGES[:4], IMAGES[4:8]))
    assert metrics["kid"] == pytest.approx(kid(real.numpy()).to(other.numpy()).value, rel=1e-3)
    assert metrics["kid_8"] not in (0, metrics["kid"]) and metrics["inception_score"] > 1.0001
    assert "fid" not in metrics and "20,480" in " ".join(reference.notes(4))


def test_weights_that_are_none_or_could_run_code_are_refused(tmp_path: Path) -> None:
    (tmp_path / "evil.pth").write_bytes(b"cos\nsystem\n(S'touch /nowhere/pwned'\ntR.")
    for name in ("evil.pth", "missing.pth"):
        with pytest.raises(ClipgenError, match="holds no Inception weights"):
            Inception(str(tmp_path / name))
