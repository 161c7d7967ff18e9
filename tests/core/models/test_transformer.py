import pytest
import torch

from clipgen_core.errors import ClipgenError
from clipgen_core.models.transformer import Transformer, TransformerConfig


def make(dropout: float = 0.0) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(width=32, layers=2, heads=4, dropout=dropout)
    return Transformer(config, codebook_size=7, positions=9, embedding_dim=5).eval()


def test_a_code_is_predicted_from_the_codes_before_it_alone() -> None:
    model, embedding = make(), torch.randn(1, 5)
    codes = torch.randint(0, 7, (1, 8))
    changed = codes.clone()
    changed[0, 4] = (changed[0, 4] + 1) % 7
    before, after = model(codes, embedding), model(changed, embedding)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_the_embedding_reaches_every_position() -> None:
    model, codes = make(), torch.randint(0, 7, (1, 8))
    difference = (model(codes, torch.ones(1, 5)) - model(codes, -torch.ones(1, 5))).abs().amax(-1)
    assert (difference > 0).all()


def test_the_cache_gives_the_logits_of_the_whole_prefix() -> None:
    model, embedding = make(), torch.randn(2, 5)
    codes = torch.randint(0, 7, (2, 8))
    cache = model.new_cache(2)
    steps = [model(codes[:, :0], embedding, cache)]
    steps += [model(codes[:, i : i + 1], embedding, cache) for i in range(8)]
    assert torch.allclose(torch.cat(steps, 1), model(codes, embedding), atol=1e-5)
    assert cache.length == 9


def test_logits_have_a_row_for_every_code_to_come() -> None:
    assert make()(torch.zeros(3, 0, dtype=torch.long), torch.randn(3, 5)).shape == (3, 1, 7)
    assert make()(torch.zeros(3, 8, dtype=torch.long), torch.randn(3, 5)).shape == (3, 9, 7)


def test_impossible_sizes_fail_before_any_work() -> None:
    with pytest.raises(ClipgenError, match="width 30 is not divisible by 4 heads"):
        TransformerConfig(width=30, layers=1, heads=4)
