"""The settings of a run: one class for each section of a recipe, with types and defaults."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pydantic import Field

from agridistill.data.folder import MAX_CONFLICT_SHARE
from agridistill.data.views import Augmentation
from agridistill.errors import ConfigError
from agridistill.manifest import ResizeRule

# Default number of views of each photo that a teacher computes: twice what measurements need (docs/performance.md).
MAX_VIEWS = 16

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
InnerShare = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class DataSettings:
    """The section `data`: the size of a model's input, and how the photos are split.

    Attributes:
        image_size: height and width of the input in pixels.
        resize: "crop" scales the shorter side and cuts out the centre, "stretch" ignores the aspect ratio.
        val_fraction: share of each class for validation, which chooses the best epoch and calibrates the probabilities.
        test_fraction: share of each class for the test. Test photos are used only for the final evaluation.
        split_seed: seed of the split, which keeps all photos of a leaf in one part. It is separate from the run's seed,
            so that runs with different seeds have the same test split.
        labels: share of each class's training and validation photos that is used. A smaller share is a subset of a
            larger one. The test split is always complete.
        conflicts: largest accepted share of photos that have copies, also flipped, turned or scaled, with other labels.
        unlabelled: a folder of photos without labels, from which a student learns by all terms but the cross entropy.
            An epoch uses each of them once. Those that show a validation or test leaf are left out.
        labelled_share: smallest share of photos with labels in an epoch with `unlabelled` photos; they are repeated, in
            different views, until they reach it. None means a quarter.
    """

    image_size: Annotated[int, Field(ge=16, le=4096)] = 224
    resize: ResizeRule = "crop"
    val_fraction: InnerShare = 0.15
    test_fraction: InnerShare = 0.15
    split_seed: Annotated[int, Field(ge=0)] = 0
    labels: Annotated[float, Field(gt=0, le=1)] = 1.0
    conflicts: Annotated[float, Field(ge=0, le=1)] = MAX_CONFLICT_SHARE
    unlabelled: str | None = None
    labelled_share: InnerShare | None = None

    def __post_init__(self) -> None:
        held_out = self.val_fraction + self.test_fraction
        if held_out >= 1:
            raise ConfigError("data.val_fraction + data.test_fraction below 1", str(held_out), "lower one of them")


@dataclass(frozen=True)
class FitSettings:
    """The section `train` or `distill`: a training with AdamW, linear warm-up and cosine decay to 0.

    Attributes:
        model: timm's name of the network. The default is MobileNetV3-Large without the parts that int8 engines compute
            slowly; it is as accurate on our photos, and the fastest on a device (docs/performance.md).
        epochs: number of passes over the training photos.
        batch_size: number of photos in a step, summed over all processes: their number does not change the result.
        lr: peak learning rate.
        weight_decay: weight decay of weight matrices; biases and norms have none.
        warmup: share of all steps in which the learning rate rises.
        label_smoothing: label smoothing of the cross entropy.
        drop_path: rate of stochastic depth; None keeps the network's default (0.1 for Swin).
        head_first: fits the classifier to features of the frozen backbone before the whole network is trained. It is
            for backbones with pretrained weights, which a random head would disturb by random gradients (Kumar et al.
            2022, arXiv 2202.10054).
        layer_decay: factor of the learning rate from each layer to the previous one; with 1 all layers have the same.
        freeze_norm: keeps the batch-norm statistics of the starting weights, because those of few photos are noisy.
        balance: shows each class equally often: photos of rare classes several times in an epoch, in different views.
            Unlike class weights, it affects all terms of an objective.
        clip_grad: largest gradient norm; 0 does not clip.
        ema: decay per step of an exponential moving average of the weights; 0 for none. The average is validated and
            saved in place of the weights. The first steps have a smaller decay, so that the average forgets the start.
        mixup: alpha of the Beta distribution by which two photos and their labels are blended (Zhang et al. 2018, arXiv
            1710.09412); 0 for none. With `cutmix`, each batch gets one of the two. For teachers: small students lose
            accuracy by it (GhostNetV3, arXiv 2404.11202), and a teacher with another image size gets enlarged photos.
        cutmix: alpha of the Beta distribution for the size of a box that is replaced by the same box of another photo
            (Yun et al. 2019, arXiv 1905.04899); 0 for none.
        start_size: image size of the first steps, in pixels. It grows to `data.image_size` over the first 60 % of the
            run (Tan and Le 2021, arXiv 2104.00298, section 4). 0 starts with the full size. The network must accept
            photos of any size.
        patience: number of epochs without a better validation accuracy after which the run stops; 0 never stops early.
        seed: seed of initial weights, order of the photos, views and dropout.
        views: number of different views (augmented versions) of each photo; an epoch uses one view of each photo. 0
            means a new view in each epoch, but at most `MAX_VIEWS` for students, whose teacher computes every view.
        keep_views: stores the pixels of each view in the user's cache folder, 150 kB at 224 px, for later epochs and
            for other runs with the same photos and augmentation. It changes no result, and helps if the data loaders
            are slower than the training.
        workers: number of data-loader processes; -1 chooses it by the number of cores.
        precision: "fp32" or "bf16". bf16 is faster on GPUs that support it, and a run without a recipe uses it there
            (`training.defaults`). On processors that support it, Swin gets faster and MobileNetV3 slower.
        pretrained: starts from the weights in an installed package or, without one, from timm's on the model hub.
        weights: a weights file or the folder of a finished run to start from instead.
        int8: continues the training of `weights` with the arithmetic of its int8 export: batch norm is folded, weights
            and activations are rounded (`models.int8.quantised`). Attention and hints are not possible, because the
            export lacks those stages.
        devices: number of processes on this machine, each with a GPU or a share of the processor.
        nodes: number of machines that run the same command.
    """

    model: str = "mobilenetv3_large_minimal_100"
    epochs: Count = 30
    batch_size: Annotated[int, Field(ge=2)] = 64  # batch norm needs at least two photos in each process
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
            raise ConfigError(
                "weights of a trained network, because int8 = true continues its training", "none", "pass --weights RUN"
            )
        if not 0 < self.processes <= self.batch_size // 2 or self.batch_size % self.processes:
            expected = f"a batch_size that is a multiple of {self.processes} processes, with at least 2 photos for each"
            raise ConfigError(expected, str(self.batch_size), "change batch_size, devices or nodes")

    @property
    def processes(self) -> int:
        """Number of training processes on all machines: devices times nodes."""
        return self.devices * self.nodes

    def views_of_each_photo(self, *, student: bool) -> int:
        """Returns how many different views (augmented versions) of each photo a run uses; see `views`."""
        return self.views or (min(self.epochs, MAX_VIEWS) if student else self.epochs)


@dataclass(frozen=True)
class PairSettings:
    """A stage of the student's network and the teacher's stage that it imitates, each given by its stride in pixels.

    `weight` is the factor of this pair's distance in the sum over all pairs.
    """

    student: Count = 16
    teacher: Count = 16
    weight: Positive = 1.0


@dataclass(frozen=True)
class ObjectiveSettings:
    """The section `objective`: the loss of a distillation. For None, the method's value in `METHODS` is used.

    Attributes:
        method: name of the method. "auto" means `hybrid-hint`, one of the best methods in our study; for a student that
            continues from `weights` it means `hybrid`, because a stage without labels would undo what the student has
            learnt; with `int8` it means `kd`. A `DistillConfig` replaces "auto" when it is created.
        w_ce: weight of the cross entropy with the labels.
        w_kd: weight of the loss between student's and teacher's logits.
        w_att: largest weight of the distance between student's and teacher's attention maps.
        w_hint: weight of the distance between feature maps in the first stage of `fitnet` and `hybrid-hint`.
        hint_share: share of all steps that this first stage takes.
        temperature: divisor of student's and teacher's logits.
        pairs: pairs of stages whose attention or feature maps are compared.
        attention: kind of the teacher's map: "activation" (squared activations) or "window" (Swin's window attention).
        alignment: how the student's channels become a map: "fixed" (their mean) or "learned" (a 1x1 projection).
        distance: distance between the attention maps: "l2", "kl" or "cosine".
        att_warmup: share of the steps after the first stage in which w_att rises.
        att_decay: "cosine" decreases w_att to 0 until the end, "none" keeps it constant after the warm-up.
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
        """Returns the weights of the loss terms by name ("w_ce", "w_kd", "w_att", "w_hint"), without None.

        `losses.Method.weights` documents which settings a method uses.
        """
        from agridistill.losses import get_method  # imported here because reading a recipe must not need torch

        names = ("w_ce", "w_kd", "w_att", "w_hint")
        return get_method(self.method).weights({name: getattr(self, name) for name in names})

    @property
    def needs_teacher(self) -> bool:
        """Whether any loss term that needs the teacher's outputs has a weight above 0."""
        return any(weight > 0 for name, weight in self.weights().items() if name != "w_ce")

    @property
    def teacher_strides(self) -> tuple[int, ...]:
        """The strides of the teacher's stages in `pairs`, each once, sorted."""
        return tuple(sorted({pair.teacher for pair in self.pairs}))


@dataclass(frozen=True)
class TrainConfig:
    """The settings of `train`, with one attribute for each section of its recipe."""

    data: DataSettings = field(default_factory=DataSettings)
    augmentation: Augmentation = field(default_factory=Augmentation)
    train: FitSettings = field(default_factory=FitSettings)

    @property
    def fit(self) -> FitSettings:
        """The section `train`, under the name that a `DistillConfig` also has."""
        return self.train

    @property
    def objective(self) -> ObjectiveSettings:
        """The objective of `train`: cross entropy with the labels."""
        return ObjectiveSettings(method="ce")


@dataclass(frozen=True)
class DistillConfig:
    """The settings of `distill`, with one attribute for each section of its recipe.

    On creation it replaces the method "auto" in `objective`; see `ObjectiveSettings`.
    """

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
        """The section `distill`, under the name that a `TrainConfig` also has."""
        return self.distill
