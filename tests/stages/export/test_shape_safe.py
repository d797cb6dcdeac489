import pytest
import torch
from torch import nn

from stages.export.shape_safe import ShapeSafeAdaptiveAvgPool2d, replace_adaptive_pooling


@pytest.mark.parametrize("bins", [(1, 1), (2, 3), (6, 6)], ids=str)
@pytest.mark.parametrize("size", [(2, 3), (7, 12), (64, 48)], ids=str)
def test_it_equals_the_pooling_of_torch(bins, size):
    features = torch.randn(2, 4, *size, dtype=torch.float64)
    ours = ShapeSafeAdaptiveAvgPool2d(bins)(features)
    torch.testing.assert_close(ours, nn.AdaptiveAvgPool2d(bins)(features), rtol=1e-12, atol=1e-12)


def test_only_pooling_to_several_bins_is_replaced():
    module = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.AdaptiveAvgPool2d((2, 3)), nn.AdaptiveAvgPool2d(6))
    )
    kinds = [type(leaf) for leaf in replace_adaptive_pooling(module).modules() if not any(leaf.children())]
    assert kinds == [nn.AdaptiveAvgPool2d, ShapeSafeAdaptiveAvgPool2d, ShapeSafeAdaptiveAvgPool2d]
