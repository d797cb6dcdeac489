"""What latencies depend on: the CPU, what it can multiply, and the versions of the runtimes. Imports no torch."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_CPU_FILE = Path("/proc/cpuinfo")
_VNNI = ("avx512_vnni", "avx_vnni", "avx_vnni_int8")
_DOT_PRODUCTS = (*_VNNI, "amx_int8", "asimddp", "i8mm")
_NOTABLE = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16", "sve", *_DOT_PRODUCTS)
"""As Linux calls them, of x86 and of ARM."""
RUNTIMES = ("torch", "segmentation-models-pytorch", "timm", "onnx", "onnxruntime", "openvino", "nncf", "executorch")


def describe_cpu() -> dict[str, Any]:
    """Return ``cpu``, ``instructions`` that matter to networks, and ``vnni``: None where the system does not tell."""
    lines = _CPU_FILE.read_text(encoding="utf8", errors="replace").splitlines() if _CPU_FILE.exists() else []
    found: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        found.setdefault(name.strip().lower(), value.strip())
    flags = set((found.get("flags") or found.get("features") or "").split())
    return {
        "cpu": found.get("model name") or platform.processor() or platform.machine(),
        "system": f"{platform.system()} {platform.machine()}",
        "instructions": [flag for flag in _NOTABLE if flag in flags],
        "vnni": bool(flags.intersection(_VNNI)) if flags else None,
    }


def describe_vnni(machine: dict[str, Any]) -> str:
    """Return in words whether the CPU multiplies bytes at once, which numbers of 8 bits are fast by."""
    if machine["vnni"] is None:
        return "whether it has VNNI is not known"
    dot_products = [name for name in machine["instructions"] if name in _DOT_PRODUCTS]
    return f"with {', '.join(dot_products)}" if dot_products else "without VNNI"


def find_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
