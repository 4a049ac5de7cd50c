"""What `compile` finds out before anything is trained: about the data, and about settings that cannot work."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compiler.errors import GraphspecError, PassError, RunError, SpecError
from graphspec import api
from runtime.data import survey
from tests.tiny import TINY, write_spec

FOLDER = {"data.name": "folder", "data.root": "images"}


def write_images(folder: Path, counts: dict[str, int], test: int = 2, size: int = 8) -> None:
    """Grey images of noise around a shade of their class, so many in `train`, and `test` of each class in `test`."""
    random = np.random.default_rng(0)
    for label, (name, count) in enumerate(counts.items()):
        for part, images in (("train", count), ("test", test)):
            (folder / part / name).mkdir(parents=True)
            for number in range(images):
                shade = 255 * (label + 0.5) / len(counts) + random.normal(0, 8, (size, size))
                image = Image.fromarray(shade.clip(0, 255).astype(np.uint8))
                image.save(folder / part / name / f"{number}.png")


def compiled(folder: Path, **settings: object) -> api.CompiledSpec:
    overrides = {**FOLDER, "data.root": str(folder / "images"), "classes": 2, **settings}
    return api.compile(write_spec(folder), overrides=overrides, dry_run=True)


def test_images_in_folders_are_counted(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"cat": 700, "dog": 900})
    (tmp_path / "images" / "train" / ".hidden").mkdir()
    found = compiled(tmp_path)
    assert found.data == f"1,600 training images of 2 classes in {tmp_path / 'images'}; none was read"
    assert found.warnings == ()


def test_a_large_set_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "COUNTED", 5)
    write_images(tmp_path / "images", {"cat": 4, "dog": 4})
    assert "neither counted nor read" in compiled(tmp_path).data


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"cat": 800, "dog": 40}, "'cat' has 800 training images, 'dog' 40"),
        ({"cat": 800, "dog": 2}, "1 of 2 classes have fewer than 3 training images ('dog': 2)"),
    ],
)
def test_numbers_of_images_that_are_told_of(tmp_path: Path, counts: dict[str, int], says: str) -> None:
    write_images(tmp_path / "images", counts)
    (warning,) = compiled(tmp_path).warnings
    assert says in warning


def test_data_that_is_elsewhere_is_no_error(tmp_path: Path) -> None:
    found = compiled(tmp_path)
    assert found.data == f"folder was not looked at: there is no folder {tmp_path / 'images'}"
    assert found.warnings == (f"{found.data}; set data.root or make it before the search",)
    nowhere = {"data.name": "mnist", "input": [1, 28, 28], "data.root": str(tmp_path), "classes": 10}
    nowhere |= {"search.gates.gamma": 1e-3}
    (warning,) = compiled(tmp_path, **nowhere).warnings
    assert warning == f"data set 'mnist' is not in {tmp_path}: set data.download or data.root before the search"
    assert compiled(tmp_path, **nowhere, **{"data.download": True}).warnings == ()
    assert "the search opens it" in compiled(tmp_path, **{"data.name": "mine:images"}).data


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"classes": 3}, "has 2 classes, the spec says 3\n  try: `classes: 2`"),
        ({"data.root": "/proc/self/fd"}, "must hold the folders train/ and test/"),
        ({"data.name": "digits"}, "has 10 classes, the spec says 2"),
        ({"data.name": "mnist", "classes": 10}, "are 1x28x28 (channels first), the spec's input is 1x8x8"),
        ({"data.name": "imagenet", "data.in_memory": True}, "in_memory: true cannot be had for 'imagenet'"),
        ({"data.name": "mnist", "data.in_memory": False}, "in_memory: false cannot be had for 'mnist'"),
        ({"classes": 1}, "tells at least 2 classes apart, found 1"),
    ],
)  # fmt: skip
def test_data_that_does_not_fit_is_refused(tmp_path: Path, settings: dict[str, object], says: str) -> None:
    write_images(tmp_path / "images", {"cat": 700, "dog": 900})
    with pytest.raises((RunError, SpecError), match=re.escape(says)):
        compiled(tmp_path, **settings)


def test_classes_that_only_one_part_has_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"cat": 700, "dog": 900})
    (tmp_path / "images" / "test" / "horse").mkdir()
    with pytest.raises(RunError, match="do not hold the same classes: horse differ"):
        compiled(tmp_path)


def test_a_million_classes_are_warned_about(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, TINY.replace("classes: 10", "classes: 1000000").replace("name: digits", "name: fake"))
    said = " ".join(api.compile(spec, dry_run=True).warnings)
    assert "classes 1,000,000: the layers that give so many values have 17,000,000 parameters, 0.063 GiB" in said


def test_data_that_no_spec_names_is_a_doubt(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, TINY.replace("data: {name: digits}\n", ""))
    (warning,) = api.compile(spec, overrides={"input": [1, 16, 16]}, dry_run=True).warnings
    assert "are 1x8x8 (channels first), the spec's input is 1x16x16" in warning


# -- settings that cannot work ----------------------------------------------------------------------------------------


def test_a_search_in_which_no_gate_can_close_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"cat": 20, "dog": 20})
    slow = {"search.epochs": 24, "search.gates.gamma": 0.01, "search.batch_size": 16}
    with pytest.raises(SpecError) as caught:
        compiled(tmp_path, **slow)
    assert "about 100 gate steps at the full learning rate, and the search has only 24" in str(caught.value)
    epochs, gamma = re.findall(r"to ([\d.]+) or more", str(caught.value))[::-1]
    auto = {"search.gates.gamma": "auto", "budget.params": 1000}
    for way in ({"search.epochs": int(epochs)}, {"search.gates.gamma": float(gamma)}, auto, {"gates.init": 0.2}):
        compiled(tmp_path, **(slow | way))
    assert "too short to prune" in compiled(tmp_path, **(slow | {"search.epochs": 51})).warnings[0]
    for way in ({"search.epochs": 0}, {"search.gates.gamma": 0}, {"search.strategy": "random"}):
        compiled(tmp_path, **(slow | way))


def test_a_budget_below_the_smallest_network_is_refused(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    for key in ("params", "flops"):
        with pytest.raises(PassError, match=r"the narrowest network .* costs more than the budget") as caught:
            api.compile(spec, overrides={f"budget.{key}": 100}, dry_run=True)
        least = re.search(r"has (?P<params>[\d,]+) params and (?P<flops>[\d,]+) FLOPs", str(caught.value))
        assert least is not None
        enough = int(least[key].replace(",", ""))
        api.compile(spec, overrides={f"budget.{key}": enough}, dry_run=True)
        with pytest.raises(PassError):
            api.compile(spec, overrides={f"budget.{key}": enough - 1}, dry_run=True)


# -- sets that others have failed with --------------------------------------------------------------------------------

FEW = {"search.batch_size": 8, "retrain.batch_size": 8, "search.gates.gamma": 0.3, "retrain.epochs": 2}


@pytest.mark.parametrize(
    ("counts", "doubt"),
    [
        ({"cat": 20, "dog": 20}, ""),
        ({"cat": 200, "dog": 10}, "the classes are uneven"),
        ({f"kind{number:03}": 1 for number in range(300)}, "300 of 300 classes have fewer than 3"),
    ],
    ids=["40 images", "1:20", "300 classes of one image"],
)
def test_a_hard_set_ends_with_a_model_and_its_warning(
    in_process: Path, counts: dict[str, int], doubt: str, capfd: pytest.CaptureFixture[str]
) -> None:
    write_images(in_process / "images", counts, test=1)
    spec, settings = write_spec(in_process), {**FOLDER, **FEW, "classes": len(counts)}
    made = api.compile(spec, overrides=settings, dry_run=True)
    assert [doubt in warning for warning in made.warnings] == [True] * bool(doubt)
    for job, target in ((api.search, spec), (api.retrain, None)):
        job(target, overrides=settings if target else (), quiet=True)  # type: ignore[operator]  # both take these
        said = capfd.readouterr().err
        assert [said.count(f"warning: {warning}\n") for warning in made.warnings] == [1] * bool(doubt)
    exported = api.export(latency=False, quiet=True)
    assert Path(exported.path).is_file()


def test_figures_of_a_network_that_has_learned_nothing_are_told(
    in_process: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {"data.name": "fake", "search.batch_size": 8, "search.gates.gamma": 0.3, "retrain.batch_size": 8}
    api.search(write_spec(in_process), overrides=settings, quiet=True)
    assert "warning: validation accuracy" in (said := capfd.readouterr().err)
    assert "on 26 images is within the noise of chance (11.54% +- 12.53%)" in said
    api.retrain(quiet=True)
    assert "warning: test accuracy" in (said := capfd.readouterr().err)
    assert "on 128 images is within the noise of chance" in said


# -- jobs say and refuse the same -------------------------------------------------------------------------------------

DOUBTFUL = {**FEW, "search.gates.gamma": 50, "search.schedule.minimum": 1, "retrain.schedule.warmup": 2}


def test_a_job_says_once_what_compile_says(in_process: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_images(in_process / "images", {"cat": 100, "dog": 4})
    made = api.compile(write_spec(in_process), overrides={**FOLDER, **DOUBTFUL, "classes": 2})
    assert len(made.warnings) == 4
    api.search(made.run, quiet=True)
    said = capfd.readouterr().err
    assert [said.count(f"warning: {warning}\n") for warning in made.warnings] == [1] * 4
    api.retrain(made.run, quiet=True)
    said = capfd.readouterr().err
    assert ["uneven" in warning or "retrain" in warning for warning in made.warnings] == [
        said.count(f"warning: {warning}\n") == 1 for warning in made.warnings
    ]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"search.gates.gamma": 1e-4}, SpecError, "error: too short to prune"),
        ({"budget.params": 10, "budget.flops": 10}, PassError, "the narrowest network"),
    ],
)
def test_a_run_is_not_searched_with_settings_that_compile_refuses(
    in_process: Path, change: dict[str, object], error: type[GraphspecError], says: str
) -> None:
    write_images(in_process / "images", {"cat": 20, "dog": 20})
    spec, settings = write_spec(in_process), {**FOLDER, **FEW, "classes": 2}
    with pytest.raises(error, match=says) as compiling:
        api.compile(spec, overrides={**settings, **change}, dry_run=True)
    made = api.compile(spec, overrides=settings)
    assert made.run is not None
    with pytest.raises(error, match=says) as searching:
        api.search(made.run, overrides=change, quiet=True)
    message = str(compiling.value).rpartition("error: ")[2].partition("\n")[0]
    assert message in str(searching.value)
    with pytest.raises(error, match=says):
        api.search(made.run, overrides=change, seeds=[0, 1], quiet=True)
    assert not made.run.search.is_started
    assert not made.run.seed_runs()
    api.search(made.run, quiet=True)
    found = made.run.search.arch.read_bytes()
    with pytest.raises(error, match=says):
        api.search(made.run, overrides=change, overwrite=True, quiet=True)
    assert made.run.search.arch.read_bytes() == found, "what was found before is kept"


@pytest.mark.parametrize("counts", [{"cat": 20, "dog": 20}, {f"kind{number:03}": 1 for number in range(300)}])
def test_a_hard_set_with_the_usual_settings_is_one_error(in_process: Path, counts: dict[str, int]) -> None:
    write_images(in_process / "images", counts, test=1)
    usual = {**FOLDER, "classes": len(counts), "search.gates.gamma": 1e-3, "search.epochs": 20}
    with pytest.raises(GraphspecError, match="too short to prune"):
        api.search(write_spec(in_process), overrides=usual)
    assert not Path("runs").exists()
