"""Measure what docs/speed.md says about speed, as ratios: ``python -m tests.benchmarks [NAME…] [--json FILE]``.

A name is that of a file beside this one without ``bench_`` (labelling, training, …); none runs them all.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from functools import partial
from pathlib import Path

from pipeline.threads import choose_thread_defaults

choose_thread_defaults()  # before torch is loaded: threads as the command line has them

from tests.benchmarks.harness import describe_machine, run_benches, write_figures  # noqa: E402


def main() -> int:
    """Run the benches asked for; return the exit status."""
    known = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; default all")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--small", action="store_true", help="a pass of each at toy sizes: shows that they run")
    options = parser.parse_args()
    if unknown := set(options.names) - set(known):
        parser.error(f"unknown {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    benches = []
    for name in options.names or known:
        module = importlib.import_module(f"tests.benchmarks.bench_{name}")
        benches.append((name, partial(module.lines, small=options.small)))
    words = " ".join(["python -m tests.benchmarks", *options.names, *(["--small"] if options.small else [])])
    figures = run_benches(benches, describe_machine() | {"command": words})
    if options.json:
        write_figures(options.json, figures)
    return 1 if figures["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
