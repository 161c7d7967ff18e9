"""Named model shapes, among which recipes and importers choose. Does not import torch."""

from clipgen_core.settings.models import QuantizerConfig, TransformerConfig, VqganConfig

VQGANS: dict[str, VqganConfig] = {
    "demo": VqganConfig(
        image_size=64,
        channels=(64, 128, 192),
        decoder_blocks=2,
        patch=2,
        attention="middle",
        z_channels=192,
        quantizer=QuantizerConfig(codebook_size=256, code_dim=16),
    ),
    "paper": VqganConfig(
        image_size=256,
        channels=(128, 128, 256, 256, 512),
        quantizer=QuantizerConfig(codebook_size=16384, code_dim=256, decay=0.99),
    ),
    "modern": VqganConfig(
        image_size=256,
        channels=(128, 128, 256, 256, 512),
        quantizer=QuantizerConfig(kind="cosine", codebook_size=16384, code_dim=8, decay=0.99),
    ),
}

TRANSFORMERS: dict[str, TransformerConfig] = {
    "nano": TransformerConfig(width=320, layers=6, heads=5, norm="layer", condition="everywhere"),
    "paper": TransformerConfig(
        width=1024,
        layers=24,
        heads=16,
        dropout=0.1,
        norm="layer",
        feed_forward="gelu",
        positions="learned",
        qk_norm=False,
        bias=True,
    ),
    "b": TransformerConfig(width=768, layers=12, heads=12, dropout=0.1),
    "l": TransformerConfig(width=1024, layers=24, heads=16, dropout=0.1),
    "xl": TransformerConfig(width=1280, layers=36, heads=20, dropout=0.1),
}
