"""Vector quantization, always in fp32: running means and IBQ of our own, SimVQ and FSQ of
vector-quantize-pytorch.

Knows grids of features; knows nothing of images.
"""

from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ, SimVQ

from clipgen_core.device import fp32_products
from clipgen_core.models.codebook import Codebook, occurrences
from clipgen_core.models.ibq import IndexPropagation
from clipgen_core.settings.models import QuantizerConfig

Pass = tuple[Tensor, Tensor]  # features, float32 [n, h, w, d], and their codes, int64 [n, h, w]


class Quantizer(nn.Module):
    """Maps features to codes of a codebook and back; `config.kind` chooses the method.

    `passes` holds the features and codes of forward passes in training until `learn` is called with them.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_size = config.codebook_size
        self.vq = _layer(config)
        self.passes: list[Pass] = []

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize features.

        Args:
            features: Float [n, d, h, w].

        Returns:
            The quantized features, float32 [n, d, h, w]; the codes, int64 [n, h, w]; and the commitment
            loss, a scalar that is 0 where the method has none.
        """
        where = features.device
        with torch.autocast(where.type, enabled=False), fp32_products(where, "highest"):
            quantized, codes, *loss = self.vq(features.float())
        codes = codes.long()
        if self.training and torch.is_grad_enabled():
            self.passes.append((features.detach().float().permute(0, 2, 3, 1), codes))
        return quantized, codes, loss[0].sum() if loss else quantized.new_zeros(())

    def learn(self, features: Tensor, codes: Tensor, seed: int) -> dict[str, Tensor]:
        """Update the codebook after an optimizer step, and forget its passes.

        Args:
            features: The features of all passes of the step, in all processes, float32 [n, h, w, d].
            codes: Their codes, int64 [n, h, w].
            seed: Of the random draws.

        Returns:
            On the device: `codes_in_batch`, the number of codes that occur; for codebooks of running means
            also `codes_replaced`, the share of the codebook that was replaced.
        """
        self.passes.clear()
        figures = {"codes_in_batch": (occurrences(codes.flatten(), self.codebook_size) > 0).sum()}
        if isinstance(self.vq, RunningMeans):
            with fp32_products(features.device, "highest"):  # k-means searches for the nearest codes
                replaced = self.vq.learn(features.flatten(0, 2), codes.flatten(), seed)
            figures["codes_replaced"] = replaced / self.codebook_size
        return figures

    def keep_all_codes(self) -> None:
        """Replace no code in `learn`, however rare it is."""
        if isinstance(self.vq, RunningMeans):
            self.vq.keep_all_codes()

    @property
    def codebook(self) -> Tensor:
        """The code vectors, float32 [codebook_size, code_dim]."""
        device = next(chain(self.vq.buffers(), self.vq.parameters())).device
        codes = torch.arange(self.codebook_size, device=device)
        return self.lookup(codes.view(1, -1, 1)).squeeze(-1).squeeze(0).T

    def lookup(self, codes: Tensor) -> Tensor:
        """The features of codes: int64 [n, h, w] to float32 [n, d, h, w]."""
        vq: Any = self.vq
        features: Tensor = vq.indices_to_codes(codes)
        return features


class RunningMeans(nn.Module):
    """Quantizes by a codebook of running means.

    Until the codebook is started by the features of the first step, features pass as they are.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.commitment, self.rotation_trick = config.commitment, config.rotation_trick
        self._codebook = Codebook(config)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize features.

        Args:
            features: Float32 [n, d, h, w].

        Returns:
            The quantized features, float32 [n, d, h, w], through which the gradient passes to the features;
            the codes, int64 [n, h, w]; and, in training, the commitment loss w |x - e|^2 (a mean), else 0.
        """
        n, _, h, w = features.shape
        x = self._codebook.on_sphere(features.permute(0, 2, 3, 1).flatten(0, 2))
        codes = self._codebook.nearest(x)
        vectors, loss = self._codebook.vectors[codes], x.new_zeros(())
        if self.training and not self._codebook.started:
            vectors = x
        elif self.training:
            loss = self.commitment * F.mse_loss(x, vectors)
            vectors = rotate_to(x, vectors) if self.rotation_trick else x + (vectors - x).detach()
        return vectors.view(n, h, w, -1).permute(0, 3, 1, 2), codes.view(n, h, w), loss

    def learn(self, features: Tensor, codes: Tensor, seed: int) -> Tensor:
        """Update the codebook; see `Codebook.learn`.

        Args:
            features: Float32 [n, d].
            codes: int64 [n].
            seed: Of the random draws.

        Returns:
            The number of codes that were replaced, on the device.
        """
        return self._codebook.learn(self._codebook.on_sphere(features), codes, seed)

    def keep_all_codes(self) -> None:
        """Replace no code in `learn`, however rare it is."""
        self._codebook.replace_below = 0.0

    def indices_to_codes(self, codes: Tensor) -> Tensor:
        """The code vectors of codes: int64 [n, h, w] to float32 [n, d, h, w]."""
        return self._codebook.vectors[codes].permute(0, 3, 1, 2)


def rotate_to(features: Tensor, vectors: Tensor) -> Tensor:
    """The rotation trick (arXiv:2410.06424, section 4.2): the value of a code, the gradient of a rotation.

    |e| / |x| (x - 2 r r'x + 2 q u'x), where u = x / |x|, q = e / |e| and r = (u + q) / |u + q| are constants.

    Args:
        features: x, float [n, d], with gradients.
        vectors: e, float [n, d].

    Returns:
        Float [n, d], equal to e, differentiable with respect to x alone.
    """
    length, goal = (t.detach().norm(dim=1, keepdim=True).clamp(min=1e-6) for t in (features, vectors))
    u, q = features.detach() / length, vectors.detach() / goal
    r = F.normalize(u + q, dim=1, eps=1e-6)
    along_r, along_u = ((features * t).sum(1, keepdim=True) for t in (r, u))
    return (features - 2 * along_r * r + 2 * along_u * q) * (goal / length)


def _layer(config: QuantizerConfig) -> nn.Module:
    if config.kind == "fsq":
        with torch.device("cpu"):  # it reads its codebook while it is made, which no `meta` tensor allows
            return FSQ(list(config.levels), preserve_symmetry=True)
    if config.kind == "ibq":
        return IndexPropagation(config)
    if config.kind == "simvq":
        return SimVQ(
            config.code_dim,
            config.codebook_size,
            channel_first=True,
            rotation_trick=config.rotation_trick,
            input_to_quantize_commit_loss_weight=config.commitment,
        )
    return RunningMeans(config)


def usage_and_perplexity(counts: Tensor) -> tuple[float, float]:
    """How much of a codebook is used.

    Args:
        counts: How often each code occurs, [codebook_size].

    Returns:
        The share of codes that occur, and the perplexity exp(entropy) of their distribution.
    """
    share = counts.double() / counts.sum().clamp(min=1)
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    return (counts > 0).double().mean().item(), entropy.exp().item()
