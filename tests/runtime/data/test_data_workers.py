"""Worker processes of a stream: they outlive what stops a job, but not a killed parent, and run no code of a user."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

PARENT = """
import signal, sys
import torch
from runtime.data.augment import Normalise
from runtime.data.dataset import Loader
from runtime.data.sources import FileImages

def main():
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda *_: None)
    images = FileImages([sys.argv[1]] * 40_000, torch.zeros(40_000, dtype=torch.int64), (3, 8, 8), workers=2)
    loader = Loader(images, torch.arange(40_000), Normalise((0.5,) * 3, (0.2,) * 3), 4, training=False)
    print("starting", flush=True)
    batches = loader.batches(0)
    next(batches)
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(100):
        next(batches)
    print("still served", flush=True)
    sys.stdin.readline()

if __name__ == "__main__":
    main()
"""


SCRIPT = """
import sys
from pathlib import Path
import torch
from runtime.data.augment import Normalise
from runtime.data.dataset import Loader
from runtime.data.sources import FileImages
with Path("ran").open("a") as file:
    file.write("once\\n")
images = FileImages([sys.argv[1]] * 8, torch.zeros(8, dtype=torch.int64), (3, 8, 8), workers=2)
loader = Loader(images, torch.arange(8), Normalise((0.5,) * 3, (0.2,) * 3), 4, training=False)
assert [len(y) for _, y in loader.batches(0)] == [4, 4]
assert __name__ == "__main__" and sys.modules["__main__"].images is images
"""


def test_workers_do_not_run_the_users_script_again(tmp_path: Path) -> None:
    """Which need not protect its steps by `if __name__ == "__main__"`."""
    Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py", "black.png"]
    path = {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **path}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "ran").read_text() == "once\n"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_workers_outlive_signals_to_all_but_not_their_parent(tmp_path: Path, signum: signal.Signals) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "black.png")
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(tmp_path / "black.png")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"},
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    try:
        assert parent.stdout.readline() == "starting\n"
        while not select.select([parent.stdout], [], [], 0.02)[0]:  # also in a worker's very first moments
            os.killpg(parent.pid, signum)
        assert parent.stdout.readline() == "ready\n"
        os.killpg(parent.pid, signum)
        parent.stdin.write("\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "still served\n"
        parent.kill()
        # The output ends when the last process that holds it has gone: the workers and their server.
        assert parent.communicate(timeout=60)[0] == ""
    finally:
        if parent.poll() is None:
            parent.kill()
