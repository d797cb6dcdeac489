"""An export folder as a model repository of the Hugging Face Hub: the card's front matter, and sending it there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_cache.errors import UserError
from data_cache.escaping import printable_text
from stages.export.proof_file import PROOF_FILE, check_files, read_proof
from stages.networks.hub import find_hub_problem

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_OPEN_LICENCES = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc0-1.0"}
"""As the Hub calls them, which is SPDX in small letters."""


@dataclass(frozen=True)
class LicenceLink:
    """One thing that the weights were made from.

    Args:
        role: for example ``depth teacher``, ``encoder weights``, ``training images``.
        name: Hub id, dataset name or file name.
        licence: SPDX name, or ``unknown`` when no statement was found.
        revision: commit or hash, where there is one.
        noncommercial: whether the licence forbids commercial use.
        note: anything a reader should know besides.
    """

    role: str
    name: str
    licence: str
    revision: str = ""
    noncommercial: bool = False
    note: str = ""


def describe_metadata(
    *,
    run: str,
    dataset: str,
    split: str,
    miou: float | None,
    licences: Sequence[LicenceLink],
    formats: Sequence[str],
    network: str,
    opens_with_smp: bool,
) -> str:
    """Return the front matter of the card, YAML as the Hub reads it.

    The licence is named only where everything that the weights were made from has the same open one.
    """
    from huggingface_hub import EvalResult, ModelCardData

    scores = []
    if miou is not None:
        name = printable_text(dataset)
        about = EvalResult("image-segmentation", name, name, "mean_iou", round(miou, 4))
        scores = [replace(about, dataset_split=printable_text(split), metric_name="macro mIoU")]
    licence = _find_licence(licences)
    card = ModelCardData(
        license=licence,
        license_name="see-licences-in-this-card" if licence == "other" else None,
        library_name="segmentation-models-pytorch" if opens_with_smp else "pseudo-depth-pipeline",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "pseudo-depth", network.partition("(")[0], *formats],
        model_name=printable_text(run),
        eval_results=scores or None,
    )
    return card.to_yaml().strip()


def _find_licence(licences: Sequence[LicenceLink]) -> str:
    names = {link.licence.partition(" (")[0].lower() for link in licences}
    if len(names) == 1 and names <= _OPEN_LICENCES and not any(link.noncommercial for link in licences):
        return names.pop()
    return "other"


def check_repository(name: str) -> None:
    """Raise UserError where this can be no model repository of somebody."""
    if not _REPOSITORY.fullmatch(name) or "--" in name or ".." in name:
        raise UserError(f"{name!r} is no model repository; write it as OWNER/NAME, in letters, digits, '-', '_', '.'")


def list_upload(folder: Path) -> dict[str, int]:
    """Return what of an export is sent: name → bytes.

    Raises:
        UserError: a file is not the one that the proof is of.
    """
    proven = read_proof(folder).files or {}
    check_files(folder, proven)
    return {name: (folder / name).stat().st_size for name in sorted((*proven, PROOF_FILE))}


def read_front_matter(card: str) -> str:
    """Return the YAML at the beginning of a card."""
    return card.split("---\n", 2)[1].strip()


def push_folder(folder: Path, repository: str, files: Iterable[str]) -> str:
    """Send files of a folder to a model repository, which is made where there is none, as a private one.

    Returns:
        Where they are to be seen.

    Raises:
        UserError: there is no network, no token, or no leave.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError

    kept = f"{folder} is complete: repeat the command, or look at what would be sent with --dry-run"
    if problem := find_hub_problem():
        raise UserError(f"the Hub cannot be reached ({problem}), so nothing was sent; {kept}")
    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=list(files), commit_message="Export"
        )
    except (HTTPError, LocalTokenNotFoundError) as error:
        raise UserError(
            f"the Hub does not take {repository} ({' '.join(str(error).split())[:300]}); log in with 'hf auth login', "
            f"or set HF_TOKEN to a token that may write there; {kept}"
        ) from error
    return str(commit.commit_url)
