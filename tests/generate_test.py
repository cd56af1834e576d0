"""The program `generate` as a user runs it: bad input, fast answers, a whole delivery."""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from tfgen import bundle as bundles
from tfgen import pipeline, workdir
from tfgen.cost import latency_table
from tfgen.cost.budget import Budget
from tfgen.deployment import benchmark, contract, devices, profiling
from tfgen.space.architecture import Architecture
from tfgen.space.lowering import lower
from tfgen.training import datasets

BUNDLE = "california_housing_mlp"
QUICK = ["--stop_after=candidates"]
# The promise is 2 s; a loaded machine that runs tests side by side gets as much again.
SECONDS_TO_CANDIDATES = 4.0


@functools.cache
def environment() -> dict[str, str]:
    """What a child process needs to import what this one imports."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def run(
    *arguments: str, cwd: str | None = None, bundle: str | None = BUNDLE
) -> subprocess.CompletedProcess:
    """Of arguments that are given twice the later counts; None names no bundle."""
    named = [] if bundle is None else [f"--bundle={bundle}"]
    return subprocess.run(
        [sys.executable, "-m", "tfgen.generate", *named, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=cwd,
        env=environment(),
    )


class Temporary(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)


class BadInputTest(Temporary):
    @parameterized.parameters(
        (["--budget=storage=3"], "unknown metric 'storage'; known: params, macs"),
        (["--budget=latency_ms=3@pixel9"], "unknown device 'pixel9'; known:"),
        (["--budget=latency_ms=3@host", "--threads=2"], "predicted for --threads=1, got 2"),
        (["--budget=latency_ms=3@host", "--confidence=0.99"], "tells up to 0.984; run profile_dev"),
        (
            ["--budget=latency_ms=3@host", "--budget=latency_ms=3@pixel3", *QUICK],
            "say where their tables lie, --tables_dir=DIR",
        ),
        (["--budget=latency_ms=3@host,accuracy=0.9"], "is judged by r2, not by accuracy"),
        (["--budget=latency_ms=3@pixel3"], "add --stop_after=candidates"),
        (["--budget=latency_ms=3@pixel3", *QUICK], "say where their tables lie, --tables_dir=DIR"),
        (
            ["--budget=latency_ms=3@pixel3", *QUICK, "--tables_dir=nowhere"],
            "no public table has device 'pixel3' on space 'california_housing_mlp'",
        ),
        (["--budget=macs=9", "--train=inherit"], "has no supernet; leave the flag out"),
        (["--budget=macs=9", "--method=gan"], "unknown method 'gan'; known: gensynth, nag, nagan"),
        (["--budget=macs=9", "--method=sgnas"], "has no generator of method 'sgnas'; it has:"),
        (
            ["--budget=macs=9", "--bundle=mars"],
            "unknown bundle 'mars'; known: california_housing_mlp",
        ),
        (["--budget=storage_kb=-1"], "finite number above 0"),
        (["--budget=storage_kb=nan"], "finite number above 0"),
        (["--budget=storage_kb=1,storage_kb=2"], "storage_kb twice"),
        (["--budget=storage_kb>=1"], "an upper limit"),
        (["--budget=accuracy=0.9"], "is judged by r2, not by accuracy"),
        (["--budget=macs=900", "--rank_by=size"], "unknown ranking 'size'; known: auto"),
        (["--budget=macs=900", "--count=0"], "must be at least 1"),
        (["--budget=macs=900", "--confidence=2"], "confidence must lie in 0.5..0.99"),
        (["--budget=macs=900", "--draws=99999999999"], "draws must be at most 200,000"),
        (["--bugdet=macs=9"], "Unknown command line flag 'bugdet'"),
        (["--budget=macs=9", "--seed=x"], "seed"),
        (["storage_kb=3"], "unexpected argument 'storage_kb=3'"),
        ([], "at least one --budget"),
        (["--budget=macs=9", "--ray_resource=pixel8=1"], "goes with --ray_address"),
        (["--budget=macs=9", "--max_distance=nan"], "flag --max_distance=nan: is no number"),
        (["--budget=macs=9", "--distillation=1"], "--distillation goes with --prototype"),
    )
    def test_one_line_and_exit_2(self, arguments, message):
        out = self.root / "out"
        start = time.monotonic()
        done = run(*arguments, f"--output_dir={out}")
        seconds = time.monotonic() - start
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn(message, done.stderr)
        self.assertLen(done.stderr.strip().splitlines(), 1, done.stderr)
        self.assertLess(seconds, SECONDS_TO_CANDIDATES)
        self.assertFalse(out.exists())

    def test_help_is_instant_and_lists_the_budget(self):
        start = time.monotonic()
        done = run("--help")
        self.assertEqual(done.returncode, 0)
        self.assertIn("--budget", done.stdout)
        self.assertIn("--bundle", done.stdout)
        self.assertLess(time.monotonic() - start, SECONDS_TO_CANDIDATES / 2)


class InfeasibleTest(Temporary):
    @parameterized.parameters(
        "storage_kb=0.001",
        "storage_kb=0.01,r2=0.75",
        "r2=0.99",
        "energy_uj=1e-12",
        "file_kb=1.2,r2=0.7",
        "params=1,r2=0.75",
    )
    def test_exit_3_and_the_nearest_budget_is_feasible(self, budget):
        out = f"--output_dir={self.root}"
        done = run(f"--budget={budget}", out, *QUICK)
        self.assertEqual(done.returncode, 3, done.stderr)
        nearest = done.stderr.strip().splitlines()[-1]
        self.assertStartsWith(nearest, "nearest feasible: --budget=")
        again = run(nearest.removeprefix("nearest feasible: "), out, *QUICK)
        self.assertEqual(again.returncode, 0, again.stderr)


class DamagedBundleTest(Temporary):
    def copy(self) -> pathlib.Path:
        return pathlib.Path(shutil.copytree(bundles.find(BUNDLE), self.root / "bundle"))

    @parameterized.parameters("space.json", "surrogate.npz", "generators/nagan.npz")
    def test_flipped_truncated_and_missing_files_are_named(self, name):
        for damage in ("flip", "truncate", "remove"):
            folder = self.copy()
            path = folder / name
            content = path.read_bytes()
            path.chmod(0o644)
            if damage == "flip":
                middle = len(content) // 2
                flipped = bytes([content[middle] ^ 1])
                path.write_bytes(content[:middle] + flipped + content[middle + 1 :])
            elif damage == "truncate":
                path.write_bytes(content[: len(content) // 2])
            else:
                path.unlink()
            done = run("--budget=macs=900", f"--bundle={folder}", f"--output_dir={self.root}/out")
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertIn(str(path), done.stderr)
            self.assertLen(done.stderr.strip().splitlines(), 1)
            self.assertFalse((self.root / "out").exists())
            shutil.rmtree(folder)

    def test_a_changed_manifest_is_refused(self):
        folder = self.copy()
        path = folder / "manifest.json"
        text = path.read_text()
        self.assertIn('"learning_rate": 0.02', text)
        path.chmod(0o644)
        path.write_text(text.replace('"learning_rate": 0.02', '"learning_rate": 0.09'))
        done = run("--budget=macs=900", f"--bundle={folder}", f"--output_dir={self.root}/out")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("manifest.json: differs from its own sha256", done.stderr)

    def test_arrays_that_are_no_encoder_are_refused_even_with_the_right_hash(self):
        folder = self.copy()
        arrays = workdir.read_arrays(folder / "surrogate.npz")
        manifest = workdir.read_manifest(folder)
        kernel = arrays["kernel_0"]
        for damage in (
            {"kernel_0": kernel * np.nan},
            {"kernel_0": kernel[:, :5]},
            {"scale": kernel},
        ):
            workdir.write_arrays(folder / "surrogate.npz", {**arrays, **damage})
            workdir.write_manifest(
                folder, config=manifest["config"], seed=0, data=manifest["data"], parents={}
            )
            done = run("--budget=macs=900", f"--bundle={folder}", f"--output_dir={self.root}/out")
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertIn("surrogate.npz: is no part of a bundle", done.stderr)


class AnswerTest(Temporary):
    @parameterized.parameters(
        ("california_housing_mlp", "r2=0.6"),
        ("mnist_mlp", "accuracy=0.9"),
        ("cifar10", "macs=8e6"),
    )
    def test_every_bundle_answers_without_its_data(self, bundle, quality):
        done = run(f"--bundle={bundle}", f"--budget={quality}", f"--output_dir={self.root}", *QUICK)
        self.assertEqual(done.returncode, 0, done.stderr)
        (answer,) = json.loads((self.root / "candidates.json").read_text())
        self.assertLen(answer["candidates"], 10)

    def test_without_a_bundle_the_quality_that_is_asked_for_tells_it(self):
        out = f"--output_dir={self.root}"
        done = run("--budget=r2=0.6", out, *QUICK, bundle=None)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("bundle california_housing_mlp", done.stderr)
        self.assertIn("candidates by nagan", done.stdout)
        done = run("--budget=r2=0.6", "--budget=accuracy=0.6", out, *QUICK, bundle=None)
        self.assertEqual(done.returncode, 2)
        self.assertIn("'california_housing_mlp' is judged by r2, not by accuracy", done.stderr)
        done = run("--budget=accuracy=0.6,storage_kb=250", out, *QUICK, bundle=None)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("bundle cifar10", done.stderr)
        self.assertIn("candidates by sgnas", done.stdout)

    def test_the_shipped_supernet_delivers_without_its_data(self):
        out = f"--output_dir={self.root}"
        done = run("--budget=macs=6e6", out, bundle="cifar10")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("tested on 1,000 examples of cifar10_shipped", done.stdout)
        (path,) = self.root.glob("deployments/*/contract.json")
        terms = {term["metric"]: term for term in json.loads(path.read_text())["terms"]}
        self.assertTrue(terms["macs"]["holds"])
        # Ten classes by chance: 0.1. Shared weights give about 0.65 here, +- 0.05 in 1,000 images.
        self.assertGreater(terms["accuracy"]["measured"], 0.55)

    def test_an_output_folder_that_is_a_file_is_one_line(self):
        (self.root / "file").write_text("a user's own")
        done = run("--budget=r2=0.6", f"--output_dir={self.root / 'file'}", *QUICK)
        self.assertEqual(done.returncode, 1)
        self.assertLen(done.stderr.strip().splitlines(), 1, done.stderr)
        self.assertEqual((self.root / "file").read_text(), "a user's own")

    def test_candidates_come_fast_keep_the_budget_and_repeat(self):
        budget = "storage_kb=0.5,r2=0.72"
        texts = []
        for name in ("one", "two"):
            start = time.monotonic()
            done = run(f"--budget={budget}", f"--output_dir={self.root / name}", *QUICK)
            self.assertLess(time.monotonic() - start, SECONDS_TO_CANDIDATES)
            self.assertEqual(done.returncode, 0, done.stderr)
            texts.append((self.root / name / "candidates.json").read_text())
        self.assertEqual(*texts)
        (answer,) = json.loads(texts[0])
        self.assertEqual(answer["budget"], budget)
        candidates = answer["candidates"]
        self.assertLen(candidates, 10)
        space = bundles.load(bundles.find(BUNDLE)).space
        for candidate in candidates:
            self.assertLessEqual(candidate["cost"]["storage_kb"]["value"], 0.5)
            self.assertGreaterEqual(candidate["low"], 0.72)
            architecture = Architecture.from_json(candidate["architecture"])
            # Eq. 2 once more, from the layers alone.
            bits = sum(
                (layer.in_channels * layer.out_channels + 2 * layer.out_channels)
                * layer.weight_bits
                for layer in lower(space, architecture)
            )
            self.assertEqual(candidate["cost"]["storage_kb"]["value"], bits / 8000)

    def test_several_budgets_in_one_pass(self):
        done = run("--budget=macs=300", "--budget=r2=0.6", f"--output_dir={self.root}", *QUICK)
        self.assertEqual(done.returncode, 0, done.stderr)
        small, good = json.loads((self.root / "candidates.json").read_text())
        self.assertTrue(all(c["cost"]["macs"]["value"] <= 300 for c in small["candidates"]))
        self.assertTrue(all(c["low"] >= 0.6 for c in good["candidates"]))
        self.assertLen(good["candidates"], 10)

    def test_an_infeasible_budget_does_not_stop_the_others(self):
        out = f"--output_dir={self.root}"
        done = run("--budget=storage_kb=0.01,r2=0.78", "--budget=r2=0.6", out, *QUICK)
        self.assertEqual(done.returncode, 3, done.stderr)
        self.assertIn("nearest feasible: --budget=storage_kb=", done.stderr)
        none, some = json.loads((self.root / "candidates.json").read_text())
        self.assertEmpty(none["candidates"])
        self.assertLen(some["candidates"], 10)

    def test_the_way_to_candidates_imports_no_tensorflow(self):
        code = (
            "import sys\n"
            "from absl import app\n"
            "from tfgen import generate, program\n"
            "sys.argv[1:] = ['--budget=macs=8e6', '--stop_after=candidates', "
            f"'--output_dir={self.root}']\n"
            "try:\n"
            "    program.run(generate.main)\n"
            "except SystemExit as stop:\n"
            "    assert not stop.code, stop.code\n"
            "assert 'tensorflow' not in sys.modules and 'tf_keras' not in sys.modules\n"
            "print('none')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, timeout=60, check=False, env=environment(),
        )  # fmt: skip
        self.assertEqual(done.stdout.strip().splitlines()[-1:], ["none"], done.stderr)


class DeliveryTest(Temporary):
    def test_the_whole_way_and_every_number_measured_again(self):
        budget = Budget.parse("storage_kb=0.5,r2=0.7")
        done = run(f"--budget={budget}", "--output_dir=out", cwd=str(self.root))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("contract kept", done.stdout)
        work = workdir.WorkDir(self.root / "out")
        (folder,) = [
            f for f in (work.root / "deployments").iterdir()
            if json.loads((f / "contract.json").read_text())["holds"]
        ]  # fmt: skip
        workdir.read_manifest(folder)
        agreed = contract.Contract.from_json(json.loads((folder / "contract.json").read_text()))
        terms = {term.metric: term for term in agreed.terms}
        self.assertEqual(terms["storage_kb"].asked, 0.5)
        self.assertEqual(terms["r2"].asked, 0.7)
        # Storage and quality once more, by other code than the contract's.
        recipe = json.loads((folder / "recipe.json").read_text())
        bits = sum(
            (layer["in_channels"] * layer["out_channels"] + 2 * layer["out_channels"])
            * layer["weight_bits"]
            for layer in recipe["layers"]
        )
        self.assertEqual(terms["storage_kb"].measured, bits / 8000)
        test = datasets.load("california_housing").test
        outputs = benchmark.predict(folder / "model.tflite", test.x)
        residual = np.mean((test.y - outputs) ** 2) / np.var(test.y)
        self.assertAlmostEqual(terms["r2"].measured, 1 - residual, places=4)
        path = folder / "model.tflite"
        self.assertEqual(agreed.file_sha256, workdir.sha256(path))
        self.assertEqual(agreed.file_bytes, path.stat().st_size)
        trained = work.trained(agreed.fingerprint)
        self.assertTrue((trained / "model.keras").is_file())
        self.assertGreater(json.loads((folder / "benchmark.json").read_text())["median_ms"], 0)


class LatencyTest(Temporary):
    def setUp(self):
        super().setUp()
        self.host = self.root / devices.FOLDER / "host.json"
        self.enter_context(contextlib.chdir(self.root))
        # As generate does where nobody profiled; 45 chosen networks tell a confidence of 0.95.
        fewer = functools.partial(profiling.time_space, ops=60, networks=80, patience_s=0)
        self.said: list[str] = []
        with mock.patch.object(profiling, "time_space", fewer):
            self.profile()

    def profile(self) -> None:
        bundle = bundles.load(bundles.find(BUNDLE))
        # Whoever profiled this machine before must not be found here.
        with mock.patch.object(devices, "folders", lambda: [self.root / devices.FOLDER]):
            pipeline.profile_missing(bundle, 0.95, self.said.append)

    def networks(self) -> dict[Architecture, float]:
        table = latency_table.load(self.host)
        return {t.architecture: t.latency_ms for t in table.networks if t.origin == "selected"}

    def test_a_latency_is_asked_predicted_measured_and_kept(self):
        # All networks of the space take microseconds, so a millisecond is kept on any machine.
        before = self.networks()
        done = run("--budget=latency_ms=1@host,r2=0.6", "--count=4", cwd=str(self.root))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("4 of 4 candidates keep latency_ms=1@host,r2=0.6 untrained", done.stdout)
        work = workdir.WorkDir(self.root / "tfgen_output")
        (answer,) = json.loads(work.candidates.read_text())
        for candidate in answer["candidates"]:
            predicted = candidate["cost"]["latency_ms"]
            self.assertEqual(predicted["source"], "predicted")
            self.assertBetween(candidate["upper"]["latency_ms"], predicted["value"], 1)
        (folder,) = (work.root / "deployments").iterdir()
        agreed = json.loads((folder / "contract.json").read_text())
        (term,) = (term for term in agreed["terms"] if term["metric"] == "latency_ms")
        self.assertEqual((term["asked"], term["holds"]), (1.0, True))
        measured = json.loads((folder / "benchmark.json").read_text())
        self.assertEqual(term["measured"], measured["latency_ms"])
        # What was timed before training, and the delivered file, tell later predictions: as far as
        # the machine was quiet meanwhile.
        shown = [Architecture.from_json(c["architecture"]) for c in answer["candidates"]]
        after = self.networks()
        self.assertContainsSubset(before, after)
        self.assertContainsSubset(after, {*before, *shown})
        if measured["quiet_windows"] >= 5:
            delivered = next(a for a in shown if a.fingerprint == agreed["fingerprint"])
            self.assertEqual(after[delivered], term["measured"])

    def test_what_was_profiled_is_not_profiled_again(self):
        self.assertIn("was not profiled for california_housing_mlp", self.said[0])
        said, before = len(self.said), self.host.read_bytes()
        self.profile()
        self.assertLen(self.said, said)
        self.assertEqual(self.host.read_bytes(), before)

    def test_a_latency_that_no_network_keeps(self):
        done = run("--budget=latency_ms=1e-7@host", *QUICK, cwd=str(self.root))
        self.assertEqual(done.returncode, 3, done.stderr)
        self.assertIn("nearest feasible: --budget=latency_ms=", done.stderr)


if __name__ == "__main__":
    absltest.main()
