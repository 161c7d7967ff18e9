"""Inception v3 for FID and the Inception score: the TensorFlow weights of 2015, read from a file.

The file is torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`; nothing is downloaded.
"""

import torch
from PIL import Image
from torch import Tensor

from clipgen_core.data.pixels import to_bytes
from clipgen_core.device import default_device
from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.extras import needed_for

FEATURES, LOGITS = "2048", "logits_unbiased"
BATCH = 32


class Inception:
    """Computes the features and logits of images.

    Args:
        weights: The file.
        device: The device that it runs on; by default the GPU if there is one.

    Raises:
        ClipgenError: Torch-fidelity is not installed, or the file does not hold these weights.
    """

    def __init__(self, weights: str, device: str | None = None) -> None:
        with needed_for("Inception"):
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        try:
            torch.load(weights, weights_only=True)  # the extractor itself would run any pickle
            self.network = FeatureExtractorInceptionV3(
                "inception-v3-compat", [FEATURES, LOGITS], feature_extractor_weights_path=weights
            )
        except Exception as error:
            raise ClipgenError(
                f"{weights} holds no Inception weights ({first_line(error)}): "
                "download torch-fidelity's weights-inception-2015-12-05-6726825d.pth"
            ) from error
        self.device = torch.device(device or default_device())
        self.network.eval().to(self.device)

    @torch.no_grad()
    def features_and_logits(self, images: list[Image.Image]) -> tuple[Tensor, Tensor]:
        """Of RGB images of one size: features, float32 [n, 2048], and logits, float32 [n, 1008]."""
        batches = (batch.contiguous().to(self.device) for batch in to_bytes(images).split(BATCH))
        features, logits = (torch.cat(part).cpu() for part in zip(*map(self.network, batches), strict=True))
        return features, logits
