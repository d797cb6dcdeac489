"""Run every benchmark of this folder and print its ratios: ``python -m tests.benchmarks [NAME…]``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

names = sys.argv[1:] or sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
for name in names:
    print(f"\n{name}")
    importlib.import_module(f"tests.benchmarks.{name}").main()
