"""Inception v3 as FID and Inception score use it: the TensorFlow weights of 2015, from a file.

The file is torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`; nothing is downloaded.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.extras import needed_for

FEATURES, LOGITS = "2048", "logits_unbiased"
BATCH = 32


class Inception:
    """Features [n, 2048] and logits [n, 1008] of pictures.

    Raises:
        ClipgenError: torch-fidelity is not installed, or the file is no such weights.
    """

    def __init__(self, weights: str) -> None:
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
        self.network.eval()

    @torch.no_grad()
    def look(self, pictures: list[Image.Image]) -> tuple[Tensor, Tensor]:
        """Features and logits of RGB pictures of one size."""
        stacked = torch.from_numpy(np.stack([np.asarray(one) for one in pictures])).permute(0, 3, 1, 2)
        seen = [self.network(some.contiguous()) for some in stacked.split(BATCH)]
        features, logits = (torch.cat(part) for part in zip(*seen, strict=True))
        return features, logits
