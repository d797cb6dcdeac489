"""What "auto" comes to, against torch's own idea of the machine."""

import torch

from stages.networks.precision import resolve_dtype


def test_auto_takes_bfloat16_only_where_it_is_native():
    capable = torch.cpu.get_capabilities()
    native = capable.get("avx512_bf16") or capable.get("amx_bf16")
    assert resolve_dtype("auto", "cpu") == ("bfloat16" if native else "float32")
    assert resolve_dtype("bfloat16", "cpu") == "bfloat16"
    assert resolve_dtype("auto", "mps") == "float32"
