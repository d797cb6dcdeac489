"""What "auto" comes to: on a CPU against torch's own idea of the machine, on GPUs by what they say of themselves."""

import pytest
import torch

from stages.networks.precision import resolve_dtype


def test_auto_takes_bfloat16_only_where_it_is_native():
    capable = torch.cpu.get_capabilities()
    native = capable.get("avx512_bf16") or capable.get("amx_bf16")
    assert resolve_dtype("auto", "cpu") == ("bfloat16" if native else "float32")
    assert resolve_dtype("bfloat16", "cpu") == "bfloat16"
    assert resolve_dtype("auto", "mps") == "float32"


GPUS = {"cuda:0": (9, 0), "cuda:1": (8, 0), "cuda:2": (7, 5), "cuda:3": (7, 0), "cuda:4": (6, 1)}
"""H100, A100, T4, V100, GTX 1080 in one machine, by compute capability; bfloat16 came with 8.0."""


@pytest.mark.parametrize(
    ("device", "dtype"),
    [*zip(GPUS, ("bfloat16", "bfloat16", "float16", "float16", "float32"), strict=True), ("cuda", "bfloat16")],
)
def test_auto_asks_the_chosen_gpu(monkeypatch, device, dtype):
    chosen = []

    class Chosen:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            chosen.append(f"cuda:{self.device.index or 0}")

        def __exit__(self, *_):
            chosen.pop()

    monkeypatch.setattr(torch.cuda, "device", Chosen)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: GPUS[chosen[-1]])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_options: GPUS[chosen[-1]] >= (8, 0))
    assert resolve_dtype("auto", device) == dtype
    assert resolve_dtype("float32", device) == "float32"
