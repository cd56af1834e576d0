"""Damaged files end in an error of tfgen or in a result; no process is left behind."""

import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from absl.testing import absltest, parameterized

from tests.space.small import every_op
from tfgen import errors
from tfgen.deployment import arena, benchmark, delivered, probe, tflite_file, timing
from tfgen.space import bits
from tfgen.space.layers import INPUT, LayerSpec

SHAPE = (8, 8, 1)
LAYERS = every_op()
X = np.zeros((2, *SHAPE), np.float32)
# A damaged file may ask for any amount of memory and time.
LIMITS = {"timeout_seconds": 20, "memory_bytes": 2 << 30}
TRUNCATED, FLIPPED = 20, 40


def mutants(content: bytes) -> dict[str, bytes]:
    """Damaged copies of a file by name, and what never was one."""
    random = np.random.default_rng(0)
    lengths = [8, *random.integers(9, len(content), TRUNCATED - 1)]
    made = {f"truncated_{length}": content[:length] for length in lengths}
    for number in range(FLIPPED):
        damaged = bytearray(content)
        for _ in range(1 + number % 4):
            damaged[random.integers(len(content))] ^= 1 << random.integers(8)
        made[f"flipped_{number}"] = bytes(damaged)
    noise = random.bytes(len(content))
    made["garbage_empty"] = b""
    made["garbage_text"] = b"not a model " * 50
    made["garbage_noise"] = noise
    made["garbage_headed"] = content[:8] + noise
    return made


def pool(size: int, kernel: int) -> bytes:
    """A small file with one op, whose tensors and time are as large as is asked."""
    layer = LayerSpec(
        name="pool",
        op="max_pool",
        inputs=(INPUT,),
        in_channels=1,
        out_channels=1,
        in_size=(size, size),
        out_size=(size, size),
        kernel=kernel,
    )
    return probe.write_probe([layer], (size, size, 1), bits.load("litert-2.3"), io="int8")


def children(pid: int | str = "self") -> list[int]:
    """The processes that a process started and that have not been waited for."""
    tasks = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def running(pid: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"  # dead, whether or not anybody has noticed


@absltest.skipUnless(sys.platform == "linux", "reads /proc")
class MutantsTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)
        self.content = probe.write_probe(LAYERS, SHAPE, bits.load("litert-2.3"))
        recipe = {"layers": [layer.to_json() for layer in LAYERS]}
        (self.folder / "recipe.json").write_text(json.dumps(recipe))

    def write(self, name: str, content: bytes) -> pathlib.Path:
        path = self.folder / f"{name}.tflite"
        path.write_bytes(content)
        return path

    def tools(self) -> dict[str, Callable[[pathlib.Path], object]]:
        return {
            "arena": lambda path: arena.measure(path, **LIMITS),
            "compare": lambda path: timing.compare(
                [path.read_bytes()], windows=1, window_ms=0.1, **LIMITS
            ),
            "costs": lambda path: delivered.costs(path, self.folder / "recipe.json"),
            "measure": lambda path: benchmark.measure(path, runs=20, warmup=1, **LIMITS),
            "predict": lambda path: benchmark.predict(path, X, **LIMITS),
            "read": tflite_file.read,
        }

    @parameterized.parameters("arena", "compare", "costs", "measure", "predict", "read")
    def test_an_error_or_a_result(self, name: str) -> None:
        tool = self.tools()[name]

        def refused(item: tuple[str, bytes]) -> bool:
            path = self.write(f"{name}_{item[0]}", item[1])
            start = time.monotonic()
            try:
                tool(path)
            except errors.TfgenError as error:
                # Files without a path of their own are named by their position.
                self.assertIn("0000000.tflite" if name == "compare" else path.name, str(error))
                return True
            finally:
                self.assertLess(time.monotonic() - start, LIMITS["timeout_seconds"] + 10)
            return False

        items = mutants(self.content)
        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            found = dict(zip(items, threads.map(refused, items.items()), strict=True))
        self.assertEqual(children(), [])
        self.assertFalse(refused(("whole", self.content)))
        # What is short or no model at all is refused; a flipped weight is as good as another one.
        accepted = [m for m, no in found.items() if not no and not m.startswith("flipped")]
        self.assertEqual(accepted, [])

    def test_limits_end_what_asks_for_much(self) -> None:
        # 2**30 bytes in and 2**30 out; 10**12 comparisons.
        hungry, spinning = self.write("hungry", pool(2**15, 1)), self.write("spin", pool(4096, 255))
        image = np.zeros((1, 4096, 4096, 1), np.float32)
        limits = {"timeout_seconds": 5, "memory_bytes": 2 << 30}
        for tool in (
            lambda path: arena.measure(path, **limits),
            lambda path: benchmark.measure(path, **limits),
            lambda path: timing.compare([path.read_bytes()], **limits),
        ):
            with self.assertRaises(errors.CorruptFileError):
                tool(hungry)
        with self.assertRaisesRegex(errors.TfgenError, "spin.tflite: did not finish within 5 s"):
            benchmark.predict(spinning, image, xnnpack=False, **limits)
        self.assertEqual(children(), [])

    def test_one_of_many_files_is_named(self) -> None:
        for bad in (self.content[:-100], pool(2**15, 1)):
            with self.assertRaisesRegex(errors.CorruptFileError, "0000001.tflite"):
                timing.compare([self.content, bad, self.content], windows=1, **LIMITS)

    def test_a_killed_parent_leaves_nothing_behind(self) -> None:
        script = "from tfgen.deployment import benchmark as b\n"
        script += f"b.measure({str(self.write('whole', self.content))!r}, runs=b.MAX_RUNS)"
        parent = subprocess.Popen(
            [sys.executable, "-c", script],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
                "TMPDIR": str(self.folder),
            },
        )
        try:
            deadline = time.monotonic() + 60
            while not list(self.folder.glob("tfgen-*/started")) and time.monotonic() < deadline:
                time.sleep(0.05)
            (child,) = children(parent.pid)
            self.assertTrue(running(child))
        finally:
            parent.send_signal(signal.SIGKILL)
            parent.wait()
        deadline = time.monotonic() + 10
        while running(child) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertFalse(running(child))


if __name__ == "__main__":
    absltest.main()
