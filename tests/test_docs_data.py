"""Every layout of docs/data.md is read by the line of YAML that stands below it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from compiler.language.config import DataConfig
from runtime.data.dataset import load_dataset
from tests.tasks import class_task
from tests.test_docs import ROOT, Snippet, snippets


def lay_out(text: str) -> None:
    """Write the images whose paths are listed, each with some like it beside it; those in an archive are packed."""
    seed = 0
    for path in map(Path, text.split()):
        archive, folder = path.parts[0], Path(f"{path.parts[0]} unpacked", *path.parts[1:-1])
        folder = folder if archive.endswith((".zip", ".tar", ".tar.gz")) else path.parent
        folder.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".heic":
            pytest.importorskip("pillow_heif").register_heif_opener()
        channels = 4 if path.parts[0] == "cutouts" else 3
        for name in (path.name, *(f"{path.stem} copy{number}{path.suffix}" for number in ("", *range(9)))):
            seed += 1
            noise = np.random.default_rng(seed).integers(0, 256, (16, 16, channels), np.uint8)
            Image.fromarray(noise).save(folder / name)
        for ending, form in ((".zip", "zip"), (".tar", "tar"), (".tar.gz", "gztar")):
            if archive.endswith(ending):
                shutil.make_archive(archive.removesuffix(ending), form, f"{archive} unpacked")


def layouts() -> list[tuple[str, list[Snippet]]]:
    """What is laid out before each line of YAML of the page about data."""
    found: list[tuple[str, list[Snippet]]] = []
    before: list[Snippet] = []
    for snippet in snippets(ROOT / "docs" / "data.md"):
        if snippet.info == "text layout":
            before = [snippet]
        elif snippet.info == "yaml data":
            found.append((snippet.text, before))
        elif snippet.language in ("csv", "json") or snippet.info == "python layout":
            before = [*before, snippet]
    return found


@pytest.mark.parametrize(("text", "before"), layouts(), ids=lambda value: value if isinstance(value, str) else "")
def test_each_layout_is_read_by_the_line_that_is_said_to(
    text: str, before: list[Snippet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for snippet in before:
        if snippet.info == "text layout":
            lay_out(snippet.text)
        elif snippet.language == "python":
            exec(compile(snippet.text, snippet.where, "exec"), {})  # noqa: S102  (what the reader would do)
        else:
            Path(snippet.info.split()[1]).write_text(snippet.text)
    said = yaml.safe_load(text)
    config = DataConfig.model_validate(said["data"])
    digits = config.name == "digits"
    shape = tuple(said.get("input", (1, 8, 8) if digits else (3, 16, 16)))
    dataset = load_dataset(config, shape, class_task(10 if digits else 2), seed=0)
    assert config.ignore or not any(part.passed.counts for part in dataset.listings)
    names = [name.removeprefix("pets/") for name in dataset.labels]
    assert names == [str(digit) for digit in range(10)] if digits else names == ["cat", "dog"]
    assert len(dataset.test.targets) > 0
    assert len(dataset.split(0.5).validation) > 0
