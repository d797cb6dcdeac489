"""A schedule is data: an immutable tuple of steps, each a phase or a copy of weights. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from stages.networks.parts import DEPTH_BRANCH, ENCODER, EVERYTHING, SEG_BRANCH, Part

Images = Literal["labelled", "all"]
Mix = Literal["none", "depth", "class", "cut"]
COPY_SUFFIX = "+copy"
"""Behind the name of a schedule whose first decoder is copied onto the other."""


@dataclass(frozen=True)
class Phase:
    """A stretch of optimisation that trains certain parts with certain loss weights.

    Args:
        name: shown in logs and tables; unique within its schedule.
        trains: parts that receive gradient; every other part stays bit-identical, batch-norm statistics included.
        seg: weight of the segmentation loss.
        depth: weight of the depth loss.
        epochs: passes over the training split; None means the recipe's number.
        lr: learning rate; None means the recipe's.
        budget_factor: multiplies the recipe's epochs (for controls with the budget of several phases).
        images: whether it reads labelled images or all; None is labelled ones, unless it has a depth loss or mixes. A
            phase with both losses gets batches of both kinds.
        mix: how images without masks are laid over each other to learn segmentation from them, too.
    """

    name: str
    trains: Part
    seg: float = 0.0
    depth: float = 0.0
    epochs: int | None = None
    lr: float | None = None
    budget_factor: int = 1
    images: Images | None = None
    mix: Mix = "none"

    def __post_init__(self) -> None:
        for weight, value, branch, what in (
            ("seg", self.seg, SEG_BRANCH, "segmentation"),
            ("depth", self.depth, DEPTH_BRANCH, "depth"),
        ):
            if not 0 <= value < float("inf"):
                raise ValueError(f"phase {self.name!r}: {weight} weight {value} must be finite and at least 0")
            if self.trains & branch and value == 0:
                raise ValueError(
                    f"phase {self.name!r} trains the {what} branch but {weight} has weight 0, so it would get no "
                    f"gradient; give {weight} a weight or drop the part"
                )
            if value > 0 and self.trains and not self.trains & (ENCODER | branch):
                raise ValueError(
                    f"phase {self.name!r} has {weight} weight {value}, but that loss reaches no part that is trained; "
                    f"train the encoder or the {what} branch, or drop the weight"
                )
        if not self.trains:
            possible = ", ".join(EVERYTHING.names())
            raise ValueError(f"phase {self.name!r} trains no part; name at least one of {possible}")
        if self.seg == 0 and self.depth == 0:
            raise ValueError(f"phase {self.name!r} has no loss: seg and depth are both 0; give one of them a weight")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"phase {self.name!r}: epochs {self.epochs} must be at least 1")
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise ValueError(f"phase {self.name!r}: lr {self.lr} must be finite and positive")
        if self.budget_factor < 1:
            raise ValueError(f"phase {self.name!r}: budget_factor {self.budget_factor} must be at least 1")
        if self.mix != "none" and (self.seg == 0 or self.images == "labelled"):
            raise ValueError(
                f"phase {self.name!r} has mix {self.mix!r}, which learns segmentation from images without masks: give "
                'it a seg weight, and images = "all"'
            )
        if self.images == "all" and self.depth == 0 and self.mix == "none":
            raise ValueError(
                f'phase {self.name!r} has images = "all", but nothing to learn from images without masks, which would '
                "only pass through batch-norm statistics; give it a depth weight or a mix, or drop images"
            )

    @property
    def needs_seg(self) -> bool:
        """Whether the segmentation branch is run at all."""
        return self.seg > 0

    @property
    def needs_depth(self) -> bool:
        """Whether the depth branch is run, and depth targets are learned, at all."""
        return self.depth > 0

    @property
    def reads_depth(self) -> bool:
        """Whether depth maps are read: to be learned, or to tell which image is nearer."""
        return self.needs_depth or self.mix == "depth"

    @property
    def reads(self) -> Images:
        """Whether images without masks are read beside the labelled ones."""
        return self.images or ("all" if self.needs_depth or self.mix != "none" else "labelled")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class CopyWeights:
    """Copy the state of one decoder, batch-norm buffers included, onto the other; heads are never copied."""

    source: Part
    target: Part

    def __post_init__(self) -> None:
        if {self.source, self.target} != {Part.SEG_DECODER, Part.DEPTH_DECODER}:
            raise ValueError(
                f"cannot copy {'+'.join(self.source.names())} to {'+'.join(self.target.names())}; "
                "a copy goes between seg-decoder and depth-decoder"
            )

    def __str__(self) -> str:
        return f"copy {self.source.names()[0]} -> {self.target.names()[0]}"


Step = Phase | CopyWeights


@dataclass(frozen=True)
class Schedule:
    """A named tuple of steps; read it left to right as time."""

    name: str
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        names = [phase.name for phase in self.phases]
        if not names:
            raise ValueError(f"schedule {self.name!r} has no phase; add at least one")
        if len(set(names)) < len(names):
            raise ValueError(f"schedule {self.name!r} has two phases of one name ({', '.join(names)}); rename one")
        if isinstance(self.steps[-1], CopyWeights):
            raise ValueError(f"schedule {self.name!r} ends with a copy, which nothing uses; drop it or add a phase")
        self._check_copies_have_a_trained_source()
        self._check_copies_are_used()

    def _check_copies_have_a_trained_source(self) -> None:
        trained = Part(0)
        for step in self.steps:
            if isinstance(step, CopyWeights) and not step.source & trained:
                raise ValueError(
                    f"schedule {self.name!r}: {step} has nothing to copy, because no phase before it trains "
                    f"{step.source.names()[0]}; put the copy after such a phase or drop it"
                )
            trained |= step.trains if isinstance(step, Phase) else step.target

    def _check_copies_are_used(self) -> None:
        used = Part(0)
        for step in reversed(self.steps):
            if isinstance(step, CopyWeights) and not step.target & used:
                raise ValueError(
                    f"schedule {self.name!r}: no phase after it uses what {step} wrote; "
                    "put the copy before a phase with that branch's loss or drop it"
                )
            if isinstance(step, Phase):
                used |= (SEG_BRANCH if step.needs_seg else Part(0)) | (DEPTH_BRANCH if step.needs_depth else Part(0))

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases alone, in order."""
        return tuple(step for step in self.steps if isinstance(step, Phase))

    @property
    def needs_depth(self) -> bool:
        """Whether any phase learns depth."""
        return any(phase.needs_depth for phase in self.phases)

    @property
    def reads_depth(self) -> bool:
        """Whether any phase reads depth maps."""
        return any(phase.reads_depth for phase in self.phases)

    def with_copy(self) -> Schedule:
        """Return this schedule, named ``…+copy``, with the first trained decoder copied onto the other.

        Raises:
            ValueError: when the first phase trains both decoders or no phase follows it, so there is nothing to copy.
        """
        first = self.phases[0]
        trained = first.trains & (Part.SEG_DECODER | Part.DEPTH_DECODER)
        other = (Part.SEG_DECODER | Part.DEPTH_DECODER) & ~trained
        later = Part(0)
        for phase in self.phases[1:]:
            later |= phase.trains
        if len(trained.names()) != 1 or not later & other:
            raise ValueError(
                f"schedule {self.name!r} has nothing to copy: a copy needs a first phase that trains one decoder "
                "and a later one that trains the other (seg-first, seg-first-direct, depth-first, depth-first-direct)"
            )
        if any(isinstance(step, CopyWeights) for step in self.steps):
            raise ValueError(f"schedule {self.name!r} copies already; drop --copy-weights")
        return Schedule(f"{self.name}{COPY_SUFFIX}", (self.steps[0], CopyWeights(trained, other), *self.steps[1:]))

    def with_loss_weights(self, seg: float, depth: float) -> Schedule:
        """Return this schedule with other weights in its phases that use both losses."""

        def reweighted(step: Step) -> Step:
            if isinstance(step, Phase) and step.needs_seg and step.needs_depth:
                return replace(step, seg=seg, depth=depth)
            return step

        return replace(self, steps=tuple(reweighted(step) for step in self.steps))

    def with_mix(self, mix: Mix) -> Schedule:
        """Return this schedule with mixed images in its phases with a segmentation loss; their names stay."""
        steps = (replace(s, mix=mix) if isinstance(s, Phase) and s.needs_seg else s for s in self.steps)
        return replace(self, steps=tuple(steps))


__all__ = [
    "COPY_SUFFIX", "DEPTH_BRANCH", "ENCODER", "EVERYTHING", "SEG_BRANCH",
    "CopyWeights", "Images", "Mix", "Part", "Phase", "Schedule", "Step",
]  # fmt: skip
