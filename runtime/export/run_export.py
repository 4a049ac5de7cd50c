"""`graphspec export`: emit the trained network, prove that the file computes the same, then put it into place.

Files are made and judged in a folder beside the target, and renamed into place only when all of them passed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import helper

from compiler.errors import RunError
from compiler.ir.text import graph_hash
from compiler.lowering.onnx.model import Preprocessing, check_opset, emit, save
from compiler.lowering.onnx.resize import any_size
from runtime.data.dataset import HERE, Dataset
from runtime.data.named_sets import reading_of
from runtime.export.bench import Kind, Latency, eager_latency, onnx_latency, path_of
from runtime.export.notes import LABELS, README, Note, label_lines
from runtime.export.on_files import compare_on_files, resize_of
from runtime.export.parity import (
    FileScore,
    ImageForm,
    Judge,
    Parity,
    Reference,
    check_outputs,
    compare,
    raw_batches,
    reference,
    score_all,
    some_pixels,
)
from runtime.export.quantise import half, int8
from runtime.export.trained import Source, Trained, finished_job, load_trained, training_data
from runtime.inference.figures import EVALUATION
from runtime.inference.model import MODEL, RAW
from runtime.inference.network import OnnxNetwork
from runtime.jobs.logs import Console
from runtime.rundir import files
from runtime.rundir.directory import Opened, environment
from runtime.rundir.files import guarded, read_bytes, write_json
from runtime.seeds import generator
from runtime.strategies.latency import device_name
from runtime.tasks.base import TOLERANCE
from runtime.tasks.results import Measured, as_record

PARITY, LATENCY = "parity.json", "latency.json"  # in the run's export folder
PACKAGES = ("graphspec", "numpy", "onnx", "onnxruntime", "torch")
CALIBRATION_IMAGES, CALIBRATION_BATCH = 256, 32
THREADS, LATENCY_BATCHES = (1, 2), (1, 64)
NOTABLE = 0.5  # points of the deciding metric that are worth a warning


@dataclass(frozen=True)
class ExportOptions:
    """What to export and where to; how the model looks is configured in the spec's section `export`."""

    source: Source = "retrain"
    output: str | Path | None = None  # of the float32 model; default: export/model.onnx in the run
    fp16: bool = False
    int8: bool = False
    latency: bool = True  # measure it
    trust_code: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class ExportedFile(Measured):
    """One file, as it was judged."""

    kind: Kind
    path: str
    nodes: int
    bytes: int
    metrics: Mapping[str, float]  # on the test set, by onnxruntime
    agreement: float  # share of test images where it says what torch says


@dataclass(frozen=True)
class ExportResult(Measured):
    """What was exported; `export/parity.json` holds all but the latencies, `export/latency.json` those."""

    run: str
    source: Source
    path: str  # of the float32 model
    opset: int
    files: tuple[ExportedFile, ...]  # float32 first
    parity: Parity
    test_images: int
    metrics: Mapping[str, float]  # torch_<metric>, and <metric>_tolerance: points that fp16 and int8 may lose of it
    latencies: tuple[Latency, ...]
    on_files: Parity | None = None  # of a model that takes images of any size

    @property
    def model(self) -> ExportedFile:
        """The float32 model."""
        return self.files[0]


def run_export(opened: Opened, options: ExportOptions) -> ExportResult:
    """Export the network of a run.

    GraphspecError if there is none, it does not pass the checks or cannot be written; then nothing is at the target
    path that was not there before.
    """
    console = Console(options.quiet)
    check_opset(opened.spec.config.export.opset)
    job = finished_job(opened, options.source)
    target = Path(options.output or opened.run.export / MODEL)
    with opened.run.locked(), _staging(target) as folder:
        needs = "--int8" if options.int8 else "--from search" if options.source == "search" else ""
        dataset, is_whole = training_data(opened, job, console.warn, needs=needs, trust_code=options.trust_code)
        trained = load_trained(opened, options.source, dataset, console.line)
        if not is_whole:  # what the job has measured is of other images
            trained = replace(trained, score=None)
        result = _Export(opened, options, console, trained, dataset, target, folder).run()
        _publish(folder, target)
        _write_reports(opened.run.export, result, others_go=options.output is None)
    console.line(f"wrote {', '.join(file.path for file in result.files)}; checks in {opened.run.export / PARITY}")
    return result


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """An empty folder beside the target that is gone afterwards; RunError if the target cannot be written."""
    with ExitStack() as stack:
        with guarded(target):
            if not target.parent.exists():
                stack.callback(_remove_empty, target.parent)
            beside = stack.enter_context(files.folder_of(target, make=True))
            files.refuse_special(target, beside)
            name, _ = stack.enter_context(files.temporary(target.name, beside, is_folder=True))
        yield target.with_name(name)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # there is something in it
        folder.rmdir()


def _publish(folder: Path, target: Path) -> None:
    """Rename what was staged into place, the float32 model last."""
    with guarded(target):
        staged = sorted(folder.iterdir(), key=lambda path: path.name == target.name)
    for path in staged:
        files.sync(path)
    with guarded(target), files.folder_of(target) as beside:
        with suppress(OSError):  # some network disks have no locks
            fcntl.flock(beside, fcntl.LOCK_EX)  # two exports to one place would mix model and weights beside it
        for path in staged:
            files.move(path, target.with_name(path.name))


def _write_reports(folder: Path, result: ExportResult, *, others_go: bool) -> None:
    """Write what was found; with `others_go`, small forms and the evaluation of an earlier export are removed."""
    record, home = as_record(result), folder.parent.absolute()
    for one in (record, *record["files"]):  # as they are found from any folder, and those of the run after a move
        path = Path(one["path"]).absolute()
        one["path"] = str(path.relative_to(home) if path.is_relative_to(home) else path)
    latencies = record.pop("latencies")
    write_json(folder / PARITY, record)
    if latencies:
        write_json(folder / LATENCY, {"device": device_name(HERE.device), "latencies": latencies})
    else:
        files.remove(folder / LATENCY)
    if others_go:
        files.remove(folder / EVALUATION)
    for kind in ("fp16", "int8"):
        if others_go and kind not in {file.kind for file in result.files}:
            files.remove(path_of(kind, folder / MODEL))


@dataclass
class _Export:
    """The steps between a trained network and files that passed; `folder` holds those that are not judged yet."""

    opened: Opened
    options: ExportOptions
    console: Console
    trained: Trained
    dataset: Dataset
    target: Path
    folder: Path

    def __post_init__(self) -> None:
        self.settings, self.task = self.opened.spec.config.export, self.dataset.task
        self.form = ImageForm.of(self.settings.with_preprocessing, self.dataset.normalise, self.dataset.white)
        self.head = self.task.head if self.settings.probabilities else None  # behind the network in the file
        self.reading = reading_of(self.opened.spec.config.data)
        self.output_name = "probabilities" if self.head else self.task.output_name
        self.allowed = float(getattr(self.settings, TOLERANCE))  # points that a small form may lose

    def run(self) -> ExportResult:
        """Emit, judge, label and time; RunError with the figures if something does not pass."""
        torch_network = reference(self.trained.module, self.head)
        judge = Judge(self.task, probabilities=self.head is not None)
        if warning := check_outputs(torch_network, self.form, self.dataset):
            self.console.warn(warning)
        proto = self._emit()
        protos: dict[Kind, onnx.ModelProto] = {"fp32": self._whole(proto)}
        network = self._stage("fp32", protos["fp32"])
        parity = compare(network, torch_network, self.form, self.dataset, judge, self.settings.tolerance)
        for case in parity.cases:
            self.console.line(case.line(self.task.same))
        self._tell_parity(parity)
        parity.check(self.task.same)
        on_files = self._on_files(network, torch_network, judge) if self.settings.any_size else None
        protos |= {kind: self._whole(form) for kind, form in self._small_forms(proto).items()}
        networks = {"fp32": network} | {k: self._stage(k, p) for k, p in protos.items() if k != "fp32"}
        with self.console.progress("test images", len(self.dataset.test.targets)) as advance:
            scores = score_all(networks, torch_network, self.form, self.dataset, judge, advance)
        for kind, form in protos.items():
            helper.set_model_props(form, self._metadata(scores[kind], parity))
            self._save(kind, form)
        self._write_notes()
        files = tuple(self._file(kind, form, scores[kind]) for kind, form in protos.items())
        self._tell_scores(scores, files)
        self._check_small_forms(files)
        latencies = tuple(self._latencies(list(protos))) if self.options.latency else ()
        return ExportResult(
            run=str(self.opened.run.path),
            source=self.options.source,
            path=str(self.target),
            opset=self.settings.opset,
            files=files,
            parity=parity,
            test_images=scores["torch"].images,
            metrics={
                **{f"torch_{name}": value for name, value in scores["torch"].metrics.items()},
                f"{self.task.decides.name}_tolerance": self.allowed,
            },
            latencies=latencies,
            on_files=on_files,
        )

    def _emit(self) -> onnx.ModelProto:
        form, normalise = self.form, self.dataset.normalise
        raw = (normalise.mean, normalise.std, form.kind, form.white)
        return emit(
            self.trained.model,
            opset=self.settings.opset,
            output_name=self.output_name,
            preprocessing=None if form.layout == "none" else Preprocessing(form.layout, *raw),
            head=self.head,
        )

    def _whole(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """The model as a user gets it: with the resize, if that is asked for."""
        resize = resize_of(self.reading, len(self.dataset.normalise.mean), self.form.white)
        return any_size(proto, resize, self.form.layout) if self.settings.any_size else proto

    def _on_files(self, network: OnnxNetwork, torch_network: Reference, judge: Judge) -> Parity:
        with guarded(self.target):
            folder = self.folder / "files"
            found = compare_on_files(network, torch_network, self.form, self.dataset, self.reading, judge, folder)
        self._tell_parity(found, "through files of other sizes")
        found.check(self.task.same)
        return found

    def _write_notes(self) -> None:
        """What the metadata says, as text beside the files: some runtimes do not show it."""
        beside = "" if self.options.output is None else f"{self.target.stem}."
        shape = (len(self.dataset.normalise.mean), *self.dataset.test.size)
        note = Note(shape, self.form, self.reading, self.output_name, self.settings.any_size)
        texts = {LABELS: label_lines(self.dataset.labels), README: note.text(self.target.name)}
        for name, text in texts.items():
            with guarded(self.target):
                (self.folder / f"{beside}{name}").write_text(text, encoding="utf-8")

    def _staged(self, kind: Kind) -> Path:
        return self.folder / path_of(kind, self.target).name

    def _stage(self, kind: Kind, proto: onnx.ModelProto) -> OnnxNetwork:
        """Check and write a model, and load it as a user would."""
        self._save(kind, proto)
        return OnnxNetwork(self._staged(kind))

    def _save(self, kind: Kind, proto: onnx.ModelProto) -> None:
        with guarded(self.target):
            save(proto, self._staged(kind))

    def _small_forms(self, proto: onnx.ModelProto) -> dict[Kind, onnx.ModelProto]:
        forms: dict[Kind, onnx.ModelProto] = {}
        if self.options.fp16:
            forms["fp16"] = half(proto)
        if self.options.int8:
            path = self._staged("int8")
            self.console.line("int8: calibrating on training images (minutes for a network of a thousand nodes)")
            batches = list(self._calibration())
            with guarded(self.target):
                int8(proto, path, batches)
                forms["int8"] = onnx.load(path)
        return forms

    def _calibration(self) -> Iterator[Any]:
        """Batches of training images as the model takes them, without augmentation."""
        rows = self.dataset.split(self.opened.spec.config.search.weight_part).training
        order = torch.randperm(len(rows), generator=generator(self.dataset.seed, "calibration"))
        chosen = rows[order[:CALIBRATION_IMAGES]]
        for pixels, _ in raw_batches(self.dataset.train, chosen, CALIBRATION_BATCH):
            yield self.form.both(pixels)[1]

    def _metadata(self, score: FileScore, parity: Parity) -> dict[str, str]:
        """What the file says about itself; lists and maps as JSON."""
        packages = environment(self.dataset.seed)["packages"]
        layout = self.form.layout
        values: dict[str, Any] = {
            "task": self.opened.spec.config.task,
            "labels": self.dataset.labels,
            "ignored": self.opened.spec.config.data.ignore,
            "layout": "nchw" if layout == "none" else layout,
            "preprocessing": f"{RAW} {self.form.kind} images"
            if layout != "none"
            else "none: float images, (pixels / 255 - mean) / std",
            "mean": self.dataset.normalise.mean,
            "std": self.dataset.normalise.std,
            "input_range": [0, 255 if layout == "none" else self.form.white],
            "resize": self.opened.spec.config.data.resize,  # `runtime.data.pixels.fit` says what it means
            "reading": asdict(self.reading),
            "size": self.dataset.test.size,
            "orientation": "upright: turn images as their EXIF data says before they go in",
            "outputs": self.output_name,
            "spec": self.opened.spec.name,
            "spec_hash": hashlib.sha256(read_bytes(self.opened.run.resolved)).hexdigest(),
            "blocks": [block.id for block in self.trained.model.graph.blocks],
            "arch_hash": graph_hash(self.trained.model.graph),
            "source": self.options.source,
            **score.metrics,
            "test_images": score.images,
            "parity": {"max_abs": parity.max_abs, "max_rel": parity.max_rel, "tolerance": parity.tolerance},
            "versions": {name: packages[name] for name in PACKAGES},
        }
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}

    def _file(self, kind: Kind, proto: onnx.ModelProto, score: FileScore) -> ExportedFile:
        with guarded(self.target):
            size = sum(path.stat().st_size for path in self.folder.glob(f"{self._staged(kind).name}*"))
        path = str(path_of(kind, self.target))
        return ExportedFile(kind, path, len(proto.graph.node), size, score.metrics, score.agreement)

    def _check_small_forms(self, files: tuple[ExportedFile, ...]) -> None:
        """RunError if one loses more of the deciding metric than allowed."""
        metric, before = self.task.decides, files[0].metrics[self.task.decides.name]
        for file in files[1:]:
            after = file.metrics[metric.name]
            lost = metric.lost(before, after)
            if not lost <= self.allowed + 1e-9:
                raise RunError(
                    f"{file.kind} loses too much: test {metric.title} {metric.text(after)}, float32 has "
                    f"{metric.text(before)}; {lost:.2f} {metric.unit} lost, {self.allowed:g} allowed\n"
                    f"  nothing was written; try: without --{file.kind}, or --set export.{TOLERANCE}=..."
                )

    def _latencies(self, kinds: list[Kind]) -> Iterator[Latency]:
        """Of torch and of every file, told as they come."""
        for threads in THREADS:
            for batch in LATENCY_BATCHES:
                x, image = self.form.both(some_pixels(self.dataset.test, batch))
                found = [eager_latency(self.trained.module, x, threads)]
                found += [onnx_latency(self._staged(kind), image, threads, name=kind) for kind in kinds]
                for latency in found:
                    self.console.line(latency.line())
                yield from found

    def _tell_parity(self, parity: Parity, how: str = "with torch") -> None:
        self.console.line(
            f"parity {how}: largest error {parity.max_abs:.2e} absolute, {parity.max_rel:.2e} relative to the "
            f"largest output (allowed {parity.tolerance:.1e}), {self.task.same} for {parity.agreement:.2%}"
        )

    def _tell_scores(self, scores: Mapping[str, FileScore], files: tuple[ExportedFile, ...]) -> None:
        torch_score = scores["torch"]
        metric, expected = self.task.decides, self.trained.score
        found = torch_score.metrics[metric.name]
        self.console.line(f"test {metric.title} on {torch_score.images} images: torch {metric.text(found)}")
        for file in files:
            small = "" if file.kind == "fp32" else f" (x{file.bytes / files[0].bytes:.2f}), "
            allowed = "" if file.kind == "fp32" else f"may lose {self.allowed:g} {self.task.decides.unit}"
            reached = metric.text(file.metrics[metric.name])
            self.console.line(
                f"  onnxruntime {file.kind}: {reached}, {self.task.same} as torch for {file.agreement:.2%}; "
                f"{file.nodes} nodes, {file.bytes:,} bytes{small}{allowed}"
            )
            if file.kind != "fp32" and file.bytes >= files[0].bytes:
                self.console.warn(f"{file.kind} is no smaller than fp32 and hardly faster: use the fp32 file")
        if expected is not None and abs(metric.lost(expected, found)) > NOTABLE:
            self.console.warn(
                f"{self.options.source} measured {metric.text(expected)}, the saved network now has "
                f"{metric.text(found)}: are the test images the same?"
            )
