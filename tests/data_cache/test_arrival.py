"""What is sent to the host arrives as it was, and does not wait for what the device is given later."""

import pytest
import torch

from data_cache.arrival import Arrival


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.uint8])
def test_what_arrives_is_what_was_sent(kind):
    sent = torch.arange(24).view(2, 3, 4).to(kind).transpose(1, 2)
    assert torch.equal(Arrival(sent).wait(), sent)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_is_ahead_of_what_a_gpu_is_given_later():
    product = torch.randn(8192, 8192, device="cuda")
    sent = product[0].clone()
    arrival = Arrival(sent)
    for _ in range(50):
        product = product @ product
    arrived = arrival.wait()
    assert not torch.cuda.current_stream().query()
    assert torch.equal(arrived, sent.cpu())
