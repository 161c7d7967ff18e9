"""The method as its public implementation does it (HFAiLab/clip-gen), written from its description:
fp32, images encoded by VQGAN and CLIP on every step, the whole prefix computed again for every code.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipgen_core.settings.models import TransformerConfig


class PlainGpt(nn.Module):
    """The `paper` shape in torch's own layers: learned positions, pre-norm, GELU, one prefix token."""

    def __init__(self, config: TransformerConfig, codebook_size: int, positions: int, dim: int) -> None:
        super().__init__()
        width = config.width
        self.codes = nn.Embedding(codebook_size, width)
        self.position_embedding = nn.Parameter(torch.randn(positions, width) * 0.02)
        self.condition = nn.Linear(dim, width)
        layer = nn.TransformerEncoderLayer(
            width, config.heads, 4 * width, config.dropout, F.gelu, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, codebook_size)

    def forward(self, codes: Tensor, embedding: Tensor) -> Tensor:
        x = torch.cat([self.condition(embedding).unsqueeze(1), self.codes(codes)], dim=1)
        x = x + self.position_embedding[: x.shape[1]]
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        logits: Tensor = self.head(self.norm(self.blocks(x, mask=mask)))
        return logits

    @torch.no_grad()
    def next_codes(self, codes: Tensor, embedding: Tensor) -> Tensor:
        """One more code a row; the whole prefix is computed again."""
        logits = self(codes, embedding)[:, -1]
        return torch.multinomial(logits.softmax(dim=-1), 1)


def train_step(
    model: PlainGpt,
    optimizer: torch.optim.Optimizer,
    vqgan: nn.Module,
    clip: nn.Module,
    pictures: Tensor,
    clip_pictures: Tensor,
) -> None:
    """Encode the batch by both frozen networks, then one step of the transformer."""
    with torch.no_grad():
        codes = vqgan.encode(pictures).flatten(1)  # type: ignore[operator]
        embedding = F.normalize(clip.encode_image(clip_pictures), dim=-1)  # type: ignore[operator]
    optimizer.zero_grad()
    logits = model(codes[:, :-1], embedding)
    F.cross_entropy(logits.flatten(0, 1), codes.flatten()).backward()
    optimizer.step()
