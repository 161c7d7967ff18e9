"""Losses of the VQGAN and of the transformer, each with its equation."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipgen_core.errors import ClipgenError
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.models.vqgan import Vqgan


class ClipFeatureDistance(nn.Module):
    """Perceptual distance in the block features of a frozen CLIP image tower.

    mean over the first `blocks` blocks (all if None) of || f_b(x)/|f_b(x)| - f_b(y)/|f_b(y)| ||^2,
    the form of LPIPS (Zhang et al. 2018, arXiv:1801.03924) without learned weights: needs no download.
    """

    def __init__(self, clip: ClipEncoder, blocks: int | None = None) -> None:
        super().__init__()
        self.clip, self.blocks = clip, blocks

    def forward(self, pictures: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.clip.features(targets, self.blocks)
        distances = [
            (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean()
            for a, b in zip(self.clip.features(pictures, self.blocks), wanted, strict=True)
        ]
        return torch.stack(distances).mean()


class Lpips(nn.Module):
    """LPIPS (arXiv:1801.03924) on torchvision's VGG16 weights, given as a local file."""

    def __init__(self, vgg_weights: str) -> None:
        super().__init__()
        import lpips
        from torchvision.models import vgg16

        if not Path(vgg_weights).is_file():
            raise ClipgenError(
                f"LPIPS weights {vgg_weights} do not exist: download torchvision's "
                "vgg16-397923af.pth there, or leave lpips_weights unset"
            )
        self.metric = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        backbone = vgg16()
        backbone.load_state_dict(torch.load(vgg_weights, weights_only=True))
        own = self.metric.net.state_dict()
        values = list(backbone.features.state_dict().values())
        self.metric.net.load_state_dict(dict(zip(own, values, strict=True)))
        self.requires_grad_(False).eval()

    def forward(self, pictures: Tensor, targets: Tensor) -> Tensor:
        distance: Tensor = self.metric(pictures, targets).mean()
        return distance


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """(E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(x)))]) / 2  (Lim & Ye 2017, arXiv:1705.02894)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def hinge_generator(fake: Tensor) -> Tensor:
    """-E[D(G(x))]."""
    return -fake.mean()


def lecam(real: Tensor, fake: Tensor, anchors: Tensor) -> Tensor:
    """E[max(0, D(x) - a_F)^2] + E[max(0, a_R - D(G(x)))^2]: keeps the discriminator near its own running
    means a_R, a_F, for few pictures (Tseng et al. 2021, arXiv:2104.03310)."""
    return F.relu(real - anchors[1]).square().mean() + F.relu(anchors[0] - fake).square().mean()


def gradient_penalty(real: Tensor, pictures: Tensor) -> Tensor:
    """E|dD(x)/dx|^2 on real pictures (R1, Mescheder et al. 2018, arXiv:1801.04406)."""
    gradient = torch.autograd.grad(real.sum(), pictures, create_graph=True)[0]
    return gradient.square().sum((1, 2, 3)).mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """|grad of the reconstruction loss| / |grad of the adversarial loss| at the decoder's last layer
    (VQGAN, arXiv:2012.09841, equation 7), at most 1e4."""
    wanted = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)[0]
    given = torch.autograd.grad(adversarial, last_layer, retain_graph=True)[0]
    return (wanted.norm() / (given.norm() + 1e-4)).clamp(0, 1e4).detach()


def code_cross_entropy(logits: Tensor, codes: Tensor) -> Tensor:
    """-mean log p(code | codes before it, embedding): logits [n, t, k], codes [n, t]."""
    return F.cross_entropy(logits.flatten(0, 1).float(), codes.flatten())


def embedding_reconstruction(logits: Tensor, embedding: Tensor, vqgan: Vqgan, clip: ClipEncoder) -> Tensor:
    """-mean log((1 + cos(e, e')) / 2), e' the CLIP embedding of the decoded picture (CLIP-GEN, section 3.3).

    The picture shows the likeliest code of each position; the gradient goes straight through that
    choice to the probabilities.

    Args:
        logits: [n, t, k]; embedding: e, float [n, d], of length 1.
    """
    probabilities = logits.float().softmax(dim=-1)
    chosen = F.one_hot(probabilities.argmax(dim=-1), probabilities.shape[-1])
    straight = chosen + probabilities - probabilities.detach()
    side = vqgan.config.grid
    features = (straight @ vqgan.quantizer.codebook).unflatten(1, (side, side)).permute(0, 3, 1, 2)
    seen = clip.embed(vqgan.decoder(features).float().clamp(-1, 1))
    cosine = (seen * embedding).sum(dim=-1).clamp(min=-0.999)
    return -((1 + cosine) / 2).log().mean()
