"""Typed settings of a run, one class a section of a recipe. Defaults are defined here and nowhere else."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from agridistill.data.folder import MAX_CONFLICT_SHARE
from agridistill.data.views import Augmentation
from agridistill.errors import ConfigError
from agridistill.manifest import ResizeRule

# Views of each photo for a teacher by default: twice what was seen to be enough (docs/performance.md).
MAX_VIEWS = 16


def _require(holds: bool, expected: str, got: object) -> None:
    if not holds:
        raise ConfigError(expected, str(got), "correct the recipe or the option")


@dataclass(frozen=True)
class DataSettings:
    """The pixels that a model sees, and how photos are divided.

    Attributes:
        image_size: height and width of the input in pixels.
        resize: "crop" scales the shorter side and cuts the centre, "stretch" ignores the aspect ratio.
        val_fraction: share of each class that chooses the best epoch and fits the temperature.
        test_fraction: share of each class that is only evaluated.
        split_seed: of the leaf-disjoint split. Not the run's seed: runs that are compared share one test split.
        labels: share of each class's training and validation photos that are used; a smaller share is part of a larger
            one. The test split stays whole.
        conflicts: largest share of photos that may have several labels as identical files.
    """

    image_size: int = 224
    resize: ResizeRule = "crop"
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    split_seed: int = 0
    labels: float = 1.0
    conflicts: float = MAX_CONFLICT_SHARE

    def __post_init__(self) -> None:
        _require(16 <= self.image_size <= 4096, "data.image_size from 16 to 4096 px", self.image_size)
        for name in ("val_fraction", "test_fraction"):
            _require(0 < getattr(self, name) < 1, f"data.{name} between 0 and 1", getattr(self, name))
        total = self.val_fraction + self.test_fraction
        _require(total < 1, "data.val_fraction + data.test_fraction below 1", total)
        _require(self.split_seed >= 0, "data.split_seed of at least 0", self.split_seed)
        _require(0 < self.labels <= 1, "data.labels above 0 and up to 1", self.labels)
        _require(0 <= self.conflicts <= 1, "data.conflicts from 0 to 1", self.conflicts)


@dataclass(frozen=True)
class FitSettings:
    """How a network is trained: AdamW, linear warm-up, cosine decay to 0.

    Attributes:
        model: timm's name of the network. The default is MobileNetV3-Large without the parts that int8 engines compute
            slowly: as accurate on our photos, and the fastest on a device (docs/performance.md).
        epochs: passes over the training photos.
        batch_size: photos a step, over all processes: their number changes no result.
        lr: peak learning rate.
        weight_decay: of weight matrices; biases and norms have none.
        warmup: share of all steps in which the learning rate rises.
        label_smoothing: of the cross entropy.
        drop_path: stochastic depth rate; None keeps the network's own (0.1 for Swin).
        head_first: fits the classifier to features of the frozen backbone before everything is trained, for backbones
            that start from weights: a random head would send random gradients into them (Kumar et al. 2022, arXiv
            2202.10054).
        layer_decay: factor of the learning rate from each layer to the one before it; 1 trains all layers alike.
        freeze_norm: keeps the batch-norm statistics of the starting weights: those of few photos are noise.
        balance: shows each class equally often, photos of rare classes several times in an epoch, in different views.
            Unlike class weights, it acts on all terms of an objective.
        clip_grad: largest gradient norm; 0 does not clip.
        patience: epochs without a better validation accuracy before the run stops; 0 never stops early.
        seed: of initial weights, order, views and dropout.
        views: different views of each photo; an epoch shows each photo once. 0 takes one for each epoch, for students
            at most `MAX_VIEWS`, because a teacher computes all of them.
        keep_views: keeps the pixels of each view in the user's cache folder, 150 kB at 224 px, for later epochs and
            other runs of the same photos and augmentation. Changes no result; helps where a run waits for its loaders.
        workers: loader processes; -1 chooses.
        precision: "auto" measures whether bf16 is faster on this processor.
        pretrained: starts from timm's weights on the model hub.
        weights: a safetensors file or a finished run to start from instead.
        int8: continues the training of `weights` with the arithmetic of its int8 artefact: batch norm folded, weights
            and activations rounded (`models.quantised`). Without attention and hints: the artefact lacks those stages.
        devices: processes on this machine, each with its GPU or its share of the processor.
        nodes: machines that run the same command.
    """

    model: str = "mobilenetv3_large_minimal_100"
    epochs: int = 30
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    label_smoothing: float = 0.1
    drop_path: float | None = None
    head_first: bool = False
    layer_decay: float = 1.0
    freeze_norm: bool = False
    balance: bool = False
    clip_grad: float = 1.0
    patience: int = 0
    seed: int = 0
    views: int = 0
    keep_views: bool = False
    workers: int = -1
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    pretrained: bool = True
    weights: str | None = None
    int8: bool = False
    devices: int = 1
    nodes: int = 1

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "epochs of at least 1", self.epochs)
        # Batch norm needs two photos.
        _require(self.batch_size >= 2, "batch_size of at least 2", self.batch_size)
        _require(0 < self.lr < math.inf, "a finite lr above 0", self.lr)
        for name in ("weight_decay", "clip_grad"):
            _require(0 <= getattr(self, name) < math.inf, f"a finite {name} of at least 0", getattr(self, name))
        for name in ("warmup", "label_smoothing", "drop_path"):
            value = getattr(self, name)
            _require(value is None or 0 <= value < 1, f"{name} from 0 to below 1", value)
        _require(0 < self.layer_decay <= 1, "layer_decay above 0 and at most 1", self.layer_decay)
        _require(self.patience >= 0, "patience of at least 0", self.patience)
        _require(0 <= self.seed < 2**32, "seed from 0 to 4294967295", self.seed)
        _require(-1 <= self.workers <= 256, "workers from 0 to 256, or -1 to choose", self.workers)
        _require(self.views >= 0, "views of at least 1, or 0 to choose", self.views)
        _require(not self.int8 or self.weights is not None, "weights of a trained network for int8", "none")
        _require(self.devices >= 1, "at least 1 device", self.devices)
        _require(self.nodes >= 1, "at least 1 node", self.nodes)
        _require(
            self.batch_size % self.processes == 0 and self.batch_size >= 2 * self.processes,
            f"a batch_size that {self.processes} processes can share, with at least 2 photos each",
            self.batch_size,
        )

    @property
    def processes(self) -> int:
        """Number of processes on all machines."""
        return self.devices * self.nodes

    def views_of_each_photo(self, *, student: bool) -> int:
        """Number of different views that the run shows; see `views`."""
        return self.views or (min(self.epochs, MAX_VIEWS) if student else self.epochs)


@dataclass(frozen=True)
class PairSettings:
    """One teacher stage that one student stage is aligned with; stages are named by their stride."""

    student: int = 16
    teacher: int = 16
    weight: float = 1.0

    def __post_init__(self) -> None:
        _require(self.student > 0 and self.teacher > 0, "pair strides above 0", f"{self.student}, {self.teacher}")
        _require(self.weight > 0, "a pair weight above 0", self.weight)


@dataclass(frozen=True)
class ObjectiveSettings:
    """The distillation objective. None takes the method's own value (`losses.methods.METHODS`).

    Attributes:
        method: name in the method table. "auto" takes `hybrid-hint`, level with the best of our study; for a student
            that continues from `weights` the plain `hybrid`, because a stage without labels would undo what it learnt;
            and `kd` with `int8`. A `DistillConfig` resolves it when it is created.
        w_ce: weight of the cross entropy.
        w_kd: weight of the logit distillation.
        w_att: weight of the attention alignment at its peak.
        w_hint: weight of the features' distance in the first stage of `fitnet` and `hybrid-hint`.
        hint_share: share of all steps that this first stage takes.
        temperature: softens both sets of logits.
        pairs: stages that are aligned.
        attention: teacher's map: "activation" (squared activations) or "window" (Swin's window attention).
        alignment: student's channels to a map: "fixed" mean, or a "learned" 1x1 projection.
        distance: between the maps: "l2", "kl" or "cosine".
        grid: common grid of two maps: "smaller", "student" or "teacher".
        stage_weights: "fixed", or "learned" from each pair's uncertainty.
        att_warmup: share of the steps after the first stage in which w_att rises.
        att_decay: "cosine" brings w_att to 0 at the end, "none" keeps it.
    """

    method: str = "auto"
    w_ce: float | None = None
    w_kd: float | None = None
    w_att: float | None = None
    w_hint: float | None = None
    hint_share: float = 0.25
    temperature: float | None = None
    pairs: tuple[PairSettings, ...] = (PairSettings(),)
    attention: Literal["activation", "window"] = "activation"
    alignment: Literal["fixed", "learned"] = "fixed"
    distance: Literal["l2", "kl", "cosine"] = "l2"
    grid: Literal["smaller", "student", "teacher"] = "smaller"
    stage_weights: Literal["fixed", "learned"] = "fixed"
    att_warmup: float = 0.1
    att_decay: Literal["cosine", "none"] = "cosine"

    def __post_init__(self) -> None:
        valid = self.temperature is None or 0 < self.temperature < math.inf
        _require(valid, "a finite objective.temperature above 0", self.temperature)
        _require(0 < self.hint_share < 1, "objective.hint_share between 0 and 1", self.hint_share)
        _require(len(self.pairs) > 0, "objective.pairs with at least one pair", "none")
        _require(0 <= self.att_warmup < 1, "objective.att_warmup from 0 to below 1", self.att_warmup)
        for name in ("w_ce", "w_kd", "w_att", "w_hint"):
            value = getattr(self, name)
            _require(value is None or 0 <= value < math.inf, f"a finite objective.{name} of at least 0", value)

    def weights(self) -> dict[str, float]:
        """The weights of the objective's terms; see `losses.Method.weights`."""
        from agridistill.losses import get_method  # recipes are read without torch

        names = ("w_ce", "w_kd", "w_att", "w_hint")
        return get_method(self.method).weights({name: getattr(self, name) for name in names})

    @property
    def needs_teacher(self) -> bool:
        """Whether any term has a weight that compares with a teacher."""
        return any(weight > 0 for name, weight in self.weights().items() if name != "w_ce")

    @property
    def teacher_strides(self) -> tuple[int, ...]:
        """The teacher's stages of all pairs."""
        return tuple(sorted({pair.teacher for pair in self.pairs}))


@dataclass(frozen=True)
class TrainConfig:
    """The settings of `train`."""

    data: DataSettings = field(default_factory=DataSettings)
    augmentation: Augmentation = field(default_factory=Augmentation)
    train: FitSettings = field(default_factory=FitSettings)

    @property
    def fit(self) -> FitSettings:
        """As in a `DistillConfig`."""
        return self.train

    @property
    def objective(self) -> ObjectiveSettings:
        """Labels alone."""
        return ObjectiveSettings(method="ce")


@dataclass(frozen=True)
class DistillConfig:
    """The settings of `distill`. The objective's method "auto" is resolved here, by the settings of the fit."""

    data: DataSettings = field(default_factory=DataSettings)
    augmentation: Augmentation = field(default_factory=Augmentation)
    distill: FitSettings = field(default_factory=FitSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)

    def __post_init__(self) -> None:
        if self.objective.method == "auto":
            method = "kd" if self.distill.int8 else "hybrid" if self.distill.weights is not None else "hybrid-hint"
            object.__setattr__(self, "objective", replace(self.objective, method=method))

    @property
    def fit(self) -> FitSettings:
        """As in a `TrainConfig`."""
        return self.distill
