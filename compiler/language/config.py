"""The configuration sections of a spec: data, search, retrain, budget, export.

One model per section, from which all commands read their settings. Every key can be overridden with
`--set section.key=value`. Times are in epochs unless a name says otherwise, rates are per step.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from compiler.docstrings import describe
from compiler.language.values import (
    MOST,
    Adaptive,
    Byte,
    Chance,
    Column,
    Count,
    Epochs,
    Fraction,
    Label,
    NonNegative,
    Pixels,
    Policy,
    Positive,
    Rate,
    Share,
    StrategyName,
)


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values are immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra=describe, allow_inf_nan=False, serialize_by_alias=True
    )


class Schedule(Section):
    """A learning-rate schedule over one stage of training."""

    kind: Literal["constant", "step", "cosine", "warm_restarts"] = "cosine"
    """Shape of the curve."""
    milestones: tuple[Fraction, ...] = (0.5, 0.75)
    """`step`: fractions of the stage at which the rate is multiplied by `factor`."""
    factor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """`step`: factor by which the rate is multiplied."""
    minimum: NonNegative = 0.0
    """`cosine`, `warm_restarts`: the lowest rate."""
    first_period: Positive = 10
    """`warm_restarts`: epochs of the first period."""
    period_factor: Positive = 2
    """`warm_restarts`: each period is this many times as long as the one before."""
    warmup: Epochs = 0
    """Epochs of linear warm-up at the start."""


class DataConfig(Section):
    """The data set and its augmentation."""

    name: str = "digits"
    """`digits`, `cifar10`, `cifar100`, `fashion_mnist`, `mnist`, `svhn`, `folder`, `table`, `arrays`, `imagenet`,
    `fake`, or `package.module:function` (needs `--trust-code`)."""
    root: str | None = None
    """Folder of the data set; `folder`: or a zip or tar file, `arrays`: or an .npz file. Default: the environment
    variable GRAPHSPEC_DATA, or `./data`; of a `table` the folder that it lies in."""
    file: str | None = None
    """`table`: a CSV, TSV or JSON lines file with a line for each image, relative to `root` where that is set."""
    image: str = "path"
    """`table`: the column of the paths of the images, relative to the folder of the data set."""
    label: Column = "label"
    """`table`: the column of the classes; a list of one column is that column."""
    part: str | None = None
    """`table`: the column that says train, val or test. Default: the set is divided here."""
    nested: bool = False
    """`folder`: each folder that holds images is a class, named by its way (`cat/wild`). Default: the outermost are."""
    download: bool = False
    """Download a missing torchvision data set."""
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Fraction of the training images used for validation only, where the set has no part for it."""
    test: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Fraction of the images used for the test, where the set has no part for it."""
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Which of its divisions into training, validation and test a set without parts gets, whatever the run's seed."""
    near_duplicates: Annotated[int, Field(ge=0, le=8)] | None = 3
    """Images that differ in at most so many of the 64 bits of their dHash stay in one part where a set is divided;
    null: images are not compared."""
    crop_padding: Pixels = 0
    """Pad images by this many pixels and crop at random; 0: off."""
    flip: bool = False
    """Flip images horizontally at random."""
    resized_crop: Fraction = 0.0
    """Cut a random part of at least this share of the area out of images and scale it to their size; 0: off. Images
    are changed four at a time, here and by the next three settings: those four share what is drawn."""
    augment: Policy = "none"
    """Change images by one random operation of random strength, `trivial` (TrivialAugment), or by two of medium
    strength, `rand` (RandAugment): rotated, sheared, moved, brightness, contrast, colours. Of 1 or 3 channels."""
    colour_jitter: Chance = 0.0
    """Change brightness, contrast and saturation at random by up to this share; 0: off. Of 1 or 3 channels."""
    erasing: Chance = 0.0
    """Probability that a random rectangle of images is set to the mean colour."""
    mean: tuple[Share, ...] | None = None
    """Mean per channel in 0..1. Default: computed on the training images."""
    std: tuple[Annotated[Share, Field(gt=0.0)], ...] | None = None
    """Standard deviation per channel in 0..1. Default: computed on the training images."""
    background: Annotated[tuple[Byte, ...], Field(min_length=3, max_length=3)] = (255, 255, 255)
    """Colour, red, green and blue in 0..255, that shows through where an image file is transparent."""
    range: Annotated[float, Field(gt=0.0, le=1e12)] | None = None
    """The value that is white in images of more than 8 bits or of floats, such as 4095 of 12 bits. Default: the largest
    of their type, of floats 1."""
    resize: Literal["crop", "squash", "letterbox"] = "crop"
    """How image files become as large as the input: scaled until they cover it and cropped in the middle; each side
    scaled apart; or scaled until they fit into it, in the middle of the background."""
    drop_last: bool = True
    """Leave the last images of an epoch of training out where they fill no batch. Else they are a smaller one."""
    workers: Annotated[int, Field(ge=0, le=1024)] = 2
    """Loader processes, for data sets that are not held in memory."""
    in_memory: bool | None = None
    """`folder`, `table`: hold the decoded images in memory. Default: if they take less than 2 GB at 8 bits. `imagenet`
    is never held in memory, all other data sets always are."""
    class_weights: Literal["balanced"] | dict[str, Rate] | None = None
    """How much an image counts in the loss of training: `balanced` gives every class the same sum, with a mean of 1
    over the images; or numbers by class (`{cat: 2}`), 1 for those not named."""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """Images of an epoch of training: each once, or `balanced`: as many of every class, those of rare ones again."""
    ignore: tuple[Label, ...] = ()
    """`folder`, `imagenet`, `table`, `arrays`: classes whose images are left out of training, test and class list, and
    labels that say nothing (`["", -1]`)."""
    skip_corrupt: bool = False
    """Skip and count unreadable images. Default: an unreadable image is an error."""
    fake_size: Annotated[int, Field(gt=0, le=10**6)] = 256
    """`fake`: number of training images; there are half as many test images."""

    @model_validator(mode="after")
    def _nothing_is_done_twice(self) -> DataConfig:
        if self.sampling == "balanced" == self.class_weights:
            raise ValueError("data.sampling and data.class_weights are both balanced: one of them evens classes out")
        if self.resized_crop and self.name == "imagenet":
            raise ValueError("data.resized_crop: imagenet takes random parts of its files anyway: leave it out")
        return self


class GateConfig(Section):
    """The gates' optimizer, APG-NAG."""

    lr: Rate = 0.1
    """Learning rate of the gates."""
    schedule: Schedule = Schedule(kind="constant")
    """Learning-rate schedule of the gates over the search stage."""
    momentum: Fraction = 0.9
    """Momentum of the gates: μ of equations 6 to 8."""
    gamma: NonNegative | Literal["auto"] = 0.001
    """Sparsity weight: coefficient of the L1 norm of the gates. A larger value keeps fewer edges. `auto`: the search
    closes the weakest gates until the budget is met; set from its length, or 0 where `weights` are given."""
    clip: Rate | None = 2.0
    """Clip gate gradients element by element to [-clip, clip]; null: off."""
    nonnegative: bool = True
    """Set negative gates to zero after each step. Without it few gates become zero, so few edges are pruned."""
    exempt_last_input: bool = True
    """Do not penalise the last open input of an op that batch norm makes scale-invariant."""
    adaptive: Adaptive = "none"
    """Scale gamma by the multiply-adds of the block (equation 9), by the memory access cost of the op (equation 10) or
    by its measured latency; of a channel, by what closing it saves."""

    @property
    def written_gamma(self) -> float:
        """The sparsity weight; 0 where the search finds it."""
        return 0.0 if self.gamma == "auto" else self.gamma


class PruneConfig(Section):
    """When edges whose gate is zero are removed during the search."""

    every: NonNegative = 5
    """Check gates every N epochs; 0.5: twice per epoch, 0: only at the end of the search."""
    patience: Positive = 2
    """Remove an edge after N consecutive checks at zero. The check at the end of the search removes all zero edges."""


class CheckpointConfig(Section):
    """When checkpoints are written, besides the end of every epoch."""

    minutes: NonNegative = 10.0
    """Write a checkpoint every N minutes within an epoch, too; 0: off."""
    keep: Annotated[int, Field(ge=2, le=MOST)] = 2
    """Number of checkpoints to keep."""


class TrainingConfig(Section):
    """Settings that search and retrain have in common."""

    batch_size: Positive = 64
    """Images per step."""
    steps_per_epoch: Positive | None = None
    """Steps of an epoch, weight steps in a search, however many images there are: one begins where the last one has
    stopped. Default: each image once."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Of the weights: `sgd`, with Nesterov momentum, or `adamw`, which wants a rate of about 0.001 to 0.005."""
    lr: Rate = 0.1
    """Learning rate of the weights."""
    schedule: Schedule = Schedule()
    """Learning-rate schedule of the weights, over each stage."""
    momentum: Fraction = 0.9
    """Nesterov momentum of the weights; of `adamw` the first beta."""
    weight_decay: NonNegative = 1e-4
    """L2 decay of the weights, of `adamw` apart from the gradient and about 0.05; not of norms, biases or gates."""
    clip: Rate | None = None
    """Clip weight gradients element by element to [-clip, clip]."""
    clip_norm: Rate | None = None
    """Scale the gradient of all weights down where its L2 norm is larger; after `clip`."""
    label_smoothing: Fraction = 0.0
    """Label smoothing of the training loss of `task: classification`."""
    accumulate: Positive = 1
    """Process each batch in N parts to save memory; batch norm then uses the statistics of each part."""
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    """`tf32`: faster float32 products on CUDA with rounded factors, on a CPU the same as `fp32`. `bf16`: run the
    network under autocast. Weights, gates and their updates stay float32. `auto`: `bf16` on a GPU that computes in it,
    else `tf32`."""
    compile: bool = False
    """Run torch.compile on every block, again after pruning. Compiling may take minutes per block: for long jobs
    only."""
    sync_batch_norm: bool = True
    """With several processes, compute batch-norm statistics over the whole batch; `false`: in each process alone."""
    recompute: bool = False
    """Recompute activations block by block in the backward pass to save memory."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When checkpoints are written."""

    @property
    def evaluation_batch(self) -> int:
        """Images to evaluate at a time: 256 or more, which is faster, but no more than a step where memory is saved."""
        saves_memory = self.recompute or self.accumulate > 1
        return -(-self.batch_size // self.accumulate) if saves_memory else max(self.batch_size, 256)


class SearchConfig(TrainingConfig):
    """How the space is searched."""

    strategy: StrategyName = "dso"
    """`dso` (weights and gates in turns, zero gates are pruned), `random` (the control: random edges at a size), or the
    name of an installed strategy."""
    options: dict[str, Any] = {}
    """Settings of an installed strategy, which says what there is."""
    random_params: Count | None = None
    """`random`: parameters of the network to draw, before any budget; `--match RUN` takes those that RUN found."""
    pretrain_epochs: Epochs = 10
    """Epochs of pretraining: weights only, all gates fixed."""
    epochs: Epochs = 20
    """Epochs of the search stage."""
    weight_part: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Fraction of the training images (without validation) that train the weights; the rest train the gates."""
    weight_steps: Positive = 1
    """Weight steps per gate step; the paper uses 1 or 4."""
    gates: GateConfig = GateConfig()
    """The gates' optimizer."""
    prune: PruneConfig = PruneConfig()
    """Pruning during the search."""
    lowering: Literal["fused", "reference"] = "fused"
    """`reference`: multiply each edge by its gate; slower, for comparison."""
    recalibrate_batches: Positive = 8
    """Batches used to re-estimate batch-norm statistics before validation."""

    @property
    def cycles_per_epoch(self) -> int | None:
        """Gate steps of an epoch, each with its weight steps; None: as many as the images last for."""
        return None if self.steps_per_epoch is None else self.steps_per_epoch // self.weight_steps


class DistilConfig(Section):
    """Learning from the outputs of the network that the spec's `weights` are of, all gates open."""

    weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the loss that compares with those outputs; the rest compares with the labels. 0: off."""
    temperature: Annotated[float, Field(gt=0.0, le=1000.0)] = 4.0
    """Divides the logits of both networks before their softmax; larger values let unlikely classes count more."""


class RetrainConfig(TrainingConfig):
    """Training of the found network, without gates."""

    lr: Rate = 0.05
    weight_decay: NonNegative = 3e-4
    epochs: Positive = 30
    """Epochs of training."""
    start: Annotated[Literal["search", "scratch"] | None, Field(alias="from")] = None
    """`search`: start from the weights that the search trained, gates folded in, at their widths; without a search from
    the spec's `weights`. `scratch`: from random ones. Default: `search` if the spec names weights, else `scratch`."""
    distil: DistilConfig = DistilConfig()
    """What is learnt from the network before it was pruned."""
    augment: Policy | None = None
    """`data.augment` while retraining, which lasts longer than a search and can take more; null: the same."""
    cutout: Pixels = 0
    """Side in pixels of the square cut out of each training image; 0: off."""
    mixup: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    """Blend each training image and its target with those of its neighbour in the batch, by a share drawn from
    Beta(mixup, mixup); 0: off, 0.2 is usual. With `cutmix`, too, an even chance decides which of the two."""
    cutmix: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    """Put a rectangle of its neighbour into each training image, of an area drawn from Beta(cutmix, cutmix), and blend
    their targets by area; 0: off, 1 is usual."""
    ema: Fraction = 0.0
    """Decay per step of a moving average of weights and batch-norm statistics, which then is what is validated, tested
    and exported; 0: off. Something like 0.99 where an epoch has 100 steps, 0.999 for 1000."""
    keep: Literal["last", "best"] = "last"
    """Weights to end with: of the last epoch, or of the one that is best in validation."""
    patience: Epochs = 0
    """Stop after so many epochs in a row that are not better in validation than the best before; 0: off."""
    all_images: bool = False
    """Train on the validation images too, once all is decided: there is no validation then."""
    auxiliary_weight: NonNegative = 0.0
    """Loss weight of the auxiliary head after the last reduction; 0 leaves it out."""
    drop_path: Fraction = 0.0
    """Drop-path probability of the last block at the end of training; it grows with depth and time."""
    dropout: Fraction = 0.0
    """Dropout before the classifier."""

    @model_validator(mode="after")
    def _validation_is_there(self) -> RetrainConfig:
        wanted = "keep: best" if self.keep == "best" else "patience" if self.patience else ""
        if self.all_images and wanted:
            raise ValueError(f"retrain.{wanted} needs validation, and retrain.all_images leaves none: one of the two")
        return self

    @model_validator(mode="before")
    @classmethod
    def _inherit_was_the_name(cls, given: Any) -> Any:
        """`inherit`, which `from` was called before."""
        if not isinstance(given, dict) or not isinstance(given.get("inherit"), bool) or "from" in given:
            return given
        return {k: v for k, v in given.items() if k != "inherit"} | ({"from": "search"} if given["inherit"] else {})


class BudgetConfig(Section):
    """Limits for the found network, met by scaling all widths, or by the search with `search.gates.gamma: auto`."""

    params: Count | None = None
    """Maximum number of parameters, e.g. `3.0M`."""
    flops: Count | None = None
    """Maximum number of multiply-adds per image, e.g. `600M`."""
    latency: Annotated[float, Field(gt=0.0, le=MOST)] | None = None
    """Maximum milliseconds of one image in onnxruntime on one thread of this machine; only the search meets it
    (`search.gates.gamma: auto`), and widths are not scaled then."""
    round_to: Positive = 8
    """Round channels to a multiple of N."""


class ExportConfig(Section):
    """The ONNX model and its checks."""

    opset: Annotated[int, Field(ge=13, le=1000)] = 18
    """ONNX operator set."""
    with_preprocessing: Literal["none", "nchw", "nhwc"] = "none"
    """Include the normalisation: the model then takes images in this layout, with the numbers that the files have
    (uint8, of more bits uint16 or float32)."""
    any_size: bool = False
    """With `with_preprocessing`: include the resize of `data.resize`; the model then takes images of any size."""
    probabilities: bool = False
    """Output probabilities: `task: classification` puts a softmax behind the network."""
    tolerance: Rate = 1e-4
    """Maximum difference from torch, relative to the largest output."""
    accuracy_tolerance: NonNegative = 1.0
    """Percentage points of test accuracy that the `--fp16` and `--int8` models may lose; of a task whose metric is no
    share, percent of it."""

    @model_validator(mode="after")
    def _bytes_are_resized(self) -> ExportConfig:
        if self.any_size and self.with_preprocessing == "none":
            raise ValueError("export.any_size needs export.with_preprocessing: nchw or nhwc")
        return self


class Configuration(Section):
    """All sections together: what a run directory keeps as `config.json`."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of all random numbers."""
    task: str = "classification"
    """What the network is for: `classification`, or a task of an installed package."""
    data: DataConfig = DataConfig()
    search: SearchConfig = SearchConfig()
    retrain: RetrainConfig = RetrainConfig()
    budget: BudgetConfig = BudgetConfig()
    export: ExportConfig = ExportConfig()

    @model_validator(mode="after")
    def _parts_are_not_empty(self) -> Configuration:
        if self.search.pretrain_epochs + self.search.epochs == 0:
            raise ValueError("search.pretrain_epochs and search.epochs are both 0: nothing to do")
        if self.search.cycles_per_epoch == 0:
            raise ValueError("search.steps_per_epoch is less than search.weight_steps: an epoch has no gate step")
        budget, is_auto = self.budget, self.search.gates.gamma == "auto"
        if is_auto and budget.params is None and budget.flops is None and budget.latency is None:
            raise ValueError(
                "search.gates.gamma is auto, and there is no budget to meet: set budget.params, .flops or .latency"
            )
        if budget.latency is not None and not is_auto:
            raise ValueError("budget.latency is met by the search alone: set search.gates.gamma to auto")
        return self
