"""`graphspec evaluate`: its figures are those of the export, and its page shows what the model gets wrong."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import graphspec
from compiler.errors import RunError
from runtime.data.pixels import read_pixels
from runtime.export.run_export import ExportResult
from runtime.inference.evaluate import MISTAKES, run_evaluate
from runtime.inference.figures import Evaluation
from runtime.inference.labelled import Labelled, given_images
from runtime.inference.model import ExportedModel
from runtime.reporting.evaluation import page
from runtime.reporting.page import write_report
from runtime.rundir.directory import RunDir
from runtime.rundir.files import read_json
from tests.runtime.inference.exported import CLASSES, SPEC, export, make_run, printed, write_images
from tests.runtime.inference.test_model import FORMS
from tests.tiny import TINY, environment

evaluate = partial(printed, "evaluate")


@pytest.mark.parametrize("form", FORMS)
def test_figures_are_those_of_the_export_to_the_last_image(exported: RunDir, made: Path, form: str) -> None:
    result = export(exported, *FORMS[form])
    found = graphspec.evaluate(exported)
    assert (found.images, found.accuracy) == (result.test_images, result.model.accuracy)
    answers = {one.image: one.classes[0] for one in graphspec.predict(exported, [made / "images" / "test"])}
    wrong = [(guess.score, path) for path, guess in answers.items() if guess.label != Path(path).parent.name]
    assert [(each.confidence, each.image) for each in found.mistakes] == sorted(wrong, key=lambda w: -w[0])[:MISTAKES]
    for each in found.mistakes:
        assert (answers[each.image].label, Path(each.image).parent.name) == (each.answer, each.truth)
    assert found.confidence == pytest.approx(np.mean([guess.score for guess in answers.values()]))


def test_the_run_and_its_report_have_what_was_evaluated(exported: RunDir) -> None:
    assert 'id="evaluation"' not in write_report(exported).read_text()
    said = json.loads(evaluate("run", "--json"))
    assert read_json(exported.export / "evaluation.json", Evaluation) == said
    pictures = [each["picture"] for each in said["mistakes"]]
    report = write_report(exported).read_text()
    assert 'href="#evaluation"' in report
    for shown in (f"{said['accuracy']:.2%} of 318 images are right", f"{said['calibration_error']:.2%}", *pictures):
        assert shown in report
    for each, picture in zip(said["mistakes"], pictures, strict=True):
        with (
            Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))) as small,
            Image.open(each["image"]) as file,
        ):
            assert np.array_equal(np.asarray(small), np.asarray(file))  # small ones are kept to the bit
    export(exported)
    assert not (exported.export / "evaluation.json").exists(), "it is of another file"


def test_the_lines_for_people(exported: RunDir, made: Path) -> None:
    found, text = graphspec.evaluate(exported), evaluate("run")
    lines = [line.split() for line in text.splitlines()]
    assert text.startswith(f"{found.accuracy:.2%} of 318 images are right (95% interval: ")
    assert f"run/export/model.onnx on the test images of folder in {made / 'images'}\n" in text
    for each in found.classes:
        precision, recall = (
            f"{100 * value:.2f}%" if value is not None else "-" for value in (each.precision, each.recall)
        )
        assert [each.label, "106", str(each.answers), precision, recall] in lines
    for row, truth in enumerate(found.classes):
        for column, answer in enumerate(found.classes):
            count = found.confusion[row][column]
            assert ([str(count), truth.label, answer.label] in lines) == (row != column and count > 0)


def test_any_folder_of_classes_and_a_page_of_its_own(exported: RunDir, made: Path, tmp_path: Path) -> None:
    model, images = "run/export/model.onnx", made / "images"
    whole = json.loads(evaluate(model, str(images / "test"), "--json"))
    assert json.loads(evaluate("run", str(images), "--json", "-q")) == whole, "the test part of a data set"
    for name in ("owl", "cat"):
        shutil.copytree(images / "test" / name, tmp_path / "some" / name)
    some = json.loads(evaluate(model, "some", "--json", "-o", "page.html"))
    assert [each["images"] for each in some["classes"]] == [106, 0, 106]
    assert some["classes"][1]["recall"] is None
    assert [some["confusion"][k] for k in (0, 2)] == [whole["confusion"][k] for k in (0, 2)]
    assert not (exported.export / "evaluation.json").exists()
    text = Path("page.html").read_text()
    assert text.count("<img src=") == len(some["mistakes"])
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    (tmp_path / "some" / "bird").mkdir()
    with pytest.raises(RunError, match="some: has classes that the model does not know: bird; it knows cat"):
        evaluate(model, "some")
    with pytest.raises(RunError, match=r"a file alone does not say what to evaluate it on\n  try: "):
        evaluate(model)


@pytest.mark.parametrize("labels", [("cat", "dog", ""), (0, 1, -1)])
def test_images_that_training_has_ignored_may_be_there_or_not(tmp_path: Path, labels: tuple[object, ...]) -> None:
    write_images(tmp_path / "parts", train=30, test=0)
    paths = sorted((tmp_path / "parts").glob("train/*/*"))
    given = [labels[CLASSES.index(path.parent.name)] for path in paths]
    model = ExportedModel.open(Path(_trained_without(tmp_path, list(zip(paths, given, strict=True))).path))
    pixels = np.stack([read_pixels(path, model.shape, model.reading)[0] for path in paths])
    whole, known = np.array(given), np.array(given) != labels[2]
    for name, rows in (("all", known | True), ("some", known)):
        np.savez(tmp_path / f"{name}.npz", x=pixels[rows], y=whole[rows])
        lines = [f"{path},{label}" for path, label, kept in zip(paths, given, rows, strict=True) if kept]
        (tmp_path / f"{name}.csv").write_text("\n".join(["path,label", *lines]))
    files = [tmp_path / name for name in ("all.npz", "some.npz", "all.csv", "some.csv")]
    found = [run_evaluate(model.path, file) for file in files]
    assert {each.images for each in found} == {60}
    assert len({each.accuracy for each in found}) == 1


def _trained_without(folder: Path, rows: list[tuple[Path, object]]) -> ExportResult:
    """A model trained beside a table whose last label says nothing."""
    (folder / "t.csv").write_text("\n".join(["path,label", *(f"{path},{label}" for path, label in rows)]))
    table = ("data.name=table", f"data.file={folder / 't.csv'}", f"data.ignore=[{rows[-1][1]!r}]")
    spec = SPEC.replace("classes: 3", "classes: 2").replace("{name: folder, root: images}", "{near_duplicates: null}")
    return export(make_run(folder, *table, spec=spec))


def test_archives_tables_and_arrays_are_the_folder_that_they_are_made_of(
    exported: RunDir, made: Path, tmp_path: Path
) -> None:
    root, model = made / "images", ExportedModel.open(exported.export / "model.onnx")
    paths = sorted(root.glob("test/*/*"))
    shutil.make_archive(str(tmp_path / "test"), "gztar", root / "test")
    shutil.make_archive(str(tmp_path / "all"), "zip", root)
    (tmp_path / "t.csv").write_text("path,label\n" + "".join(f"{path},{path.parent.name}\n" for path in paths))
    pixels = np.stack([read_pixels(path, model.shape, model.reading)[0] for path in paths])
    np.savez(tmp_path / "a.npz", x=pixels, y=np.array([path.parent.name for path in paths]))
    wanted = asdict(run_evaluate(exported, root / "test"))
    for name in ("test.tar.gz", "all.zip", "t.csv", "a.npz"):
        found = asdict(run_evaluate(exported, tmp_path / name))
        assert found["data"] == str(tmp_path / name)
        same = [key for key in wanted if key not in ("data", "mistakes")]
        assert {key: found[key] for key in same} == {key: wanted[key] for key in same}
        assert [each["confidence"] for each in found["mistakes"]] == [each["confidence"] for each in wanted["mistakes"]]
        assert all(each["picture"] for each in found["mistakes"])
    np.savez(tmp_path / "a.npz", x=pixels, y=np.array(["bird"] * len(pixels)))
    (tmp_path / "t.csv").write_text(f"path,label\n{paths[0]},bird\n")
    for name in ("a.npz", "t.csv"):
        with pytest.raises(RunError, match="has classes that the model does not know: bird; it knows cat, dog, owl"):
            run_evaluate(exported, tmp_path / name)


@pytest.mark.parametrize("form", ["", "zip"])
def test_classes_of_nested_folders_are_found_where_they_lie(exported: RunDir, tmp_path: Path, form: str) -> None:
    labels = ["pets/cat", "pets/dog", "wild"]
    model = ExportedModel.open(exported.export / "model.onnx")
    model = replace(model, metadata=model.metadata.model_copy(update={"labels": labels}))
    for number, label in enumerate((*labels, "pets/owl")):
        (tmp_path / "set" / label).mkdir(parents=True)
        Image.new("RGB", (16, 12), (number,) * 3).save(tmp_path / "set" / label / "a.png")

    def given() -> Labelled:
        packed = shutil.make_archive("set", form, "set") if form else "set"
        return given_images(Path(packed), model, None)

    with pytest.raises(RunError, match="does not know: pets/owl; it knows pets/cat"):
        given()
    shutil.rmtree(tmp_path / "set" / "pets" / "owl")
    found = given()
    assert [found.names[row].split("/")[-2] for row in np.argsort(found.truths)] == ["cat", "dog", "wild"]


def test_unreadable_images_are_left_out_and_told(exported: RunDir, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "images" / "test", tmp_path / "test")
    cut = tmp_path / "test" / "dog" / "000.png"
    cut.write_bytes(cut.read_bytes()[:60])
    told: list[str] = []
    found = run_evaluate(exported, tmp_path / "test", warn=told.append)
    assert found.images == 317
    assert list(found.unreadable) == [str(cut)]
    assert len(told) == 1
    assert told[0].startswith(f"1 of 318 images cannot be read and are left out: {cut}: ")
    assert "1 images cannot be read" in page(asdict(found))
    for path in tmp_path.glob("test/*/*"):
        path.write_text("no image")
    with pytest.raises(RunError, match=r"none of 318 images can be read: .* and 313 more\n  try: mend them"):
        run_evaluate(exported, tmp_path / "test")


@pytest.mark.parametrize("form", ["", "zip", "own"])
def test_what_is_passed_over_is_told(exported: RunDir, made: Path, tmp_path: Path, form: str) -> None:
    images = made / "images" if form == "own" else Path(shutil.copytree(made / "images", tmp_path / "images"))
    (images / "test" / "beside.txt").write_text("no image beside the class folders")
    notes = images / "test" / "cat" / "notes.txt"
    notes.write_text("no image")
    data = Path(shutil.make_archive("all", form, images)) if form == "zip" else images
    told: list[str] = []
    run_evaluate(exported, None if form == "own" else data, warn=told.append)
    notes.unlink()
    where = {"": "test/ (1 .txt)", "zip": "all.zip/ (2 .txt)", "own": "test/ (1 .txt)"}[form]
    assert told == [f"passed over in {where}"]


@pytest.mark.skipif(sys.platform == "darwin", reason="its disks have no such names")
def test_names_that_are_no_text(exported: RunDir, tmp_path: Path) -> None:
    """Such as `\\xff.png`, or with a line end, are read, written down and shown."""
    wrong = Path(graphspec.evaluate(exported).mistakes[0].image)
    folder = tmp_path / "odd" / wrong.parent.name
    names = [os.fsdecode(b"\xff\xfe.png"), "a\nb.png", "<b>.png", wrong.name]
    folder.mkdir(parents=True)
    for name in names:
        shutil.copy(wrong, folder / name)
    (folder / os.fsdecode(b"\xfd.png")).write_text("no image")
    said = json.loads(evaluate("run", "odd", "--json", "-o", "page.html"))
    assert len(said["mistakes"]) == said["images"] == 4
    assert list(said["unreadable"]) == [rf"odd/{folder.name}/\udcfd.png"]
    text = Path("page.html").read_text()
    assert rf"odd/{folder.name}/\udcff\udcfe.png" in text
    assert "&lt;b&gt;.png" in text
    assert "<b>.png" not in text
    assert "4 images are right" in evaluate("run", "odd")


def test_test_images_that_have_changed_or_gone(tmp_path: Path, made: Path) -> None:
    for part in ("train", "test"):
        shutil.copytree(made / "images" / part, tmp_path / "images" / part)
    run, told = make_run(tmp_path), list[str]()
    export(run)
    (tmp_path / "images" / "test" / "owl" / "000.png").unlink()
    run_evaluate(run, warn=told.append)
    assert told == ["the training had 318 test images, now there are 317"]
    (tmp_path / "images" / "test" / "owl").rename(tmp_path / "images" / "test" / "bird")
    with pytest.raises(RunError, match=r"its test images cannot be opened: .*do not hold the same classes") as error:
        run_evaluate(run)
    assert str(error.value).endswith(
        f"try: graphspec evaluate {run.path} FOLDER, with a folder of images for each class"
    )
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(RunError, match="its test images cannot be opened: "):
        run_evaluate(run)


@pytest.mark.parametrize("packed", [False, True])
def test_the_test_images_that_training_has_chosen_are_found_without_torch(tmp_path: Path, packed: bool) -> None:
    write_images(tmp_path / "parts", train=30, test=0)
    images = tmp_path / "parts" / "train"
    if packed:
        images = Path(shutil.make_archive(str(tmp_path / "images"), "gztar", images))
    run = make_run(tmp_path, f"data.root={images}", "data.near_duplicates=null")
    wanted = export(run)
    program = "import sys, graphspec; print(graphspec.evaluate('run').accuracy); assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == wanted.model.metrics["accuracy"]
    found = json.loads((run.export / "evaluation.json").read_text())
    assert found["images"] == wanted.test_images == 18
    assert all(mistake["picture"] for mistake in found["mistakes"])


SIGNALS = """\
graphspec: 1
name: signals
input: [2, 24]
classes: 3
blocks:
  whole:
    type: "[2, T] -> [classes]"
    nodes:
      conv: {op: conv, kernel: 3, channels: 8, from: in}
      pool: {op: global_avg_pool, from: conv}
      out: {op: linear, from: pool}
network: [whole]
data: {name: fake, fake_size: 240}
"""


@pytest.mark.parametrize("spec", [TINY, SIGNALS], ids=["digits", "signals"])
def test_sets_without_files_are_opened_as_in_training(tmp_path: Path, spec: str) -> None:
    run = make_run(tmp_path, spec=spec)
    result = export(run)
    found = run_evaluate(run)
    assert (found.images, found.accuracy) == (result.test_images, result.model.accuracy)
    assert all(re.fullmatch(r"test image \d+", each.image) for each in found.mistakes)
    assert all((each.picture != "") == (spec is TINY) for each in found.mistakes)
    assert 'id="evaluation"' in write_report(run).read_text()
    if spec is SIGNALS:
        with pytest.raises(RunError, match=r"the model reads arrays of shape \(2, 24\), which image files are not"):
            graphspec.predict(run, [__file__])


def test_a_damaged_evaluation_is_an_error_of_the_report(exported: RunDir) -> None:
    run_evaluate(exported)
    file = exported.export / "evaluation.json"
    whole = json.loads(file.read_text())
    mistake = whole["mistakes"][0]
    for damage in (
        {"confusion": [["3"]]},
        {"accuracy": "0.5"},
        {"classes": [whole["classes"][0] | {"recall": True}]},
        {"interval": [0.5]},
        {"mistakes": [mistake | {"picture": "https://example.org/a.png"}]},
        {"mistakes": [mistake | {"picture": 'data:image/png;base64,"><script>'}]},
    ):
        file.write_text(json.dumps(whole | damage))
        with pytest.raises(
            RunError, match=r"evaluation\.json: is damaged: .*\n  try: graphspec evaluate with this run"
        ):
            write_report(exported)
    file.write_text(json.dumps(whole | {"confusion": [[10**30], [-1, 2], []], "classes": whole["classes"][1:]}))
    write_report(exported)  # it says nothing of use, and does no harm


def test_many_classes_are_shown_by_their_worst(exported: RunDir) -> None:
    found = asdict(run_evaluate(exported))
    labels = [f"class{k}" for k in range(40)]
    matrix = np.diag(range(40))
    matrix[7, 9] = 5
    classes = [{"label": label, "images": 1, "answers": 1, "precision": 1.0, "recall": 1.0} for label in labels]
    text = page({**found, "classes": classes, "confusion": matrix.tolist(), "mistakes": []})
    assert "Confusion matrix" not in text
    assert "<td>5</td><td>class7</td><td>class9</td>" in text
    assert "There are no mistakes." in text
