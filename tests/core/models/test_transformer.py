import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipgen_core.errors import ClipgenError
from clipgen_core.models.layout import Layout, Step, tokens_of
from clipgen_core.models.shapes import TRANSFORMERS
from clipgen_core.models.transformer import Transformer
from clipgen_core.settings.models import TransformerConfig
from clipgen_core.training.losses import code_cross_entropy

SHAPES: dict[str, dict[str, Any]] = {
    "llamagen": {},
    "gpt2": {
        "norm": "layer",
        "feed_forward": "gelu",
        "positions": "learned",
        "qk_norm": False,
        "bias": True,
    },
    "everywhere": {"norm": "layer", "condition": "everywhere"},
    "neighbours": {"neighbours": 2, "condition": "everywhere"},
    "learned neighbours": {"neighbours": 3, "positions": "learned"},
}


def of_shape(shape: dict[str, Any]) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(width=32, layers=2, heads=4, **shape)
    model = Transformer(config, codebook_size=7, grid=3, embedding_dim=5).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest) -> Transformer:
    return of_shape(SHAPES[request.param])


def embedding(model: Transformer, rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 1 + model.config.neighbours, 5, generator=generator)


def test_a_code_is_predicted_from_the_codes_before_it_alone(model: Transformer) -> None:
    codes = torch.randint(0, 7, (1, 8))
    changed = codes.clone()
    changed[0, 4] = (changed[0, 4] + 1) % 7
    before, after = model(codes, embedding(model, 1)), model(changed, embedding(model, 1))
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_every_embedding_reaches_every_position(model: Transformer) -> None:
    codes, embeddings = torch.randint(0, 7, (1, 8)), embedding(model, 1)
    for which in range(embeddings.shape[1]):
        other = embeddings.clone()
        other[:, which] *= -1
        difference = (model(codes, embeddings) - model(codes, other)).abs().amax(-1)
        assert (difference > 0).all()


def step(model: Transformer, positions: list[int], targets: list[int], start: int, whole: bool) -> Step:
    """Tokens that hold and predict these positions, the first of them at slot `start`; all is seen before
    them, and by a model that is not of raster order also all beside them."""
    prefix = model.prefix if start == 0 else 0
    end = start + prefix + len(positions)
    order, reach = torch.arange(model.slots), model.slots if whole else end
    seen = torch.full((prefix + len(positions),), end) if not model.raster else order[start:end] + 1
    if not model.raster:
        seen[:prefix] = prefix
    visible = order[:reach] < seen.unsqueeze(1)
    held, asked = torch.tensor([positions], dtype=torch.long), torch.tensor([targets])
    return Step(held, asked, order[None, start:end], visible[None], reach, len(targets), first=start == 0)


@pytest.mark.parametrize("whole", [False, True])
def test_the_cache_gives_the_logits_of_the_whole_prefix(model: Transformer, whole: bool) -> None:
    embeddings, codes = embedding(model, 2), torch.randint(0, 7, (2, 8))
    cache, none = model.new_cache(2), torch.zeros(2, dtype=torch.bool)
    steps = [step(model, [], [0], 0, whole)]
    steps += [step(model, [i], [i + 1], model.prefix + i, whole) for i in range(8)]
    parts = [model.decode(one.held(codes), embeddings, none, one, cache) for one in steps]
    assert torch.allclose(torch.cat(parts, 1), model(codes, embeddings), atol=1e-4)


ANY: dict[str, dict[str, Any]] = {
    name: shape | {"order": "any"} for name, shape in SHAPES.items() if name != "gpt2"
}
ORDER = [8, 2, 5, 0, 7, 1, 3, 6, 4]


@pytest.fixture(params=ANY)
def any_order(request: pytest.FixtureRequest) -> Transformer:
    return of_shape(ANY[request.param])


def logits_of(model: Transformer, codes: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """By position, float [n, t, 7]; those of given codes mean nothing."""
    layout = Layout.stack([tokens_of(np.array(ORDER), sizes, 9)])
    return layout.by_position(model(layout.held(codes), embedding(model, len(codes)), layout=layout), codes)


@pytest.mark.parametrize("sizes", [[0, 2, 3, 4], [0] + [1] * 9, [4, 2, 3], [1, 3, 5], [0, 9]])
def test_codes_are_predicted_from_the_groups_before_theirs_alone(
    any_order: Transformer, sizes: list[int]
) -> None:
    codes = torch.randint(0, 7, (1, 9))
    before = logits_of(any_order, codes, sizes)
    first = sizes[0]
    for group, size in enumerate(sizes[1:-1], start=1):
        changed = codes.clone()
        changed[0, ORDER[first]] = (changed[0, ORDER[first]] + 1) % 7  # the first code of the group
        after = logits_of(any_order, changed, sizes)
        known, later = ORDER[sizes[0] : first + size], ORDER[first + size :]
        assert torch.equal(before[0, known], after[0, known]), group
        assert not (before[0, later] - after[0, later]).abs().amax(-1).lt(1e-4).any(), group
        first += size


@pytest.mark.parametrize("whole", [False, True])
def test_steps_with_a_cache_give_the_logits_of_the_whole_layout(any_order: Transformer, whole: bool) -> None:
    codes, embeddings = torch.randint(0, 7, (2, 9)), embedding(any_order, 2)
    none = torch.zeros(2, dtype=torch.bool)
    for sizes in ([0, 1, 3, 5], [4, 2, 3], [2, 7]):
        tokens = tokens_of(np.array(ORDER), sizes)
        layout, cache, parts = Layout.stack([tokens]), any_order.new_cache(2), []
        for number in range(len(sizes) - 1):
            held, asked = tokens[:2, tokens[2] == number].tolist()
            start = any_order.prefix + int((tokens[2] < number).sum()) if number else 0
            one = step(any_order, held, asked, start, whole)
            parts.append(any_order.decode(one.held(codes), embeddings, none, one, cache))
        expected = any_order(layout.held(codes), embeddings, layout=layout)
        assert torch.allclose(torch.cat(parts, 1), expected, atol=1e-4)


def test_what_a_token_predicts_depends_on_the_position_that_is_asked_for(any_order: Transformer) -> None:
    codes = torch.zeros(1, 9, dtype=torch.long)
    logits = logits_of(any_order, codes, [0, 9])[0]
    assert (torch.cdist(logits, logits) + torch.eye(9) > 1e-3).all()


def test_a_dropped_embedding_is_the_null_embedding(model: Transformer) -> None:
    codes, embeddings = torch.randint(0, 7, (2, 8)), embedding(model, 2)
    logits = model(codes, embeddings, dropped=torch.tensor([True, False]))
    null = model.null_embedding.expand(1, embeddings.shape[1], -1)
    assert torch.allclose(logits[:1], model(codes[:1], null), atol=1e-5)
    assert torch.allclose(logits[1:], model(codes[1:], embeddings[1:]), atol=1e-5)


def test_logits_have_a_row_for_every_code_to_come(model: Transformer) -> None:
    assert model(torch.zeros(3, 0, dtype=torch.long), embedding(model, 3)).shape == (3, 1, 7)
    assert model(torch.zeros(3, 8, dtype=torch.long), embedding(model, 3)).shape == (3, 9, 7)


def test_recomputing_blocks_changes_no_gradient(model: Transformer) -> None:
    gradients = []
    for recompute in (False, True):
        model.train().zero_grad()
        model.recompute = recompute
        model(torch.zeros(2, 8, dtype=torch.long), embedding(model, 2)).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.blocks.parameters() if p.grad is not None])
    assert gradients[0] and all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_weights_named_as_in_earlier_versions_load(model: Transformer) -> None:
    names = {"null_embedding": "nothing", "position_embedding": "place"}
    saved = {key: value + 1 for key, value in model.state_dict().items()}
    model.load_state_dict({names.get(key, key): value for key, value in saved.items()})
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())


def test_impossible_sizes_fail_before_any_work() -> None:
    with pytest.raises(ClipgenError, match="width 30 is not divisible by 4 heads"):
        TransformerConfig(width=30, layers=1, heads=4)
    with pytest.raises(ClipgenError, match="head width divisible by 4, not 6"):
        TransformerConfig(width=12, layers=1, heads=2)
    with pytest.raises(ClipgenError, match="published raster models"):
        TransformerConfig(width=16, layers=1, heads=2, details="llamagen", order="any")


def codebook(name: str) -> torch.Tensor:
    """Random vectors of the sizes and scales of real codebooks."""
    size, dim = {"demo": (256, 16), "unit": (16384, 8)}.get(name, (16384, 256))
    vectors = torch.randn(size, dim)
    if name == "unit":  # LlamaGen's and the recipe's `cosine`
        return F.normalize(vectors, dim=1)
    if name == "taming":  # one code in sixteen is in use, the others are where they were drawn
        vectors = vectors * 0.5 + 0.2
        vectors[size // 16 :] = (torch.rand(size - size // 16, dim) * 2 - 1) / size
    return vectors


@pytest.mark.parametrize(
    ("shape", "source"),
    [("nano", "demo"), ("paper", "normal"), ("paper", "taming"), ("b", "unit"), ("b", "normal")],
)
def test_the_loss_starts_at_that_of_equal_probabilities(shape: str, source: str) -> None:
    torch.manual_seed(0)
    vectors = codebook(source)
    config = TRANSFORMERS[shape].model_copy(update={"layers": 1})
    model = Transformer(config, len(vectors), grid=8, embedding_dim=512).eval()
    model.start_from_codebook(vectors)
    codes, embeddings = torch.randint(len(vectors), (2, 64)), F.normalize(torch.randn(2, 1, 512), dim=-1)
    with torch.no_grad():
        loss = code_cross_entropy(model(codes[:, :-1], embeddings), codes).item()
    assert loss == pytest.approx(math.log(len(vectors)), rel=0.1)
    near, far = vectors[1] + 1e-3 * vectors.std(), vectors[2]
    model.start_from_codebook(torch.stack([vectors[1], near, far]).repeat(len(vectors), 1)[: len(vectors)])
    rows = model.head.weight
    assert (rows[0] - rows[1]).norm() < 0.1 * (rows[0] - rows[2]).norm()
