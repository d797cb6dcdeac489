"""Tensors on disk: safetensors and nothing else, so that opening a file never runs code."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from data_cache.content import ContentHashes
from data_cache.errors import UserError
from data_cache.leftovers import name_temporary

_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors, on any device and in any layout; for a path of ``atomic_file`` or in an ``atomic_folder``.

    Raises:
        OSError: of the disk, also where the library has an exception of its own for that.
    """
    try:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path, metadata)
    except SafetensorError as problem:
        if (found := _OS_ERROR.search(str(problem))) is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from problem
    give_usual_mode(path)


def give_usual_mode(path: Path) -> None:
    """Give a file the mode of any new one: safetensors 0.8 makes its files for their owner alone."""
    new = name_temporary(path)
    new.touch()
    try:
        path.chmod(new.stat().st_mode)
    finally:
        new.unlink()


def read_tensors(path: Path, remedy: str, content: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Args:
        remedy: what to do about a file that is missing or damaged.
        content: what ``ContentHashes`` gave for it when it was written; None where nobody wrote that down.

    Raises:
        UserError: it is missing, no safetensors file, or not as it was written.
    """
    if not path.is_file():
        raise UserError(f"cannot read {path}: there is no such file; {remedy}")
    if content is not None:
        check_content(path, content, remedy)
    try:
        # The library opens no path that is not UTF-8.
        return load(path.read_bytes()) if os.fsencode(path) != str(path).encode(errors="replace") else load_file(path)
    except (OSError, SafetensorError, KeyError, ValueError) as problem:  # KeyError: a type of number that torch lacks
        raise UserError(f"cannot read {path} as safetensors ({problem}); {remedy}") from problem


def read_metadata(path: Path) -> dict[str, str]:
    """Return what a safetensors file says about itself; nothing where it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def parse_tensors(content: bytes, path: Path, remedy: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file's bytes, so that these very bytes can also be hashed.

    Raises:
        UserError: they are no safetensors; the message names ``path``.
    """
    try:
        return load(content)
    except (SafetensorError, KeyError, ValueError) as problem:  # KeyError: a type of number that torch lacks
        raise UserError(f"{path} is no intact safetensors file ({problem}); {remedy}") from problem


def check_trained(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: object, remedy: str) -> None:
    """Raise UserError unless tensors are plain numbers: floating, or of a type that the network itself has, and finite.

    Args:
        wanted: state dict of the network.
        where: file or folder that they are from.
        remedy: what to do about damaged ones.
    """
    types = {torch.float16, torch.bfloat16, torch.float32, torch.float64, *(each.dtype for each in wanted.values())}
    for name, tensor in tensors.items():
        if tensor.dtype not in types:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{where}: {name} is of {kind}; take float16, bfloat16 or float32 weights")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{where}: {name} holds values that are not finite, so the weights are damaged; {remedy}")


def check_content(path: Path, content: str, remedy: str, remembered: ContentHashes | None = None) -> None:
    """Refuse a file that is not as it was written: cut off, altered or exchanged, whatever its size and dates say.

    Args:
        content: as in ``read_tensors``.
        remembered: hashes of files that need not be read again while they are as they were; None reads the file.

    Raises:
        UserError: naming the file and the remedy.
    """
    if remembered is not None and remembered.hash((path,)) == content:
        return
    if ContentHashes().hash((path,)) != content:
        raise UserError(f"{path} is not as it was written (cut off, altered, or exchanged for another); {remedy}")


@torch.no_grad()
def fill_tensors(live: Mapping[str, Tensor], stored: Mapping[str, Tensor], what: str, remedy: str) -> None:
    """Copy stored values into live tensors, keeping their memory layout.

    Args:
        what: the stored values, for people.
        remedy: what to do where they do not fit.

    Raises:
        UserError: names, shapes or types of numbers differ; the first few differences are listed.
    """
    problems = [f"{name} is missing in the file" for name in live.keys() - stored.keys()]
    problems += [f"{name} is unknown to the network" for name in stored.keys() - live.keys()]
    problems += [
        f"{name} is {_describe(stored[name])} in the file and {_describe(live[name])} in the network"
        for name in live.keys() & stored.keys()
        if (stored[name].shape, stored[name].dtype) != (live[name].shape, live[name].dtype)
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise UserError(f"{what} does not fit the network: {shown}. To repair it, {remedy}")
    for name, value in live.items():
        value.copy_(stored[name])


def _describe(value: Tensor) -> str:
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
