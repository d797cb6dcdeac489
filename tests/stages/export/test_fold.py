"""Batch norm goes into the convolution that it alone reads, and nowhere else."""

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from data_cache.errors import UserError
from stages.export.fold import fold_batchnorm


class Knots(nn.Module):
    """Batch norms that may be folded (plain, transposed, with what timm appends) and that may not."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.up, self.up_norm = nn.ConvTranspose2d(4, 4, 2, 2, bias=False), nn.BatchNorm2d(4)
        self.act_conv, self.act_norm = nn.Conv2d(4, 4, 1), BatchNormAct2d(4)
        self.read_twice, self.one_reader = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.shared, self.first, self.second = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.after_relu = nn.BatchNorm2d(4)

    def forward(self, images):
        features = self.act_norm(self.act_conv(self.up_norm(self.up(self.norm(self.conv(images))))))
        twice = self.read_twice(features)
        features = self.one_reader(twice) + twice
        return self.after_relu(torch.relu(self.second(self.shared(self.first(self.shared(features))))))


def test_only_what_changes_nothing_is_folded():
    torch.manual_seed(0)
    module = Knots()
    for _ in range(3):
        module(torch.randn(4, 3, 16, 16))  # statistics of their own
    for norm in (each for each in module.modules() if isinstance(each, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    before = {name: value.clone() for name, value in module.eval().state_dict().items()}
    images = torch.randn(2, 3, 16, 16)
    found = fold_batchnorm(module, images)
    assert set(found.folded) == {"norm", "up_norm", "act_norm"}
    assert set(found.left) == {"one_reader", "first", "second", "after_relu"}
    with torch.no_grad():
        torch.testing.assert_close(found.module(images), module(images), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items()), "it is a copy"


def test_a_network_that_cannot_be_traced_says_so():
    class Branches(nn.Module):
        def forward(self, images):
            return images if images.sum() > 0 else -images

    with pytest.raises(UserError, match=r"cannot be traced to fold batch norm.*drop --fold-batchnorm"):
        fold_batchnorm(Branches().eval(), torch.ones(1, 3, 4, 4))
