"""Several views of an image: one is the plain pass, mirrored ones make the result mirror with the image."""

from __future__ import annotations

import pytest
import torch

from data_cache.errors import UserError
from stages.evaluation.tiling import predict
from stages.evaluation.views import ONE_VIEW, choose_views, run_views
from stages.networks import build_network


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_network("unet-classic", 4, width=2).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))


def test_names_give_all_combinations_and_none_the_image_itself():
    assert choose_views(None) == choose_views("flip")[:1] == ONE_VIEW
    assert [len(choose_views(text)) for text in ("flip", "scales", "flip,scales", "scales, flip")] == [2, 3, 6, 6]
    with pytest.raises(
        UserError, match=r"unknown kind of view for --tta 'flp' .did you mean 'flip'.*known: flip, scales"
    ):
        choose_views("scales,flp")


def test_one_view_is_the_plain_pass_to_the_bit(network, images):
    with torch.no_grad():
        plain, one = network(images), run_views(network, images, ONE_VIEW, depth=True)
    assert torch.equal(one.seg_logits, plain.seg_logits) and torch.equal(one.depth, plain.depth)


@pytest.mark.parametrize("text", ["flip", "flip,scales"])
def test_a_mirrored_image_gives_the_mirrored_result(network, images, text):
    with torch.no_grad():
        found = run_views(network, images, choose_views(text), depth=True)
        mirrored = run_views(network, images.flip(-1), choose_views(text), depth=True)
        plain = network(images).seg_logits
    torch.testing.assert_close(mirrored.seg_logits.flip(-1), found.seg_logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mirrored.depth.flip(-1), found.depth, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(plain.log_softmax(1), found.seg_logits), "the views do change something"


def test_what_is_returned_is_the_logarithm_of_the_mean_softmax(network, images):
    with torch.no_grad():
        both = [network(images).seg_logits, network(images.flip(-1)).seg_logits.flip(-1)]
        found = run_views(network, images, choose_views("flip")).seg_logits
    mean = torch.stack([logits.softmax(1) for logits in both]).mean(0)
    torch.testing.assert_close(found.softmax(1), mean)
    torch.testing.assert_close(found.exp(), mean)


def test_probabilities_in_bytes_are_those_of_the_labels(network, images):
    with torch.no_grad():
        predicted = predict(network, images, (50, 60), probabilities=True)
    probabilities = predicted.probabilities.double() / 255
    assert probabilities.shape == (2, 4, 50, 60)
    assert (probabilities.sum(1) - 1).abs().max() <= 4 * 0.5 / 255
    chosen = probabilities.gather(1, predicted.seg_labels[:, None].long())
    assert (probabilities.amax(1, keepdim=True) - chosen).max() == 0
