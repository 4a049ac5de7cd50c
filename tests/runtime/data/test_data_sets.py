"""The data sets a spec can name: real loaders on small real files, and what is said when something is wrong."""

import gzip
import hashlib
import http.server
import pickle
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from PIL import ExifTags, Image
from scipy.io import savemat

from compiler.errors import RunError
from compiler.language.config import DataConfig
from runtime.data.dataset import Dataset, Share, load_dataset
from runtime.data.sources import FileImages, MemoryImages
from tests.tasks import class_task

RANDOM = np.random.default_rng(5)


def make_folder(root: Path, *, test: str = "val", per_class: int = 12, size: tuple[int, int] = (10, 14)) -> Path:
    """Two classes of PNG images, width x height `size`, with one grey-scale and one transparent file."""
    for half, count in (("train", per_class), (test, 4)):
        for name in ("cat", "dog"):
            folder = root / half / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = RANDOM.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                mode = {0: "L", 1: "RGBA"}.get(number, "RGB")
                Image.fromarray(pixels).convert(mode).save(folder / f"{number:03}.png")
    return root


def folder_set(root: Path, **settings: object) -> Dataset:
    config = DataConfig.model_validate({"name": "folder", "root": str(root), "workers": 0, **settings})
    return load_dataset(config, (3, 8, 8), class_task(2), seed=1)


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    """The format of MNIST: magic number, sizes big-endian, bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_and_fashion_mnist_are_read_from_their_files(tmp_path: Path, name: str, folder: str) -> None:
    images = {
        half: RANDOM.integers(0, 256, (count, 28, 28), dtype=np.uint8) for half, count in (("train", 60), ("t10k", 20))
    }
    for half, pixels in images.items():
        write_idx(tmp_path / folder / "raw" / f"{half}-images-idx3-ubyte", pixels)
        write_idx(tmp_path / folder / "raw" / f"{half}-labels-idx1-ubyte", np.arange(len(pixels), dtype=np.uint8) % 10)
    dataset = load_dataset(DataConfig(name=name, root=str(tmp_path)), (1, 28, 28), class_task(10), seed=0)
    assert isinstance(dataset.train, MemoryImages)
    assert isinstance(dataset.test, MemoryImages)
    assert np.array_equal(dataset.train.images[:, 0].numpy(), images["train"])
    assert np.array_equal(dataset.test.images[:, 0].numpy(), images["t10k"])
    assert dataset.test.targets.tolist() == [i % 10 for i in range(20)]
    assert len(dataset.labels) == 10


def pickled(path: Path, content: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_is_read_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, classes: int) -> None:
    # The only thing replaced is torchvision's check that the files are the published ones.
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    key, folder = ("labels", "cifar-10-batches-py") if classes == 10 else ("fine_labels", "cifar-100-python")
    batches = [f"data_batch_{n}" for n in range(1, 6)] if classes == 10 else ["train"]
    written = {}
    for batch in [*batches, "test_batch" if classes == 10 else "test"]:
        written[batch] = RANDOM.integers(0, 256, (200, 3, 32, 32), dtype=np.uint8)
        labels = [i % classes for i in range(200)]
        pickled(tmp_path / folder / batch, {"data": written[batch].reshape(200, -1), key: labels})
    names = [f"name{i}" for i in range(classes)]
    pickled(tmp_path / folder / "batches.meta", {"label_names": names})
    pickled(tmp_path / folder / "meta", {"fine_label_names": names})
    dataset = load_dataset(DataConfig(name=name, root=str(tmp_path)), (3, 32, 32), class_task(classes), seed=0)
    assert isinstance(dataset.train, MemoryImages)
    assert np.array_equal(dataset.train.images.numpy(), np.concatenate([written[b] for b in batches]))
    assert dataset.labels == tuple(names)


def test_svhn_is_read_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.svhn, "check_integrity", lambda *_: True)
    pixels = RANDOM.integers(0, 256, (32, 32, 3, 50), dtype=np.uint8)
    labels = np.arange(50) % 10 + 1  # SVHN calls the digit zero 10
    for half in ("train", "test"):
        savemat(tmp_path / f"{half}_32x32.mat", {"X": pixels, "y": labels[:, None].astype(np.uint8)})
    dataset = load_dataset(DataConfig(name="svhn", root=str(tmp_path)), (3, 32, 32), class_task(10), seed=0)
    assert isinstance(dataset.train, MemoryImages)
    assert np.array_equal(dataset.train.images.numpy(), pixels.transpose(3, 2, 0, 1))
    assert dataset.train.targets.tolist() == [n % 10 for n in labels]


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "mnist", "svhn"])
def test_a_missing_set_names_the_path_and_is_not_downloaded(tmp_path: Path, name: str) -> None:
    shape = (1, 28, 28) if "mnist" in name else (3, 32, 32)
    with pytest.raises(RunError, match=r"data.download: true") as caught:
        load_dataset(
            DataConfig(name=name, root=str(tmp_path)), shape, class_task(100 if name == "cifar100" else 10), seed=0
        )
    assert f"{tmp_path} (looked for {tmp_path}/" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_root_comes_from_the_environment_when_the_spec_gives_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPHSPEC_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(RunError, match=r"elsewhere/MNIST/raw"):
        load_dataset(DataConfig(name="mnist"), (1, 28, 28), class_task(10), seed=0)
    monkeypatch.delenv("GRAPHSPEC_DATA")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=rf"{tmp_path}/data/MNIST/raw"):
        load_dataset(DataConfig(name="mnist"), (1, 28, 28), class_task(10), seed=0)


def test_of_several_processes_one_fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {}
    for half in ("train", "t10k"):
        for kind, values in (("images-idx3", np.zeros((20, 28, 28), np.uint8)), ("labels-idx1", np.arange(20) % 10)):
            write_idx(tmp_path / "idx", values.astype(np.uint8))
            files[f"{half}-{kind}-ubyte.gz"] = gzip.compress((tmp_path / "idx").read_bytes())
    asked = []

    class Mirror(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            time.sleep(0.1)  # long enough for all to ask
            self.send_response(200)
            self.end_headers()
            self.wfile.write(files[self.path[1:]])

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server, ThreadPoolExecutor(3) as processes:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        digests = [(name, hashlib.md5(content).hexdigest()) for name, content in files.items()]
        monkeypatch.setattr(torchvision.datasets.MNIST, "resources", digests)
        for count in (1, 3):
            config = DataConfig(name="mnist", root=str(tmp_path / str(count)), download=True)
            opened = [processes.submit(load_dataset, config, (1, 28, 28), class_task(10), seed=0) for _ in range(count)]
            assert [len(one.result().train.targets) for one in opened] == [20] * count
        server.shutdown()
    assert asked[: len(asked) // 2] == asked[len(asked) // 2 :], "three ask for no more than one does"
    (tmp_path / "3" / ".graphspec-fetch.lock").unlink()
    (tmp_path / "3" / ".graphspec-fetch.lock").mkdir()  # as where nothing may be written
    assert len(load_dataset(config, (1, 28, 28), class_task(10), seed=0).train.targets) == 20


def test_a_damaged_set_is_an_error(tmp_path: Path) -> None:
    for half in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            path = tmp_path / "MNIST" / "raw" / f"{half}-{kind}-ubyte"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress(b"not an idx file"))
    with pytest.raises(RunError, match="missing or damaged"):
        load_dataset(DataConfig(name="mnist", root=str(tmp_path)), (1, 28, 28), class_task(10), seed=0)


def test_mismatches_name_both_numbers_and_what_to_change() -> None:
    with pytest.raises(RunError, match=r"'digits' are 1x8x8 .* input is 3x32x32\n  try: `input: \[1, 8, 8\]`"):
        load_dataset(DataConfig(), (3, 32, 32), class_task(10), seed=0)
    with pytest.raises(RunError, match=r"'digits' has 10 classes, the spec says 7\n  try: `classes: 10`"):
        load_dataset(DataConfig(), (1, 8, 8), class_task(7), seed=0)
    with pytest.raises(RunError, match=r"no data set is called 'cifar_10'; did you mean 'cifar10'\?"):
        load_dataset(DataConfig(name="cifar_10"), (3, 32, 32), class_task(10), seed=0)
    with pytest.raises(RunError, match=r"in_memory: false cannot be had for 'digits'"):
        load_dataset(DataConfig(in_memory=False), (1, 8, 8), class_task(10), seed=0)


def test_fake_images_have_the_specs_shape_and_follow_the_seed() -> None:
    config = DataConfig(name="fake", fake_size=30)
    first, again, other = (load_dataset(config, (2, 5, 7), class_task(3), seed=seed) for seed in (1, 1, 2))
    assert isinstance(first.train, MemoryImages)
    assert isinstance(again.train, MemoryImages)
    assert isinstance(other.train, MemoryImages)
    assert first.train.images.shape == (30, 2, 5, 7)
    assert torch.bincount(first.train.targets).tolist() == [10, 10, 10]
    assert len(first.test.targets) == 15
    assert torch.equal(first.train.images, again.train.images)
    assert not torch.equal(first.train.images, other.train.images)


def test_a_folder_is_scaled_cropped_and_converted(tmp_path: Path) -> None:
    root = make_folder(tmp_path, size=(16, 24))
    # The middle 16x16 of this image is one colour; scaled to 8x8, the filter's border is two lines.
    pixels = np.zeros((24, 16, 3), np.uint8)
    pixels[:4], pixels[4:20], pixels[20:] = 255, (10, 20, 30), 255
    Image.fromarray(pixels).save(root / "train" / "cat" / "000.png")
    dataset = folder_set(root)
    assert isinstance(dataset.train, MemoryImages)
    assert dataset.train.images.shape == (24, 3, 8, 8)
    assert dataset.train.images[0, :, 2:6].flatten(1).unique(dim=1).flatten().tolist() == [10, 20, 30]
    assert dataset.train.images[0].max() < 128
    assert (dataset.labels, len(dataset.test.targets)) == (("cat", "dog"), 8)
    grey = load_dataset(DataConfig(name="folder", root=str(root)), (1, 8, 8), class_task(2), seed=0)
    assert isinstance(grey.train, MemoryImages)
    assert grey.train.images.shape == (24, 1, 8, 8)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("kind", ["RGB", "I;16"])
@pytest.mark.parametrize("size", [(16, 16), (160, 240)])
def test_photographs_are_turned_upright(tmp_path: Path, size: tuple[int, int], kind: str, suffix: str) -> None:
    if (kind, suffix) == ("I;16", "jpg"):
        pytest.skip("JPEG has 8 bits")
    root = make_folder(tmp_path, size=(8, 8))
    width, height = size
    pixels = np.zeros((height, width), np.uint8)
    pixels[:, : width // 2] = 200  # as the sensor saw it: bright on the left
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # a quarter turn clockwise: bright on top
    image = Image.fromarray(pixels.astype(np.uint16) * 256) if kind == "I;16" else Image.fromarray(pixels).convert(kind)
    (root / "train" / "cat" / "000.png").unlink()
    image.save(root / "train" / "cat" / f"000.{suffix}", exif=exif)
    dataset = folder_set(root)
    assert isinstance(dataset.train, MemoryImages)
    upright = dataset.train.images[0].float()
    assert upright[:, :3].min() > 150
    assert upright[:, 5:].max() < 50


def test_damaged_exif_data_does_no_harm(tmp_path: Path) -> None:
    root = make_folder(tmp_path, size=(8, 8))
    Image.new("RGB", (8, 8), (9, 9, 9)).save(root / "train" / "cat" / "000.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    dataset = folder_set(root)
    assert isinstance(dataset.train, MemoryImages)
    assert dataset.train.images[0].unique().tolist() == [9]


def test_whatever_else_lies_in_a_folder_does_no_harm(tmp_path: Path) -> None:
    """Notes, hidden folders, names with spaces and umlauts; colours of all kinds; 16 bits are not all white."""
    root = tmp_path / "images"
    for part in ("train", "test"):
        for name in ("große Hunde", "cat 2"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index, mode in enumerate(("RGB", "RGBA", "L", "P", "1")):
                Image.new(mode, (9 + index, 8)).save(folder / f"{index}.png")
            Image.new("CMYK", (8, 8)).save(folder / "5.JPEG")
            Image.new("I;16", (8, 8), 0x8040).save(folder / "6.png")
            (folder / "notes.txt").write_text("no image")
    (root / "train" / ".DS_Store").write_text("none either")
    checkpoints = root / "train" / ".ipynb_checkpoints"
    checkpoints.mkdir()
    Image.new("RGB", (8, 8)).save(checkpoints / "0.png")
    dataset = folder_set(root)
    assert dataset.labels == ("cat 2", "große Hunde")
    assert isinstance(dataset.train, MemoryImages)
    assert dataset.train.images.shape == (14, 3, 8, 8)
    assert torch.allclose(dataset.train.images[6].unique(), torch.tensor([0x8040 / 65535 * 255]))


def test_images_of_the_right_size_are_taken_as_they_are(tmp_path: Path) -> None:
    root = make_folder(tmp_path, size=(8, 8), test="test")
    dataset = folder_set(root)
    assert isinstance(dataset.train, MemoryImages)
    plain = np.asarray(Image.open(root / "train" / "dog" / "005.png").convert("RGB"))
    assert np.array_equal(dataset.train.images[17].permute(1, 2, 0).numpy(), plain)


def test_streaming_gives_the_batches_of_the_set_in_memory(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    settings = {"crop_padding": 2, "flip": True}
    held = folder_set(root, **settings)
    streamed = folder_set(root, in_memory=False, **settings)
    assert isinstance(streamed.train, FileImages)
    assert streamed.normalise == held.normalise
    before = torch.get_rng_state()
    rows, cut = held.split(0.5).training, replace(held.augment, cutout=3)
    loaders = [one.training_loader(rows, 8, "weights", augment=cut) for one in (held, streamed)]
    batches = [list(loader.batches(2, start=1)) for loader in loaders]
    assert len(batches[0]) == 1
    for (x, y), (streamed_x, streamed_y) in zip(*batches, strict=True):
        assert torch.equal(x, streamed_x)
        assert torch.equal(y, streamed_y)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_worker_processes_give_the_same_batches_and_can_be_left_early(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    config = DataConfig(name="imagenet", root=str(root), workers=2, mean=(0.5,) * 3, std=(0.2,) * 3)
    rows = torch.arange(24)
    apart, here = (
        load_dataset(config.model_copy(update={"workers": workers}), (3, 8, 8), class_task(2), seed=1).training_loader(
            rows, 4, "weights"
        )
        for workers in (2, 0)
    )
    whole = list(apart.batches(0))
    assert len(whole) == 6
    assert torch.equal(next(apart.batches(0, start=3))[0], whole[3][0])
    for (x, y), (x_here, y_here) in zip(whole, here.batches(0), strict=True):
        assert torch.equal(x, x_here)
        assert torch.equal(y, y_here)


def test_imagenet_augments_training_batches_by_place_and_never_the_test_images(tmp_path: Path) -> None:
    root = make_folder(tmp_path, size=(40, 30))
    config = DataConfig(name="imagenet", root=str(root), workers=0)
    dataset = load_dataset(config, (3, 8, 8), class_task(2), seed=1)
    assert dataset.augment.flip
    assert dataset.augment.lighting
    rows = torch.arange(24)
    single = list(dataset.training_loader(rows, 8, "weights").batches(1))
    resumed = list(dataset.training_loader(rows, 8, "weights").batches(1, start=2))
    assert torch.equal(resumed[0][0], single[2][0])
    places = [Share(rank=rank, world_size=2) for rank in (0, 1)]
    halves = [list(dataset.training_loader(rows, 8, "weights", place).batches(1)) for place in places]
    for (x, _), first, second in zip(single, *halves, strict=True):
        assert torch.equal(torch.cat((first[0], second[0])), x)
    tests = [torch.cat([x for x, _ in dataset.evaluation_loader(None, 3).batches(epoch)]) for epoch in (0, 1)]
    assert torch.equal(tests[0], tests[1])


def test_imagenet_cannot_be_held_in_memory(tmp_path: Path) -> None:
    config = DataConfig(name="imagenet", root=str(make_folder(tmp_path)), in_memory=True)
    with pytest.raises(RunError, match=r"in_memory: true cannot be had for 'imagenet', whose random crops"):
        load_dataset(config, (3, 8, 8), class_task(2), seed=0)


@pytest.mark.parametrize("damage", ["truncated", "altered", "text", "empty"])
def test_corrupt_images_are_named_or_skipped_and_counted(tmp_path: Path, damage: str) -> None:
    root = make_folder(tmp_path)
    bad = [root / "train" / "cat" / "003.png", root / "val" / "dog" / "002.png"]
    for path in bad:
        whole = path.read_bytes()
        altered = whole[:-200] + bytes(64) + whole[-136:]  # in the middle of the compressed pixels
        content = {"truncated": whole[:-400], "altered": altered, "text": b"no image", "empty": b""}[damage]
        path.write_bytes(content)
    with pytest.raises(RunError, match=r"skip_corrupt: true") as caught:
        folder_set(root)
    assert str(bad[0]) in str(caught.value)
    dataset = folder_set(root, skip_corrupt=True)
    assert set(dataset.skipped) == {str(path) for path in bad}
    assert (len(dataset.train.targets), len(dataset.test.targets)) == (23, 7)
    assert dataset.train.targets.tolist() == [0] * 11 + [1] * 12


def test_corrupt_images_of_a_stream_are_named_or_left_out_of_their_batch(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    intact = folder_set(root, in_memory=False, crop_padding=1, mean=(0.5,) * 3, std=(0.5,) * 3)
    rows = torch.arange(24)
    whole = list(intact.training_loader(rows, 8, "weights").batches(0))
    bad = root / "train" / "cat" / "003.png"
    bad.write_bytes(b"")
    settings = {"in_memory": False, "crop_padding": 1, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    strict = folder_set(root, **settings)
    with pytest.raises(RunError, match=str(bad)):
        list(strict.training_loader(rows, 8, "weights").batches(0))
    lenient = folder_set(root, skip_corrupt=True, **settings)
    left = list(lenient.training_loader(rows, 8, "weights").batches(0))
    assert list(lenient.skipped) == [str(bad)]
    assert sorted(len(y) for _, y in left) == [7, 8, 8]
    for (x, _), (all_x, _) in zip(left, whole, strict=True):
        kept = [bool((image == x).flatten(1).all(dim=1).any()) for image in all_x]
        assert sum(kept) == len(x)
        assert torch.equal(all_x[torch.tensor(kept)], x)


def test_a_folder_of_the_wrong_form_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"must hold the folders train/ and test/ \(or val/\)"):
        folder_set(tmp_path)
    root = make_folder(tmp_path / "images")
    with pytest.raises(RunError, match=r"has 2 classes, the spec says 5"):
        load_dataset(DataConfig(name="folder", root=str(root)), (3, 8, 8), class_task(5), seed=0)
    with pytest.raises(RunError, match=r"png has 1 channels, the network reads 2 channels; the spec's input is 2x8x8"):
        load_dataset(DataConfig(name="folder", root=str(root)), (2, 8, 8), class_task(2), seed=0)
    (root / "train" / "emu").mkdir()
    with pytest.raises(RunError, match=r"no image is in emu\n  try: put images into every class folder"):
        folder_set(root)
    Image.new("RGB", (8, 8)).save(root / "train" / "emu" / "0.png")
    with pytest.raises(RunError, match=r"do not hold the same classes: emu differ"):
        folder_set(root)
