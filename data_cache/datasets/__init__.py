"""The datasets by name, our own and those of others. Adding one of ours is a file and a line in ``DATASETS``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from data_cache.datasets.camvid import CamVid
from data_cache.datasets.cityscapes import Cityscapes
from data_cache.datasets.folder import Folder
from data_cache.datasets.interface import POOL, EmptySplit, SegmentationDataset
from data_cache.datasets.scenes import Scenes
from data_cache.datasets.voc import Voc
from data_cache.errors import UserError, nearest
from data_cache.plugins import describe_wrong_base, find_plugin, list_installed

DATASETS: dict[str, type[SegmentationDataset]] = {
    "scenes": Scenes,
    "camvid": CamVid,
    "voc": Voc,
    "cityscapes": Cityscapes,
    "folder": Folder,
}

_KINDS: dict[type, str] = {
    bool: "true or false, without quotes",
    str: "text",
    Mapping: "a table, as in { train = 100 }",
}


def open_dataset(name: str, root: Path | None, split: str, **options: Any) -> SegmentationDataset:
    """Open a split of a dataset.

    Args:
        name: key of ``DATASETS``, or of a plug-in.
        root: folder of the dataset; for scenes the cache folder.
        split: train, val, …; what exists depends on the dataset. "unlabelled" is its images without masks.
        options: keyword arguments of the dataset's class.

    Raises:
        EmptySplit: there is no image.
        UserError: for an unknown name, split or option, or a missing folder.
    """
    check_dataset_arguments(name, root, options)
    if split == POOL:
        split = find_pool_split(name)
    build: Callable[..., SegmentationDataset] = find_dataset(name)
    plugin = find_plugin("dataset", name, DATASETS)
    if plugin is None:
        return build(root, split, **options)
    with plugin.blaming(f"cannot be opened in {root}, split {split!r}, with {options}"):
        dataset = build(root, split, **options)
    dataset.code = plugin.identify()
    return dataset


def find_dataset(name: str) -> type[SegmentationDataset]:
    """Return the class of a dataset.

    Raises:
        UserError: there is none of that name, or the plug-in that it names is none.
    """
    plugin = find_plugin("dataset", name, DATASETS)
    if plugin is None:
        return DATASETS[name]
    found = plugin.load()
    if problems := list(_find_class_problems(found)):
        raise UserError(f"{plugin.what} is no dataset: {'; '.join(problems)}")
    return found


def _find_class_problems(found: Any) -> Iterator[str]:
    if problem := describe_wrong_base(found, SegmentationDataset):
        yield problem
        return
    if missing := sorted(found.__abstractmethods__):
        yield f"it does not define {', '.join(missing)}"
    names = [parameter.name for parameter in inspect.signature(found).parameters.values()]
    if names[:2] != ["root", "split"]:
        yield f"its __init__ takes ({', '.join(names)}), and root and split must come first"
    if found.name != f"{found.__module__}:{found.__qualname__}" and found.name not in list_installed("dataset"):
        yield f"it sets name = {found.name!r}, by which no command would find it again; leave name out"


def find_pool_split(name: str) -> str:
    """Return what a dataset calls its images without masks.

    Raises:
        UserError: it can have none.
    """
    if (split := find_dataset(name).pool_split) is not None:
        return split
    offering = ", ".join(other for other, kind in DATASETS.items() if kind.pool_split)
    raise UserError(
        f"dataset {name!r} brings no images without masks (these may: {offering}); --labelled-fraction withholds masks "
        "of its training images, and a folder dataset takes any images below images/unlabelled"
    )


def choose_root(name: str, data_root: str | None, workdir: Path) -> Path | None:
    """Return the folder of a dataset: the one a person names, else the place of what is made in the work directory.

    Args:
        name: key of ``DATASETS``, or of a plug-in.
        data_root: as a person wrote it, maybe with ``~``.
        workdir: the work directory.

    Raises:
        UserError: for an unknown name, or a folder for a dataset that reads none.
    """
    kind = find_dataset(name)
    if data_root and not kind.needs_root:
        raise UserError(
            f"dataset {name!r} is made in the work directory and reads no folder, but --data-root "
            f"{data_root!r} (data.root) is given; drop it, or name the dataset it holds, such as --dataset folder"
        )
    if data_root:
        return Path(data_root).expanduser()
    return workdir / kind.work_folder if kind.work_folder else None


def check_dataset_arguments(name: str, root: Path | None, options: Mapping[str, Any]) -> None:
    """Refuse what no split of a dataset could be opened with.

    Raises:
        UserError: for an unknown name or option, an option of another kind, or a missing folder.
    """
    dataset_class = find_dataset(name)
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(dataset_class).parameters.values()
    known = [each.name for each in parameters if each.kind in named and each.name not in ("root", "split")]
    try:
        kinds = get_type_hints(dataset_class.__init__)
    except NameError:  # of a plug-in that imports its types for a type checker alone
        kinds = {}
    for option, value in options.items():
        if option not in known:
            raise UserError(
                f"dataset {name!r} has no option {option!r}{nearest(option, known)}; "
                f"it has: {', '.join(known) or 'none'}"
            )
        _check_kind(name, option, value, kinds.get(option))
    if root is None and dataset_class.needs_root:
        raise UserError(f"dataset {name!r} is read from a folder; name it with: --data-root DIR")
    if root is not None and dataset_class.needs_root and not Path(root).is_dir():
        raise UserError(f"dataset {name!r}: there is no folder {root}; name the right one with: --data-root DIR")


def _check_kind(name: str, option: str, value: Any, hint: Any) -> None:
    """Refuse text, a switch or a table where another kind of value belongs; numbers the dataset itself looks at."""
    parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    possible = tuple(get_origin(part) or part for part in parts)
    for kind, words in _KINDS.items():
        if kind in possible and not isinstance(value, possible):
            raise UserError(f"dataset {name!r}: {option} must be {words}, got {str(value)[:60]!r}")


__all__ = [
    "DATASETS", "POOL", "EmptySplit", "SegmentationDataset",
    "check_dataset_arguments", "choose_root", "find_dataset", "find_pool_split", "open_dataset",
]  # fmt: skip
