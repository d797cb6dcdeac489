"""Estimator folders that are damaged, lie, or would run something; devices that the program does not support."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.bad_input.world import Answer, Case, World

Words = Sequence[str | Path]
Tensors = dict[str, torch.Tensor]

SPEC = {
    "alias": "mine", "hub_id": None, "revision": None, "kind": "relative", "size_multiple": 14, "recommended_size": 56,
    "licence": "mine", "max_depth_m": None, "noncommercial": False,
}  # fmt: skip


class _Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def _proof_of_code(world: World) -> Path:
    return world.root / "code-was-run"


def _nothing_ran(world: World, _: Answer) -> None:
    assert not _proof_of_code(world).exists()


def _label(world: World, *words: str | Path) -> Words:
    return ["--quiet", *world.with_recipe("pseudo-depth", "--split", "test", *words)]


def _weights(world: World) -> Path:
    return world.estimator / "model.safetensors"


def _config(of_backbone: dict[str, Any] | None = None, **changes: Any) -> Callable[[World], Words]:
    """Change ``config.json`` and the ``backbone_config`` in it."""

    def prepare(world: World) -> Words:
        def change(config: dict[str, Any]) -> None:
            config["backbone_config"].update(of_backbone or {})
            config.update(changes)

        world.edit_json(world.estimator / "config.json", change)
        return _label(world)

    return prepare


def _preprocessor(**changes: Any) -> Callable[[World], Words]:
    def prepare(world: World) -> Words:
        world.edit_json(world.estimator / "preprocessor_config.json", lambda config: config.update(changes))
        return _label(world)

    return prepare


def _spec(**changes: Any) -> Callable[[World], Words]:
    def prepare(world: World) -> Words:
        (world.estimator / "estimator.json").write_text(json.dumps(SPEC | changes))
        return _label(world)

    return prepare


def _content(name: str, content: bytes) -> Callable[[World], Words]:
    def prepare(world: World) -> Words:
        (world.estimator / name).write_bytes(content)
        return _label(world)

    return prepare


def _tensors(change: Callable[[Tensors], object]) -> Callable[[World], Words]:
    def prepare(world: World) -> Words:
        tensors = load_file(_weights(world))
        change(tensors)
        save_file(tensors, _weights(world), {"format": "pt"})
        return _label(world)

    return prepare


def _truncated(world: World) -> Words:
    world.truncate(_weights(world), 0.9)
    return _label(world)


def _header(entries: dict[str, Any], data: bytes = b"") -> Callable[[World], Words]:
    header = json.dumps(entries).encode()
    return _content("model.safetensors", struct.pack("<Q", len(header)) + header + data)


def _shards(rename: Callable[[World, str], str] = lambda _, name: name, **index: Any) -> Callable[[World], Words]:
    """Split the weights into two shards; ``rename`` decides what the index calls the second."""

    def prepare(world: World) -> Words:
        tensors = load_file(_weights(world))
        _weights(world).unlink()
        names = sorted(tensors)
        first, second = "model-1.safetensors", rename(world, "model-2.safetensors")
        places = {name: first if number < 9 else second for number, name in enumerate(names)}
        for shard in (first, second):
            part = {name: tensors[name] for name in names if places[name] == shard}
            if shard.endswith(".safetensors"):
                save_file(part, world.estimator / shard, {"format": "pt"})
            else:
                torch.save(part, world.estimator / shard)
        index_file = world.estimator / "model.safetensors.index.json"
        index_file.write_text(json.dumps({"metadata": {}, "weight_map": places} | index))
        return _label(world)

    return prepare


def _linked_out(world: World) -> Words:
    _weights(world).rename(world.user / "elsewhere.safetensors")
    _weights(world).symlink_to(world.user / "elsewhere.safetensors")
    return _label(world)


def _lacks_a_shard(world: World) -> Words:
    words = _shards()(world)
    (world.estimator / "model-2.safetensors").unlink()
    return words


def _pickle_named_safetensors(world: World) -> Words:
    _weights(world).write_bytes(pickle.dumps(_Touch(_proof_of_code(world))))
    return _label(world)


def _pickle_only(world: World) -> Words:
    torch.save(load_file(_weights(world)), world.estimator / "pytorch_model.bin")
    _weights(world).unlink()
    return _label(world)


def _brings_code(world: World) -> Words:
    (world.estimator / "evil.py").write_text(f"open({str(_proof_of_code(world))!r}, 'w')\n")
    return _config(auto_map={"AutoConfig": "evil.Config", "AutoModelForDepthEstimation": "evil.Model"})(world)


def _nan(tensors: Tensors) -> None:
    tensors["head.conv1.weight"].view(-1)[5] = torch.nan


def _no_preprocessor(world: World) -> Words:
    (world.estimator / "preprocessor_config.json").unlink()
    return _label(world)


def _no_weights(world: World) -> Words:
    _weights(world).unlink()
    return _label(world)


def _to_int8(tensors: Tensors) -> None:
    tensors.update({name: each.to(torch.int8) for name, each in tensors.items()})


def _was_labelled(world: World, answer: Answer) -> None:
    assert answer.json["labelled"] == answer.json["images"] == 2


def _fetch_beside_own_files(world: World) -> Words:
    """A folder of somebody's with pickled weights and other pickles, converted in place."""
    _pickle_only(world)
    (world.estimator / "optimizer.pt").write_bytes(b"mine")
    (world.estimator / "training_args.bin").write_bytes(pickle.dumps(_Touch(_proof_of_code(world))))
    return ["fetch", world.estimator, "--out", world.root]


def _converted_beside(world: World, answer: Answer) -> None:
    _nothing_ran(world, answer)
    assert _weights(world).is_file() and (world.estimator / "optimizer.pt").read_bytes() == b"mine"


def _fetch_onto(name: str) -> Callable[[World], Words]:
    def prepare(world: World) -> Words:
        folder = world.user / "out" / "estimator"
        folder.mkdir(parents=True)
        (folder / name).write_text("{}")
        return ["fetch", world.estimator, "--out", folder.parent]

    return prepare


def _fetch_code_in_pickle(world: World) -> Words:
    _weights(world).unlink()
    torch.save({"a": torch.zeros(1), "b": _Touch(_proof_of_code(world))}, world.estimator / "pytorch_model.bin")
    return ["fetch", world.estimator, "--out", world.root / "fetched"]


def _nothing_fetched(world: World, answer: Answer) -> None:
    _nothing_ran(world, answer)
    assert not list((world.root / "fetched").glob("*"))


def _altered_after_fetch(world: World) -> Words:
    (world.estimator / "estimator.json").write_text(json.dumps(SPEC | {"weights_sha256": "0" * 64}))
    return _label(world)


def _encoder_file(content: bytes) -> Callable[[World], Words]:
    def prepare(world: World) -> Words:
        file = world.root / "encoder.safetensors"
        file.write_bytes(content)
        return world.with_recipe("run", "--schedule", "seg-only", "--set", f"network.encoder_weights={file}")

    return prepare


def _encoder_of(change: Callable[[Tensors], object]) -> Callable[[World], Words]:
    def prepare(world: World) -> Words:
        from segmentation_models_pytorch.encoders import get_encoder

        tensors = get_encoder("tu-test_resnet", weights=None).state_dict()
        change(tensors)
        save_file(tensors, world.root / "encoder.safetensors")
        return world.with_recipe(
            "run", "--schedule", "seg-only", "--set", f"network.encoder_weights={world.root / 'encoder.safetensors'}"
        )

    return prepare


def _fetch_encoder_onto(world: World) -> Words:
    (world.user / "tu-test_resnet.safetensors").write_bytes(b"mine")
    return ["fetch", "encoder:tu-test_resnet", "--out", world.user]


def _nan_encoder(tensors: Tensors) -> None:
    next(each for each in tensors.values() if each.ndim == 4).fill_(torch.nan)


def _fetch_from_below(world: World) -> Words:
    (world.estimator / "below").mkdir()
    return ["fetch", world.estimator / "below" / ".."]


def _teach_nothing(world: World) -> Words:
    folder = world.data / "depth" / "train"
    folder.mkdir(parents=True)
    for image in world.image("train").parent.iterdir():
        np.save(folder / f"{image.stem}.npy", np.full((64, 64), np.nan, np.float32))
    kind = "data.options.depth_kind=relative"
    return world.with_recipe("teach", "--init", "nano", "--steps", "1", "--out", world.root / "taught", "--set", kind)


def _teach(*words: str) -> Callable[[World], Words]:
    few = "data.options={counts = {train = 1, val = 1, test = 1}}"
    return lambda world: [
        "teach",
        "--init",
        "nano",
        "--steps",
        "1",
        "--out",
        world.root / "taught",
        "--set",
        few,
        *words,
    ]


def _device(name: str, *words: str) -> Case:
    command = words or ("plan",)
    return Case(
        f"`{command[0]} --device {name}`",
        lambda world: world.with_recipe(command[0], *command[1:], "--device", name),
        (f"device '{name}' is not", "auto", "cpu"),
    )


def _named(name: str) -> Case:
    return Case(
        f"an estimator called {name!r}",
        lambda world: world.with_recipe("pseudo-depth", "--estimator", name),
        ("unknown estimator", "bundled"),
    )


CASES = [
    # code and pickles
    Case("config.json with auto_map and code beside it", _brings_code, ("config.json", "auto_map"), check=_nothing_ran),
    Case("preprocessor_config.json with auto_map", _preprocessor(auto_map={"A": "evil.P"}), ("auto_map",)),
    Case(
        "a shard index that names a pickle",
        _shards(lambda *_: "pytorch_model.bin"),
        ("index.json", "pytorch_model.bin", ".safetensors"),
    ),
    Case(
        "a shard index that names a file outside",
        _shards(lambda *_: "../user.safetensors"),
        ("'../user.safetensors'", "beside it"),
        changes=("user.safetensors",),
    ),
    Case(
        "a shard index that names an absolute path",
        _shards(lambda world, name: str(world.root / name)),
        ("index.json", "beside it"),
    ),
    Case("a shard index that is no map", _shards(weight_map=[1, 2]), ("index.json is damaged (weight_map",)),
    Case("a shard index without names", _shards(weight_map={}), ("index.json names no weights",)),
    Case("a shard that is missing", _lacks_a_shard, ("lacks the weights 'model-2.safetensors'",)),
    Case("two shards and their index", _shards(), ("labelled",), exit=0, check=_was_labelled),
    Case(
        "a shard index that puts tensors elsewhere",
        _shards(weight_map={"a": "model-1.safetensors"}),
        ("hold different tensors",),
    ),
    Case(
        "an estimator's folder without config.json",
        lambda world: [*_label(world), "--estimator", world.user],
        ("is no estimator: config.json is missing",),
    ),
    Case("an estimator's folder without weights", _no_weights, ("no weights (model.safetensors is missing)",)),
    Case("weights that are a link out of the folder", _linked_out, ("is a link to", "a copy")),
    Case(
        "a pickle named model.safetensors",
        _pickle_named_safetensors,
        ("model.safetensors", "fetch"),
        check=_nothing_ran,
    ),
    Case("pickled weights only", _pickle_only, ("pickled weights only (pytorch_model.bin)", "pipeline fetch")),
    Case(
        "config.json that names a pickle as its weights",
        _config(transformers_weights="x.bin"),
        ("transformers_weights", "model.safetensors"),
    ),
    # damaged weights
    Case("truncated weights", _truncated, ("model.safetensors", "no intact safetensors")),
    Case(
        "a safetensors header that claims 4 EB",
        _content("model.safetensors", struct.pack("<Q", 2**62) + b"{}"),
        ("no intact safetensors",),
    ),
    Case(
        "a safetensors file of overlapping tensors",
        _header({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, b"\0" * 8),
        ("no intact safetensors",),
    ),
    Case(
        "weights without one tensor",
        _tensors(lambda tensors: tensors.pop("head.conv1.weight")),
        ("lack 1 tensors", "head.conv1.weight"),
    ),
    Case(
        "weights with a tensor that belongs nowhere",
        _tensors(lambda tensors: tensors.update(other=torch.zeros(2))),
        ("labelled",),
        exit=0,
        check=_was_labelled,
    ),
    Case(
        "weights of another shape",
        _tensors(lambda tensors: tensors.update({"head.conv1.weight": torch.zeros(3)})),
        ("head.conv1.weight has shape (3,)",),
    ),
    Case("weights of int8", _tensors(_to_int8), ("int8", "float16")),
    Case("weights with one NaN", _tensors(_nan), ("head.conv1.weight", "not finite")),
    Case(
        "weights that are all zero",
        _tensors(lambda tensors: [each.zero_() for each in tensors.values()]),
        ("everywhere", "damaged or untrained"),
    ),
    Case(
        "weights that give a constant",
        _tensors(lambda tensors: tensors["head.conv3.weight"].zero_()),
        ("depth 0.5 everywhere", "noise"),
    ),
    Case(
        "weights that give enormous depth",
        _tensors(lambda tensors: tensors["head.conv3.bias"].fill_(1e9)),
        ("1e+09", "first images"),
    ),
    Case("weights altered after they were fetched", _altered_after_fetch, ("SHA-256", "estimator.json")),
    # nonsense in JSON
    Case(
        "config.json nested 100,000 deep", _content("config.json", b"[" * 100_000), ("config.json is damaged", "deeply")
    ),
    Case("config.json that is not UTF-8", _content("config.json", b"\xff\xfe{}"), ("config.json is damaged",)),
    Case("config.json of BERT", _config(model_type="bert"), ("'bert'", "depth_anything")),
    Case("config.json without model_type", _config(model_type=None), ("model_type is None",)),
    Case(
        "config.json with a negative size",
        _config(of_backbone={"hidden_size": -1}),
        ("config.json describes no network",),
    ),
    Case(
        "config.json with a size that is text",
        _config(head_hidden_size="wide"),
        ("config.json describes no network", "head_hidden_size"),
    ),
    Case(
        "config.json of terabytes",
        _config(fusion_hidden_size=1_000_000),
        ("config.json describes a network of", "the weights hold"),
    ),
    Case(
        "config.json with 10^12 layers",
        _config(of_backbone={"num_hidden_layers": 10**12}),
        ("num_hidden_layers 1000000000000",),
    ),
    Case(
        "config.json that leaves the biases of attention out",
        _config(of_backbone={"qkv_bias": False}),
        ("the network has no place for 12 tensors", ".bias first"),
    ),
    Case(
        "config.json with no head of attention",
        _config(of_backbone={"num_attention_heads": -1}),
        ("fails on images of 56x56 px",),
    ),
    Case(
        "config.json of a downloaded backbone",
        _config(use_pretrained_backbone=True, backbone_config=None, backbone="a/b"),
        ("backbone that would have to be downloaded ('a/b')",),
    ),
    Case("config.json of quantised weights", _config(quantization_config={"quant_method": "awq"}), ("quantised",)),
    Case(
        "preprocessor_config.json with a deviation of 0",
        _preprocessor(image_std=[0, 1, 1]),
        ("preprocessor_config.json is damaged (image_std.0",),
    ),
    Case("preprocessor_config.json with two means", _preprocessor(image_mean=[0.5, 0.5]), ("image_mean",)),
    Case("preprocessor_config.json of size 0", _preprocessor(size=0), ("preprocessor_config.json is damaged (size",)),
    Case("preprocessor_config.json with Lanczos resampling", _preprocessor(resample=1), ("resample", "2 or 3")),
    Case("no preprocessor_config.json", _no_preprocessor, ("preprocessor_config.json", "copy the whole folder")),
    Case(
        "estimator.json without keys",
        _content("estimator.json", b"{}"),
        ("estimator.json is damaged (alias is missing",),
    ),
    Case(
        "estimator.json with a size multiple that cuts", _spec(size_multiple=7), ("size_multiple 7", "multiples of 14")
    ),
    Case(
        "estimator.json with an absurd size",
        _spec(recommended_size=10**9),
        ("estimator.json is damaged (recommended_size",),
    ),
    Case("estimator.json of a newer version", _spec(format=99), ("estimator.json has format 99", "newer")),
    Case(
        "estimator.json that calls itself the dataset's depth",
        _spec(alias="dataset"),
        ("estimator.json", "'dataset' is no name"),
    ),
    # names
    *map(_named, ("../nowhere", "org/name@main@main", "org/a b", "org/name.git", "~nobody-here/x")),
    # fetching
    Case(
        "`fetch FOLDER` into its own parent, beside own pickles",
        _fetch_beside_own_files,
        ("model.safetensors",),
        exit=0,
        check=_converted_beside,
        changes=("estimator/model.safetensors", "estimator/estimator.json"),
    ),
    Case(
        "`fetch` of two folders of one name",
        lambda world: ["fetch", world.estimator, shutil.copytree(world.estimator, world.root / "other" / "estimator")],
        ("both be copied to 'estimator'", "--out"),
        check=_nothing_fetched,
    ),
    Case(
        "`fetch` of a folder spelled with ..",
        _fetch_from_below,
        ("/estimators/estimator/model.safetensors",),
        exit=0,
    ),
    Case(
        "`fetch` of a pickle with code in it",
        _fetch_code_in_pickle,
        ("pytorch_model.bin", "not opened"),
        check=_nothing_fetched,
    ),
    Case("`fetch` onto a folder of the user's", _fetch_onto("config.json"), ("exists already", "--out")),
    Case("`fetch` onto a damaged estimator", _fetch_onto("estimator.json"), ("estimator.json is damaged",)),
    Case(
        "`fetch encoder:NAME` onto a file of the user's",
        _fetch_encoder_onto,
        ("tu-test_resnet.safetensors exists already", "--out"),
    ),
    # encoder weights
    Case("encoder weights that are a pickle", _encoder_file(pickle.dumps(1)), ("encoder.safetensors", "safetensors")),
    Case("encoder weights with NaN", _encoder_of(_nan_encoder), ("encoder.safetensors", "not finite")),
    Case("encoder weights of int8", _encoder_of(_to_int8), ("encoder.safetensors", "int8")),
    # teaching
    Case("`teach` by depth that is nowhere known", _teach_nothing, ("teaches nothing", "folder train", "datasets")),
    *(
        Case(f"`teach {' '.join(words)}`", _teach(*words), (said,))
        for *words, said in (
            ("--input-size", "1", "input size 1 is too small for 'nano'; take a multiple of 14"),
            ("--input-size", "1000000", "input_size from 1 to 8192"),
            ("--jitter", "nan", "jitter from 0 to 1"),
            ("--lr", "inf", "lr from"),
            ("--seed", "-1", "seed from 0"),
        )
    ),
    # devices
    *map(_device, ("meta", "xla", "hpu", "mps", "cpu:3", "nonsense", "")),
    _device("cuda:99", "pseudo-depth"),
]
