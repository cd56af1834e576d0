"""Files on the ARM build of LiteRT, emulated, against the same files on this host.

Needs the folder that tools/aarch64_root.sh makes; TFGEN_AARCH64_ROOT names it. The emulated
processors stand for three generations of XNNPACK's kernels: plain NEON, dot products, and products
of 8-bit matrices. What they compute is real, how long they take is not.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import unittest
from typing import Any

import numpy as np
from absl import logging
from absl.testing import absltest, parameterized

from tests.space.small import every_op, mlp
from tfgen import child_process
from tfgen.deployment import _litert_child, benchmark, export, tflite_file
from tfgen.training import datasets, tasks, trainer
from tfgen.training.recipe import Recipe

_SOURCES = pathlib.Path(child_process.__file__).parents[1]
ROOT = "TFGEN_AARCH64_ROOT"
PROCESSORS = ("cortex-a53", "cortex-a76", "cortex-a710")
# Whether XNNPACK takes every op, and whether ARM answers with the same integers. XNNPACK leaves
# hard-swish to a builtin kernel that computes the same everywhere, 4-bit convolutions to one that
# rounds otherwise on ARM.
NETWORKS = {
    "MLP {8, 4}": (mlp((32, 24, 3), (8, 4, 8), 64), True, True),
    "MLP {8, 4, 2}": (mlp((32, 24, 16, 3), (8, 4, 2, 8), 64), True, True),
    "images, ReLU": (every_op(activation="relu"), True, True),
    "images, hard-swish": (every_op(), False, True),
    "images, hard-swish, 4-bit convolutions": (every_op(4), False, False),
}
RECIPE = Recipe(steps=120, batch_size=32, learning_rate=3e-3, warmup_steps=10)
MAX_BUILTIN_STEPS = 4  # between kernels that round otherwise; 3 were seen
TIMEOUT_SECONDS = 300


def clusters(shape: tuple[int, ...]) -> datasets.Dataset:
    """Three classes, a centre each and noise around it."""
    random = np.random.default_rng(0)
    y = random.integers(0, 3, 2400)
    centres = random.uniform(0.3, 0.7, (3, *shape))
    x = (centres[y] + random.normal(0, 0.2, (len(y), *shape))).astype(np.float32)
    splits = [datasets.Split(x[a:b], y[a:b]) for a, b in ((0, 1200), (1200, 1400), (1400, 2400))]
    return datasets.Dataset("clusters", tasks.CLASSIFICATION, *splits, preprocessing={})


class File:
    """An int8 file and the inputs that it is compared on, float32 [examples, *input shape]."""

    def __init__(self, path: str, x: np.ndarray, python: pathlib.Path) -> None:
        self.path, self.x = path, x
        self._python = python
        graph = tflite_file.parse(pathlib.Path(path).read_bytes()).subgraphs[0]
        self._output = graph.tensors[graph.outputs[0]].quantization

    def host(self, *, xnnpack: bool) -> np.ndarray:
        """The output's integers, int64 [examples, units]."""
        return self._integers(benchmark.predict(self.path, self.x, xnnpack=xnnpack))

    def arm(self, folder: str, processor: str, *, xnnpack: bool) -> np.ndarray:
        """The output's integers on an emulated processor, int64 [examples, units]."""
        self.emulate(folder, processor, {"task": "predict", "inputs": 1, "xnnpack": xnnpack})
        outputs = np.load(pathlib.Path(folder, _litert_child.OUTPUTS), allow_pickle=False)
        return self._integers(outputs)

    def emulate(self, folder: str, processor: str, request: dict[str, Any]) -> dict[str, Any]:
        """What the child process of `benchmark` answers on an emulated processor."""
        request = {
            "model": self.path,
            "threads": 1,
            "memory_bytes": child_process.MEMORY_BYTES,
            "cpu_seconds": TIMEOUT_SECONDS,
            "written_bytes": 1 << 30,
            "parent": os.getpid(),
            **request,
        }
        where = pathlib.Path(folder)
        np.save(where / _litert_child.INPUTS.format(0), self.x)
        (where / child_process.REQUEST).write_text(json.dumps(request))
        # By its path: of tfgen it imports what needs nothing but the standard library.
        done = subprocess.run(
            [self._python, _litert_child.__file__, folder],
            check=False,
            env={**os.environ, "QEMU_CPU": processor, "PYTHONPATH": str(_SOURCES)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIMEOUT_SECONDS,
        )
        if done.returncode:
            raise AssertionError(f"{processor}: exit {done.returncode}\n{done.stdout[-2000:]}")
        result = json.loads((where / _litert_child.RESULT).read_text())
        if "error" in result:
            raise AssertionError(f"{processor}: {result['error']}")
        return result

    def _integers(self, outputs: np.ndarray) -> np.ndarray:
        steps = outputs / self._output.scale[0]
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
        return np.rint(steps).astype(np.int64) + self._output.zeroPoint[0]


class Aarch64Test(parameterized.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        if not os.environ.get(ROOT):
            raise unittest.SkipTest(f"{ROOT} is not set: make a folder with tools/aarch64_root.sh")
        cls.python = pathlib.Path(os.environ[ROOT]).absolute() / "python"
        if not cls.python.is_file():
            raise ValueError(f"{ROOT}: no {cls.python}; make it with tools/aarch64_root.sh")

    def apart(self, what: str, given: np.ndarray, reference: np.ndarray) -> int:
        """The largest difference in steps; decisions must agree on 99 % of the examples."""
        largest = int(np.abs(given - reference).max())
        equal = (given == reference).mean()
        decisions = (given.argmax(-1) == reference.argmax(-1)).mean()
        logging.info("| %s | %.1f %% | %d | %.1f %% |", what, 100 * equal, largest, 100 * decisions)
        self.assertGreaterEqual(decisions, 0.99, what)
        return largest

    @parameterized.parameters(*NETWORKS)
    def test_answers_as_on_the_host(self, name: str) -> None:
        layers, accelerated, equal = NETWORKS[name]
        data = clusters((*layers[0].in_size, layers[0].in_channels))
        trained = trainer.train(layers, data, RECIPE, 1)
        exported = export.export(
            trained.model, trained.layers, data.test.x, "litert-2.3", io="int8"
        )
        path = self.create_tempfile(content=exported.content, mode="wb").full_path
        file = File(path, data.test.x, self.python)

        def folder() -> str:
            return self.create_tempdir().full_path

        host = file.host(xnnpack=True)
        self.assertGreater(len(np.unique(host)), 100)  # of 256: no constants are compared
        self.assertGreater(data.task.score(data.test.y, host), 0.8)  # it has learned
        arm = [file.arm(folder(), processor, xnnpack=True) for processor in PROCESSORS]
        for processor, outputs in zip(PROCESSORS, arm, strict=True):
            steps = self.apart(f"{name} | {processor}", outputs, host)
            self.assertLessEqual(steps, 0 if equal else MAX_BUILTIN_STEPS)
            np.testing.assert_array_equal(outputs, arm[0])

        for where, outputs in (
            ("x86", file.host(xnnpack=False)),
            (PROCESSORS[1], file.arm(folder(), PROCESSORS[1], xnnpack=False)),
        ):
            steps = self.apart(f"{name} | {where}, builtin", outputs, host)
            self.assertLessEqual(steps, MAX_BUILTIN_STEPS)
            # Otherwise the equal outputs above could be those of builtin kernels on both sides.
            self.assertGreater(steps, 0)

        request = {"task": "measure", "xnnpack": True, "warmup": 0, "runs": 1}
        measured = file.emulate(folder(), PROCESSORS[1], request)
        self.assertEqual(measured["fully_accelerated"], accelerated)
        self.assertEqual(measured["runtime"], benchmark.measure(path, runs=1).runtime)


if __name__ == "__main__":
    absltest.main()
