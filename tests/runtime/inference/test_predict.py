"""`graphspec predict`: which images it takes, how it prints, and that it says what the export has measured."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

import graphspec
from compiler.errors import GraphspecError, RunError
from graphspec.cli.app import app
from runtime.inference.images import find_images
from runtime.rundir.directory import RunDir
from tests.runtime.inference.exported import CLASSES, export, printed
from tests.runtime.inference.test_model import FORMS
from tests.tiny import environment

predict = partial(printed, "predict")


@pytest.mark.parametrize("form", FORMS)
def test_answers_are_those_of_the_report_to_the_last_image(exported: RunDir, made: Path, form: str) -> None:
    result = export(exported, *FORMS[form])
    said = json.loads(predict("run", str(made / "images" / "test"), "--json"))
    assert said["model"] == "run/export/model.onnx"
    assert len(said["images"]) == result.test_images == 318
    right = sum(each["classes"][0]["label"] == Path(each["image"]).parent.name for each in said["images"])
    assert right / result.test_images == result.model.accuracy
    for each in said["images"]:
        scores = [guess["score"] for guess in each["classes"]]
        assert {guess["label"] for guess in each["classes"]} == set(CLASSES)
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-6)


def test_batches_and_the_other_forms_print_the_same(exported: RunDir, made: Path) -> None:
    folder = str(made / "images" / "test" / "dog")
    wanted = [(p.image, [(g.label, g.score) for g in p.classes]) for p in graphspec.predict("run", [folder], top=2)]
    read = list(csv.reader(io.StringIO(predict("run", folder, "--csv", "--top", "2", "--batch", "7"))))
    assert read[0] == ["image", "class1", "score1", "class2", "score2"]
    assert len(read) == 107
    for row, (image, guesses) in zip(read[1:], wanted, strict=True):
        assert (row[0], row[1], row[3]) == (image, guesses[0][0], guesses[1][0])
        assert [float(row[2]), float(row[4])] == pytest.approx([guesses[0][1], guesses[1][1]], abs=1e-6)
    head, *table = predict("run/export/model.onnx", folder, "--top", "1").splitlines()
    assert head.split() == ["image", "class1", "score1"]
    assert [line.split() for line in table] == [[p, g[0][0], f"{g[0][1]:.6f}"] for p, g in wanted]


def test_files_folders_patterns_and_stdin_name_the_same_images(exported: RunDir, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "images" / "test", tmp_path / "some images")
    (tmp_path / "some images" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "some images" / "cat" / "._000.png").write_text("of macOS")
    os.mkfifo(tmp_path / "some images" / "cat" / "pipe.png")
    shutil.copytree(made / "images" / "test" / "cat", tmp_path / "some images" / ".trash")
    (tmp_path / "some images" / "owl" / "again").symlink_to(tmp_path / "some images")
    files = [f"some images/{name}/{k:03d}.{('png', 'jpg', 'bmp')[k % 3]}" for name in CLASSES for k in range(106)]
    assert find_images(["some images"]) == files
    assert find_images(["some images/*"]) == files
    assert find_images(["some images/**"]) == files
    assert find_images(["some images/*/*.*g"]) == [file for file in files if file.endswith("g")]
    assert find_images(["some images/*/*.txt"]) == ["some images/cat/notes.txt"]
    assert find_images([files[3], "some images/dog", files[3]]) == [files[3], *files[106:212], files[3]]
    by_name = predict("run", *files[:3])
    assert predict("run", "-", stdin="\n".join(files[:3])) == by_name
    assert predict("run", files[0], "-", stdin=f"{files[1]}\n\n{files[2]}\n") == by_name
    if sys.platform != "darwin":
        odd = os.fsdecode(b"\xff.png")
        shutil.copy(files[0], odd)
        done = CliRunner().invoke(app, ["predict", "run", "-", "--csv"], input=os.fsencode(odd) + b"\r\n")
        assert done.stdout_bytes.splitlines()[1].startswith(b"\xff.png,")
    os.mkfifo("pipe.png")  # nothing waits for what may never come
    for says, names in {
        "there is no such image, folder or pattern of images": ("nowhere.png", "some images/*.gif", ""),
        "is a pipe and no regular file, so it cannot be opened": ("pipe.png",),
        "is a device and no regular file, so it cannot be opened": ("/dev/zero",),
    }.items():
        for name in names:
            with pytest.raises(RunError, match=re.escape(f"{says}\n  try: ")) as error:
                find_images([files[0], name])
            assert str(error.value).startswith(f"{name}: {says}")
    for heic in ("some images/cat/1.HEIC", "some images/owl/2.heif"):  # told of where it cannot be read
        Path(heic).write_bytes(b"\0\0\0\x18ftypheic")
    assert set(find_images(["some images"])) - {*files} == {"some images/cat/1.HEIC", "some images/owl/2.heif"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="empty: there is no image in it"):
        find_images(["empty"])


def test_a_name_with_brackets_is_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "a[1].png").touch()
    assert find_images([str(tmp_path / "a[1].png")]) == [str(tmp_path / "a[1].png")]


def test_an_unreadable_image_stops_no_other_and_ends_with_an_error(exported: RunDir, made: Path) -> None:
    good = made / "images" / "test" / "cat" / "000.png"
    Path("cut.png").write_bytes(good.read_bytes()[:80])
    done = CliRunner().invoke(app, ["predict", "run", str(good), "cut.png", str(good), "--json"])
    assert isinstance(done.exception, GraphspecError)
    assert str(done.exception).startswith("1 of 3 images cannot be read: cut.png: ")
    first, cut, last = json.loads(done.stdout)["images"]
    assert first == last
    assert (first["error"], cut["image"], cut["classes"]) == ("", "cut.png", [])
    assert f"cut.png: {cut['error']}" in str(done.exception)
    assert [each.error != "" for each in graphspec.predict(exported, [good, "cut.png"])] == [False, True]


def test_csv_and_json_exclude_each_other(exported: RunDir) -> None:
    assert CliRunner().invoke(app, ["predict", "run", "x.png", "--csv", "--json"]).exit_code == 2


WITHOUT_TORCH = """
import sys
from graphspec.cli.main import main
for line in sys.argv[1:]:
    sys.argv = ["graphspec", *line.split()]
    try:
        main()
    except SystemExit as end:
        assert not end.code, line
print("LOADED", sorted(set(sys.modules) & {"torch", "torchvision", "sklearn", "tensorboard", "onnx"}))
"""


def test_both_commands_do_without_torch(exported: RunDir, made: Path) -> None:
    folder = made / "images" / "test"
    lines = [f"predict run {folder}", "evaluate run", f"evaluate run/export/model.onnx {folder} -o page.html"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *lines], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "LOADED []", done.stderr
