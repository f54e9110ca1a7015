"""Typed settings of a run, one class a section of a recipe. Defaults are defined here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pydantic import Field

from agridistill.data.folder import MAX_CONFLICT_SHARE
from agridistill.data.views import Augmentation
from agridistill.errors import ConfigError
from agridistill.manifest import ResizeRule

# Views of each photo for a teacher by default: twice what was seen to be enough (docs/performance.md).
MAX_VIEWS = 16

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
InnerShare = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


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

    image_size: Annotated[int, Field(ge=16, le=4096)] = 224
    resize: ResizeRule = "crop"
    val_fraction: InnerShare = 0.15
    test_fraction: InnerShare = 0.15
    split_seed: Annotated[int, Field(ge=0)] = 0
    labels: Annotated[float, Field(gt=0, le=1)] = 1.0
    conflicts: Annotated[float, Field(ge=0, le=1)] = MAX_CONFLICT_SHARE

    def __post_init__(self) -> None:
        held_out = self.val_fraction + self.test_fraction
        if held_out >= 1:
            raise ConfigError("data.val_fraction + data.test_fraction below 1", str(held_out), "lower one of them")


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
        ema: decay of a step of the weights' exponential moving average, which is validated and saved in place of the
            weights themselves; 0 for none. Early steps have a smaller one, so that the start is soon forgotten.
        mixup: alpha of the Beta distribution by which two photos and their labels are blended (Zhang et al. 2018, arXiv
            1710.09412); 0 for none. Where `cutmix` is on as well, each batch gets one of the two. For teachers: small
            students lose by it (GhostNetV3, arXiv 2404.11202).
        cutmix: alpha for boxes of another photo instead (Yun et al. 2019, arXiv 1905.04899).
        start_size: image size of the first steps, in pixels; it grows to `data.image_size` over the first 60 % of the
            run (Tan and Le 2021, arXiv 2104.00298, section 4). 0 begins with the full size. For networks that take any
            size; 0.7 of the size halves the cost of a step.
        patience: epochs without a better validation accuracy before the run stops; 0 never stops early.
        seed: of initial weights, order, views and dropout.
        views: different views of each photo; an epoch shows each photo once. 0 takes one for each epoch, for students
            at most `MAX_VIEWS`, because a teacher computes all of them.
        keep_views: keeps the pixels of each view in the user's cache folder, 150 kB at 224 px, for later epochs and
            other runs of the same photos and augmentation. Changes no result; helps where a run waits for its loaders.
        workers: loader processes; -1 chooses.
        precision: bf16 is faster on GPUs that compute it; a run without a recipe takes it there (`training.defaults`).
            On processors that compute it a Swin gains, a MobileNetV3 loses.
        pretrained: starts from timm's weights on the model hub.
        weights: a safetensors file or a finished run to start from instead.
        int8: continues the training of `weights` with the arithmetic of its int8 artefact: batch norm folded, weights
            and activations rounded (`models.quantised`). Without attention and hints: the artefact lacks those stages.
        devices: processes on this machine, each with its GPU or its share of the processor.
        nodes: machines that run the same command.
    """

    model: str = "mobilenetv3_large_minimal_100"
    epochs: Count = 30
    batch_size: Annotated[int, Field(ge=2)] = 64  # batch norm needs two in each process
    lr: Positive = 1e-3
    weight_decay: NonNegative = 0.05
    warmup: Share = 0.1
    label_smoothing: Share = 0.1
    drop_path: Share | None = None
    head_first: bool = False
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    freeze_norm: bool = False
    balance: bool = False
    clip_grad: NonNegative = 1.0
    ema: Share = 0.0
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    start_size: Annotated[int, Field(ge=0, le=4096)] = 0
    patience: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    views: Annotated[int, Field(ge=0)] = 0
    keep_views: bool = False
    workers: Annotated[int, Field(ge=-1, le=256)] = -1
    precision: Literal["fp32", "bf16"] = "fp32"
    pretrained: bool = True
    weights: str | None = None
    int8: bool = False
    devices: Count = 1
    nodes: Count = 1

    def __post_init__(self) -> None:
        if self.int8 and self.weights is None:
            raise ConfigError("weights of a trained network for int8", "none", "pass --weights RUN")
        if not 0 < self.processes <= self.batch_size // 2 or self.batch_size % self.processes:
            expected = f"a batch_size that {self.processes} processes can share, with at least 2 photos each"
            raise ConfigError(expected, str(self.batch_size), "correct batch_size, devices or nodes")

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

    student: Count = 16
    teacher: Count = 16
    weight: Positive = 1.0


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
        att_warmup: share of the steps after the first stage in which w_att rises.
        att_decay: "cosine" brings w_att to 0 at the end, "none" keeps it.
    """

    method: str = "auto"
    w_ce: NonNegative | None = None
    w_kd: NonNegative | None = None
    w_att: NonNegative | None = None
    w_hint: NonNegative | None = None
    hint_share: InnerShare = 0.25
    temperature: Positive | None = None
    pairs: Annotated[tuple[PairSettings, ...], Field(min_length=1)] = (PairSettings(),)
    attention: Literal["activation", "window"] = "activation"
    alignment: Literal["fixed", "learned"] = "fixed"
    distance: Literal["l2", "kl", "cosine"] = "l2"
    att_warmup: Share = 0.1
    att_decay: Literal["cosine", "none"] = "cosine"

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
