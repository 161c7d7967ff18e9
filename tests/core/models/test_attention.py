import pytest
import torch
import torch.nn.functional as F

from clipgen_core.models.attention import attend


@pytest.mark.parametrize("causal", [True, False])
def test_written_out_attention_is_the_fused_kernels(causal: bool) -> None:
    torch.manual_seed(0)
    ours = [torch.randn(3, 2, 9, 4, requires_grad=True) for _ in range(3)]
    theirs = [one.detach().clone().requires_grad_() for one in ours]
    out = attend(*ours, causal=causal)
    expected = F.scaled_dot_product_attention(*theirs, is_causal=causal)
    assert torch.allclose(out, expected, atol=1e-6)
    direction = torch.randn_like(out)
    out.backward(direction)
    expected.backward(direction)
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is not None and other.grad is not None
        assert torch.allclose(one.grad, other.grad, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(attend(*ours, causal=causal), expected, atol=1e-6)


def test_the_first_position_sees_itself_alone() -> None:
    q, k = torch.randn(1, 1, 3, 4, requires_grad=True), torch.randn(1, 1, 3, 4)
    v = torch.eye(3, 4).view(1, 1, 3, 4)
    weights = attend(q, k, v, causal=True)[0, 0, :, :3]
    assert weights[0].tolist() == [1, 0, 0] and weights[1, 2] == 0
    assert torch.allclose(weights.sum(dim=1), torch.ones(3))
