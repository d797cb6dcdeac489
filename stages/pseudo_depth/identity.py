"""Which stores an estimator has made, by the name a person gives it. Imports no torch."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from data_cache.depth_map import Provenance
from data_cache.sample import DepthKind
from stages.pseudo_depth.aliases import BUNDLED_FOLDER, ESTIMATORS, GROUND_TRUTH, is_hub_id
from stages.pseudo_depth.model_folder import describe_folder, find_model_folder, name_of_folder
from stages.pseudo_depth.weight_files import find_weights, hash_files


class EstimatorIdentity(NamedTuple):
    """What must be equal for a store to be this estimator's; None is not known here and not compared."""

    name: str
    """Under which stores are filed: alias, Hub id, or what a model folder calls itself."""
    weights_sha256: str | None = None
    """Of local weights, which may have been taught anew under the same name."""
    revision: str | None = None
    input_size: int | None = None
    dtype: str | None = None
    depth_rule: str | None = None
    """Of a dataset's ground-truth depth."""

    def made(self, store: Provenance) -> bool:
        """Whether a store of this name is of these very weights and settings."""
        wanted = {field: value for field, value in self._asdict().items() if field != "name" and value is not None}
        return all(value == getattr(store, field) for field, value in wanted.items())


def identify_estimator(
    name: str,
    *,
    kind: DepthKind | None = None,
    input_size: int | None = None,
    precision: str = "auto",
    depth_rule: str = "",
) -> EstimatorIdentity:
    """Return the identity of an estimator under the settings of a recipe.

    Args:
        name: alias, ``dataset``, model folder or Hub id.
        kind: what its numbers mean, where nothing else says it.
        input_size: replaces the recommended size, px.
        precision: ``auto`` fits stores of either type.
        depth_rule: how the dataset's ground-truth depth is read; counts for ``dataset`` alone.

    Raises:
        UserError: a model folder is damaged or contradicts ``kind``.
    """
    if name == GROUND_TRUTH:
        return EstimatorIdentity(name, depth_rule=depth_rule)
    folder = BUNDLED_FOLDER if name == "bundled" else find_model_folder(name)
    dtype = None if precision == "auto" else precision
    if folder is not None and (name == "bundled" or name not in ESTIMATORS):
        spec = describe_folder(folder, alias=name_of_folder(folder), kind=kind)
        return EstimatorIdentity(
            name if name in ESTIMATORS else spec.alias,
            _hash_folder(folder.resolve(), tuple(path.stat().st_mtime_ns for path in find_weights(folder))),
            input_size=input_size or spec.recommended_size,
            dtype=dtype,
        )
    if name in ESTIMATORS:
        spec = ESTIMATORS[name]
        return EstimatorIdentity(
            name, revision=spec.revision, input_size=input_size or spec.recommended_size, dtype=dtype
        )
    # A folder that is gone leaves its name: the store it made is still good.
    return EstimatorIdentity(name if is_hub_id(name) else Path(name).name, input_size=input_size, dtype=dtype)


@lru_cache
def _hash_folder(folder: Path, _written_at_ns: tuple[int, ...]) -> str:
    """Return the hash of a folder's weights, computed once for each state of the files."""
    return hash_files(find_weights(folder))
