"""How networks learn: optimisation, losses, schedule. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import model_validator

from data_cache.errors import UserError, nearest, unknown_name
from data_cache.escaping import quoted
from data_cache.settings import LARGEST_BATCH, Decides, Section, setting
from stages.networks.parts import NAMED_PARTS
from stages.networks.precision import Precision
from stages.training.encoder_policy import EncoderPolicy
from stages.training.schedule import CopyWeights, Images, Mix, Part, Phase, Schedule, Step
from stages.training.schedules import SCHEDULES, split_name

LONGEST = 1_000_000_000
"""Epochs or steps of a phase."""
LARGEST_WEIGHT = 1000.0
"""Of a loss, a rate, a decay."""
SegLoss = Literal["focal", "cross-entropy", "ohem", "dice", "lovasz", "tversky"]
REGION_LOSSES = ("dice", "lovasz", "tversky")
"""Those of a whole batch, which is no sum over its parts; classes have no weights in them."""
DepthLoss = Literal["mse", "l1", "ssi"]
LossWeightingMode = Literal["fixed", "uncertainty", "dwa"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
TransferMode = Literal["feature-extractor", "low-level-extractor", "fine-tune", "scratch"]


class TrainingSettings(Section):
    """How gradients become weights, and for how long. Every phase starts a fresh optimiser with these."""

    epochs: int = setting(20, Decides.OPTIMISATION, resolved=True, ge=1, le=LONGEST, flag="--epochs")
    """Passes over the training split per phase (with budget "total": for the whole schedule)."""
    iterations: int | None = setting(None, Decides.OPTIMISATION, resolved=True, ge=1, le=LONGEST, flag="--iterations")
    """Steps per phase instead of epochs."""
    budget: Literal["phase", "total"] = setting("phase", Decides.OPTIMISATION, resolved=True, flag="--budget")
    """Whether each phase gets the epochs, as in the paper, or all phases of a schedule share them."""
    batch_size: int = setting(8, Decides.DATA, Decides.OPTIMISATION, ge=1, le=LARGEST_BATCH, flag="--batch-size")
    """Images per step; labelled ones where batches also hold images without masks, which come on top."""
    accumulate: int = setting(
        1, Decides.DATA, Decides.OPTIMISATION, late=True, ge=1, le=LARGEST_BATCH, flag="--accumulate"
    )
    """Batches whose gradients make one step: 2 of 4 images are a batch of 8, but for batch norm, which sees 4 at a
    time."""
    unlabelled_share: float = setting(0.5, Decides.POOL, ge=0, le=0.9)
    """Share of images without masks in batches of phases that learn segmentation and read all images."""
    optimizer: Literal["adam", "adamw", "sgd"] = setting("adam", Decides.OPTIMISATION)
    """Adam couples weight decay into the gradient (L2), as torch's does; AdamW does not."""
    lr: float = setting(
        1e-4, Decides.OPTIMISATION, resolved=True, gt=0, le=LARGEST_WEIGHT, flag="--lr"
    )  # pseudo-depth paper, table 1
    """Initial learning rate; a phase's own rate overrides it."""
    momentum: float = setting(0.9, Decides.OPTIMISATION, ge=0, lt=1)
    """Of SGD alone."""
    weight_decay: float = setting(0.0, Decides.OPTIMISATION, ge=0, le=LARGEST_WEIGHT)
    """Weight decay of the optimiser."""
    decay_norm_and_bias: bool = setting(True, Decides.OPTIMISATION)
    """Whether weight decay also touches tensors with fewer than two axes, as in torch; BiSeNet's recipe says no."""
    lr_schedule: Literal["constant", "poly", "cosine"] = setting("constant", Decides.OPTIMISATION)
    """Course of the learning rate over a phase."""
    poly_power: float = setting(0.9, Decides.OPTIMISATION, gt=0, le=100)  # the feature-fusion paper
    """Exponent of the poly schedule."""
    warmup_steps: int = setting(0, Decides.OPTIMISATION, ge=0, le=LONGEST)
    """Steps of linear rise before the schedule; its time axis is the rest."""
    lr_factors: dict[str, float] = setting({}, Decides.OPTIMISATION)
    """Part or branch name to factor on the learning rate; of two that fit a part, the narrower one holds."""
    encoder_policy: EncoderPolicy = setting("train", Decides.OPTIMISATION, resolved=True, flag="--encoder-policy")
    """What the encoder does in phases with one decoder; the always- ones hold in every phase."""
    transfer: TransferMode | None = setting(
        None, Decides.FIRST_WEIGHTS, Decides.OPTIMISATION, resolved=True, flag="--transfer"
    )
    """How much of the encoder's pretraining is kept (see `pipeline advise`); sets encoder_policy and options."""
    clip_norm: float | None = setting(None, Decides.OPTIMISATION, ge=1e-9, le=1e9)
    """Largest allowed gradient norm over everything trained; not clipped where it is not given."""
    ema_decay: float | None = setting(None, Decides.OPTIMISATION, gt=0, lt=1)
    """Decay of the moving average of the weights; with it, a phase ends with the average."""
    precision: Precision = setting("auto", Decides.NUMERICS, flag="--precision")
    """Type of the forward pass; auto takes bfloat16 where the hardware multiplies it, float16 (with the loss scaled) on
    GPUs that have only that. Losses are always float32."""
    tf32: bool = setting(False, Decides.NUMERICS)
    """Whether GPUs may multiply float32 as TF32, with ten bits after the point: faster, and no longer float32."""
    deterministic: bool = setting(False, Decides.NUMERICS, flag="--deterministic")
    """Let repeated trainings on one GPU end with equal bits, at the cost of speed; on a CPU they do so anyway."""
    compile: bool = setting(False, Decides.NUMERICS, flag="--compile")
    """Compile the network with torch.compile."""
    compile_mode: CompileMode = setting("default", Decides.NUMERICS)
    """How torch.compile goes about it; "reduce-overhead" records CUDA graphs, "max-autotune" searches for kernels."""
    val_every: int | None = setting(None, Decides.SELECTION, resolved=True, ge=0, le=LONGEST, flag="--val-every")
    """Steps between scorings (mIoU) of phases that learn segmentation; where it is not given, never, or once an epoch
    if weights are chosen by it. It is of the reported split, unless keep or patience choose."""
    keep: Literal["last", "best"] = setting("last", Decides.SELECTION, flag="--keep")
    """Weights a phase ends with: its last ones, or those that scored best on the selection split: val where another
    split is reported, else a tenth of the training images, which are then not trained on."""
    patience: int | None = setting(None, Decides.SELECTION, ge=1, le=LONGEST, flag="--patience")
    """End a phase after so many scorings in a row without a better one, on the same split."""
    checkpoint_minutes: float = setting(5.0, Decides.NOTHING, gt=0, le=10_000)
    """Minutes between checkpoints; an interruption by signal writes one at once."""
    log_every: int = setting(10, Decides.NOTHING, ge=1, le=LONGEST)
    """Steps between lines of metrics.jsonl."""
    log_gradients_every: int = setting(0, Decides.NOTHING, ge=0, le=LONGEST)
    """Steps between looks at what each of two losses asks of the encoder, by norms and cosine; 0 never looks."""
    tensorboard: bool = setting(False, Decides.NOTHING)
    """Also write TensorBoard files (needs the extra of that name)."""
    wandb: bool = setting(False, Decides.NOTHING)
    """Also keep a run of Weights & Biases, offline unless WANDB_MODE says otherwise (needs the extra of that name)."""
    mlflow: bool = setting(False, Decides.NOTHING)
    """Also keep a run of MLflow, in files unless MLFLOW_TRACKING_URI says otherwise (needs the extra of that name)."""
    removed: ClassVar[Mapping[str, str]] = {"checkpoint_every": "checkpoints are written by time: checkpoint_minutes"}

    @property
    def images_per_step(self) -> int:
        """Labelled images that make one step of the optimiser."""
        return self.batch_size * self.accumulate

    @property
    def chooses(self) -> bool:
        """Whether scores while training decide about weights."""
        return self.keep == "best" or self.patience is not None

    def describe_choice(self) -> str:
        """Return how scores while training decide about weights, for example "the best, patience 3"."""
        return f"the {self.keep}{'' if self.patience is None else f', patience {self.patience}'}"

    @model_validator(mode="after")
    def _check_choice(self) -> TrainingSettings:
        if self.chooses and self.val_every == 0:
            raise ValueError(
                'keep = "best" and patience choose by scores, and val_every = 0 makes none; give another number, or '
                "leave it out for one scoring an epoch"
            )
        return self

    @model_validator(mode="after")
    def _check_lr_factors(self) -> TrainingSettings:
        for name, factor in self.lr_factors.items():
            if name not in NAMED_PARTS:
                known = ", ".join(NAMED_PARTS)
                raise ValueError(f"lr_factors has no part {name!r}{nearest(name, NAMED_PARTS)}; known: {known}")
            if not 0 < factor <= LARGEST_WEIGHT:
                raise ValueError(
                    f"lr factor {factor} of {name} must be positive; to freeze, do not train the part"
                    if factor <= 0
                    else f"lr factor {factor} of {name} must be at most {LARGEST_WEIGHT:g}"
                )
        return self


class LossSettings(Section):
    """Which losses a training uses, and how two of them are weighted."""

    seg: SegLoss | dict[SegLoss, float] = setting("focal", Decides.SEG_LOSS)
    """Segmentation loss, or several with their weights: { focal = 1, dice = 0.5 }."""
    tversky_beta: float = setting(0.7, Decides.SEG_LOSS, late=True, ge=0, le=1)  # Salehi et al. 2017
    """What a missed pixel costs in the Tversky loss; a wrongly found one costs the rest to 1."""
    gamma: float = setting(2.0, Decides.SEG_LOSS, ge=0, le=100)
    """Focusing strength of the focal loss."""
    alpha: float = setting(1.0, Decides.SEG_LOSS, gt=0, le=LARGEST_WEIGHT)
    """Factor on the focal loss; with Adam it matters only beside another loss."""
    class_weights: tuple[float, ...] | Literal["median-frequency"] | None = setting(None, Decides.SEG_LOSS)
    """One weight per class, or "median-frequency": computed from the training split before anything is trained."""
    depth: DepthLoss = setting("mse", Decides.DEPTH_LOSS)
    """Depth loss."""
    joint_seg: float = setting(0.85, Decides.JOINT_LOSS, resolved=True, ge=0, le=LARGEST_WEIGHT)
    """Weight of the segmentation loss in joint phases of named schedules."""
    joint_depth: float = setting(0.15, Decides.JOINT_LOSS, resolved=True, ge=0, le=LARGEST_WEIGHT)
    """Weight of the depth loss in joint phases of named schedules."""
    weighting: LossWeightingMode = setting("fixed", Decides.JOINT_LOSS)
    """How phases with both losses weight them: as the phase says, or adapting from there (see ``weighting.py``)."""
    balance: Literal["weights", "share"] = setting("weights", Decides.JOINT_LOSS)
    """What the weights of phases with both losses are: factors, or the shares of the sum that the two losses begin
    with."""
    dwa_window: int = setting(100, Decides.JOINT_LOSS, ge=1, le=LONGEST)
    """Steps whose mean losses `dwa` compares; the paper compares epochs."""
    renamed: ClassVar[Mapping[str, str]] = {"joint_focal": "joint_seg", "joint_mse": "joint_depth"}

    @model_validator(mode="after")
    def _check_class_weights(self) -> LossSettings:
        weights = self.class_weights
        if isinstance(weights, tuple) and not (all(0 <= each <= 1e6 for each in weights) and any(weights)):
            raise ValueError(f"class_weights {quoted(list(weights))} must be from 0 to 1e6, and not all 0")
        if weights is not None and all(name in REGION_LOSSES for name in self.seg_terms):
            raise ValueError(
                f"class_weights weigh pixels, and seg = {' + '.join(self.seg_terms)} has no term that is a mean over "
                "them; leave them out, or combine with one that is: seg = { cross-entropy = 1, dice = 1 }"
            )
        return self

    @model_validator(mode="after")
    def _check_seg_terms(self) -> LossSettings:
        if not self.seg_terms or not all(0 < weight <= LARGEST_WEIGHT for weight in self.seg_terms.values()):
            raise ValueError(
                f"seg must name at least one loss, with a weight above 0 and at most {LARGEST_WEIGHT:g}, for example "
                "{ focal = 1, dice = 0.5 }"
            )
        return self

    @property
    def seg_terms(self) -> dict[SegLoss, float]:
        """Segmentation losses with their weights."""
        return {self.seg: 1.0} if isinstance(self.seg, str) else self.seg

    def describe(self, phase: Phase) -> str:
        """Return a phase's losses as people write them, for example "0.85 focal + 0.15 mse"."""
        seg = [(phase.seg * weight, name) for name, weight in self.seg_terms.items()]
        terms = (*seg, (phase.depth, self.depth))
        described = " + ".join(f"{weight:g} {name}" for weight, name in terms if weight)
        again = " + ".join(f"{weight:g} {name}" for weight, name in seg)
        described += f" + {again} of images mixed by {phase.mix}" if phase.mix != "none" else ""
        if not (phase.needs_seg and phase.needs_depth):
            return described
        how = ["shares at the start"] if self.balance == "share" else []
        how += [self.weighting] if self.weighting != "fixed" else []
        return f"{described} ({', '.join(how)})" if how else described

    def describe_step(self, step: Step) -> str:
        """Return a step of a schedule with its losses, for example "joint (0.85 focal + 0.15 mse)"."""
        if isinstance(step, CopyWeights):
            return str(step)
        budget = f", ×{step.budget_factor} epochs" if step.budget_factor > 1 else ""
        return f"{step.name} ({self.describe(step)}{budget})"


class MixSettings(Section):
    """How phases with ``mix`` learn segmentation from images without masks: two are laid over each other, and labelled
    by the moving average of the network."""

    decay: float = setting(0.99, Decides.MIX, gt=0, lt=1)  # DepthMix, Hoyer et al. 2021
    """Of the moving average that labels them; after t steps at most 1 - 1/(t + 1)."""
    confidence: float = setting(0.968, Decides.MIX, ge=0, le=1)  # DepthMix, Hoyer et al. 2021
    """Probability from which a label is trusted; the loss is weighed by the share of such pixels."""
    margin: float = setting(0.03, Decides.MIX, ge=0, le=1)  # DepthMix, Hoyer et al. 2021
    """Inverse depth, in [0, 1], by which the image on top may be farther than what it covers (mix = "depth")."""
    jitter: float = setting(0.2, Decides.MIX, ge=0, le=1)
    """Strength of brightness, contrast and saturation jitter on mixed images."""
    blur: float = setting(0.5, Decides.MIX, ge=0, le=1)
    """Probability of a Gaussian blur of a mixed image."""


class StepSettings(Section):
    """One step of an own schedule: either a phase or a copy."""

    phase: str | None = setting(None, Decides.NOTHING, min_length=1, max_length=60)
    """Name of a phase, for people."""
    trains: tuple[str, ...] = setting((), Decides.SCHEDULE, resolved=True)
    """Part or branch names: encoder, seg-branch, depth-branch, everything, seg-decoder, …"""
    seg: float = setting(0.0, Decides.SCHEDULE, resolved=True, ge=0, le=LARGEST_WEIGHT)
    """Weight of the segmentation loss."""
    depth: float = setting(0.0, Decides.SCHEDULE, resolved=True, ge=0, le=LARGEST_WEIGHT)
    """Weight of the depth loss."""
    epochs: int | None = setting(None, Decides.SCHEDULE, resolved=True, ge=1, le=LONGEST)
    """Passes over the training split; the recipe's where it is not given."""
    lr: float | None = setting(None, Decides.SCHEDULE, resolved=True, gt=0, le=LARGEST_WEIGHT)
    """Learning rate; the recipe's where it is not given."""
    images: Images | None = setting(None, Decides.SCHEDULE, resolved=True)
    """Which images are read; where it is not given, phases with a depth loss read all and others the labelled ones."""
    mix: Mix = setting("none", Decides.SCHEDULE, resolved=True)
    """How images without masks are laid over each other to learn segmentation from them, too."""
    copy_from: str | None = setting(None, Decides.SCHEDULE, resolved=True)
    """Decoder whose weights a copy takes."""
    copy_to: str | None = setting(None, Decides.SCHEDULE, resolved=True)
    """Decoder that a copy overwrites."""
    renamed: ClassVar[Mapping[str, str]] = {"focal": "seg", "mse": "depth"}

    def to_step(self) -> Phase | CopyWeights:
        """Return the step; ValueError when it is neither a phase nor a copy, or nonsense."""
        if self.copy_from and self.copy_to and not self.phase:
            return CopyWeights(Part.parse(self.copy_from), Part.parse(self.copy_to))
        if not self.phase or self.copy_from or self.copy_to:
            raise ValueError("a step needs either `phase` (with `trains` and losses) or `copy_from` and `copy_to`")
        trains = Part(0)
        for name in self.trains:
            trains |= Part.parse(name)
        return Phase(self.phase, trains, self.seg, self.depth, self.epochs, self.lr, images=self.images, mix=self.mix)


class ScheduleSettings(Section):
    """Which steps, in which order."""

    name: str = setting("depth-first", Decides.SCHEDULE, resolved=True, flag="--schedule")
    """A row of `pipeline schedules`, for example depth-first or depth-first+copy; on the command line also a TOML file
    with steps of one's own; beside own steps what they are called."""
    copy_weights: bool | None = setting(None, Decides.SCHEDULE, resolved=True, flag="--copy-weights")
    """Copy the first trained decoder onto the other after the first phase; where it is not given, the name says it."""
    mix: Mix = setting("none", Decides.SCHEDULE, resolved=True)
    """Mixed images in the phases of a named schedule that have a segmentation loss."""
    steps: tuple[StepSettings, ...] = setting((), Decides.SCHEDULE, resolved=True)
    """Own steps; empty for a named schedule."""

    @model_validator(mode="after")
    def _check_name(self) -> ScheduleSettings:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,59}", split_name(self.name)[0], re.ASCII):
            raise ValueError(
                f"name {quoted(self.name)} must begin with a letter or digit and hold only those of ASCII and . _ -, "
                "at most 60: it becomes the name of a folder"
            )
        return self

    @property
    def own(self) -> bool:
        """Whether the recipe brings the steps itself."""
        return bool(self.steps)

    def build(self, losses: LossSettings) -> Schedule:
        """Return the schedule, a named one with the joint weights of ``losses``.

        Raises:
            UserError: unknown name, a name that belongs to another schedule, nonsensical steps, or a copy that has
                nothing to copy.
        """
        base, copy = split_name(self.name)
        if self.own and (copy or base in SCHEDULES):
            raise UserError(
                f"schedule.steps are called {self.name!r}, which is the name of a schedule of the table; give them a "
                "schedule.name of their own, and say copy_weights = true for a copy after the first phase"
            )
        if not self.own and base not in SCHEDULES:
            raise unknown_name("schedule", base, SCHEDULES)
        if self.own and self.mix != "none":
            raise UserError(
                "schedule.mix is of named schedules; give the phases among schedule.steps a mix of their own"
            )
        if copy and self.copy_weights is False:
            raise UserError(f"schedule {self.name!r} copies weights, but copy_weights is false; give only one of them")
        try:
            if self.own:
                schedule = Schedule(base, tuple(step.to_step() for step in self.steps))
            else:
                schedule = SCHEDULES[base].with_loss_weights(losses.joint_seg, losses.joint_depth).with_mix(self.mix)
            return schedule.with_copy() if copy or self.copy_weights else schedule
        except ValueError as problem:
            raise UserError(str(problem)) from problem
