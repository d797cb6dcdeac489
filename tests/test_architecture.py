"""The house has an order: pipeline -> stages -> data_cache; stages and third parties keep to their rooms."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipeline", "stages", "data_cache")
FILES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

ROOMS = {
    "click": {"pipeline/cli.py", "pipeline/options.py", "pipeline/commands/"},
    "transformers": {"stages/pseudo_depth/estimator_network.py"},
    "h5py": {"data_cache/depth_file.py", "data_cache/depth_file_build.py", "data_cache/map_facts.py"},
    "hdf5plugin": {"data_cache/depth_file.py"},
    "segmentation_models_pytorch": {"stages/networks/", "stages/export/proof.py", "stages/training/region_losses.py"},
    "rich": {"pipeline/"},
    "imageio_ffmpeg": {"stages/evaluation/frames.py"},
    "yaml": {"data_cache/annotations/yolo.py"},
    "ray": {"pipeline/experiment/engines/on_ray.py"},
    "pydantic": {"pipeline/experiment/", "pipeline/workspace.py", "stages/", "data_cache/"},
}
"""Third party -> files, or folders ending in a slash, that may import it."""
TORCH_FREE = (
    "stages/networks/parts.py",
    "stages/training/schedule.py",
    "stages/training/schedules.py",
    "stages/comparison/",
    "stages/selection/",
    "stages/export/formats.py",
    "data_cache/metrics.py",
    "data_cache/escaping.py",
    "pipeline/experiment/keys.py",
    "pipeline/experiment/plan.py",
    "pipeline/experiment/reading.py",
    "pipeline/experiment/config.py",
    "pipeline/experiment/expand.py",
    "pipeline/experiment/tabulate.py",
    "pipeline/experiment/selecting.py",
    *(path.as_posix() for path in FILES if path.name == "settings.py"),
    "data_cache/sample.py",
    "data_cache/order.py",
)
LIGHT = ("pipeline/cli.py", "pipeline/options.py", "pipeline/commands/")
"""What ``pipeline --help`` imports: nothing of third parties but click."""
FORBIDDEN = {"pickle", "dill", "cloudpickle", "joblib", "mmcv", "albumentations", "hydra"}
SAFE_CALLS = {
    "torch.load": {"weights_only": "True"},
    "np.load": {"allow_pickle": "False"},
}
"""Function that can run what a file says -> arguments without which it must not be called."""
UNSAFE_CALLS = {"eval", "exec", "compile", "torch.hub.load", "os.system"}
NAMELESS = {"utils.py", "common.py", "helpers.py", "base.py", "misc.py"}


def imports(tree: ast.AST, *, at_import_time: bool = False) -> Iterator[str]:
    """Yield the absolute module names a file imports; optionally only those its own import triggers."""
    for node in ast.iter_child_nodes(tree):
        if at_import_time and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if at_import_time and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that a reader sees the room"
            yield node.module or ""
        else:
            yield from imports(node, at_import_time=at_import_time)


def broken_rules(path: Path, source: str) -> list[str]:
    """Return what a file does that its place in the house forbids."""
    name, tree = path.as_posix(), ast.parse(source)
    wanted = list(imports(tree))
    problems = [f"imports {module}" for module in wanted if module.split(".")[0] in FORBIDDEN]
    for module in wanted:
        parts = module.split(".")
        if parts[0] in PACKAGES and PACKAGES.index(parts[0]) < PACKAGES.index(path.parts[0]):
            problems.append(f"imports {module}, which lies above it")
        among_stages = parts[0] == path.parts[0] == "stages" and len(parts) > 1 and len(path.parts) > 2
        if among_stages and parts[1] not in (path.parts[1], "networks"):
            problems.append(f"imports {module}, another stage")
        allowed = ROOMS.get(parts[0])
        if allowed is not None and not any(
            name == room or (room[-1] == "/" and name.startswith(room)) for room in allowed
        ):
            problems.append(f"imports {module} outside {', '.join(sorted(allowed))}")
    if any(name == place or (place[-1] == "/" and name.startswith(place)) for place in TORCH_FREE):
        heavy = [module for module in imports(tree, at_import_time=True) if module.split(".")[0].startswith("torch")]
        problems += [f"imports {module} at import time" for module in heavy]
    if any(name == place or (place[-1] == "/" and name.startswith(place)) for place in LIGHT):
        known = {"click", "pipeline", "data_cache", "stages", *sys.stdlib_module_names}
        heavy = [module for module in imports(tree, at_import_time=True) if module.split(".")[0] not in known]
        problems += [f"imports {module} at import time" for module in heavy]
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = ast.unparse(call.func)
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if function in UNSAFE_CALLS or not SAFE_CALLS.get(function, {}).items() <= given.items():
            problems.append(f"calls {ast.unparse(call)}, which may run what a file says")
        if given.get("trust_remote_code", "False") != "False":
            problems.append(f"calls {function} with trust_remote_code")
    if path.name in NAMELESS:
        problems.append("has a name that says nothing")
    return problems


def test_every_file_keeps_to_its_room() -> None:
    broken = {path.as_posix(): broken_rules(path, (ROOT / path).read_text(encoding="utf8")) for path in FILES}
    assert {path: problems for path, problems in broken.items() if problems} == {}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("data_cache/x.py", "import stages.training.loop"),
        ("stages/training/x.py", "from pipeline.experiment.config import RunConfig"),
        ("stages/training/x.py", "from stages.evaluation.metrics import SegCounts"),
        ("stages/training/x.py", "def f():\n    import click"),
        ("pipeline/x.py", "import h5py"),
        ("data_cache/x.py", "import pickle"),
        ("stages/comparison/x.py", "import torch"),
        ("pipeline/commands/x.py", "import numpy"),
        ("pipeline/utils.py", ""),
        ("stages/x.py", "torch.load(path)"),
        ("stages/x.py", "AutoModel.from_pretrained(name, trust_remote_code=trusted)"),
    ],
)
def test_the_guard_sees_what_it_guards(path: str, source: str) -> None:
    assert broken_rules(Path(path), source)


def test_there_is_something_to_guard() -> None:
    assert {path.parts[0] for path in FILES} == set(PACKAGES)
    assert {path.parts[1] for path in FILES if path.parts[0] == "stages"} >= {
        "pseudo_depth", "selection", "training", "evaluation", "comparison", "export", "networks",
    }  # fmt: skip
