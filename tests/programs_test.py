"""Bad input to the programs beside `generate`: one line, the right exit code, nothing written."""

import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest, parameterized

CONFIG = "configs/california_housing_mlp.py"


class ProgramsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        (self.root / "broken.py").write_text("def get_config(:\n")
        (self.root / "file").write_text("a user's own")
        (self.root / "garbage.tflite").write_bytes(b"TFL3" * 100)

    @parameterized.parameters(
        ("collect", ["--work_dir=W"], 2, "give --config"),
        ("collect", ["--work_dir=W", "--config=R/nothing.py"], 2, "nothing.py"),
        ("collect", ["--work_dir=W", "--config=R/broken.py"], 2, "invalid syntax (broken.py"),
        ("collect", ["--work_dir=W", f"--config={CONFIG}", "--config.recipe.stepz=3"], 2, "stepz"),
        (
            "collect",
            ["--work_dir=W", f"--config={CONFIG}", "--config.space=mars"],
            2,
            "known: cali",
        ),
        ("collect", ["--work_dir=W", f"--config={CONFIG}", "--config.records=0"], 2, "at least 1"),
        ("collect", ["--work_dir=R/file", f"--config={CONFIG}"], 1, "file"),
        (
            "collect",
            ["--work_dir=W", f"--config={CONFIG}", "--ray_address=host:1", "--ray_resource=x=0"],
            2,
            "--ray_resource is NAME=NUMBER",
        ),
        ("train", ["--work_dir=W", f"--config={CONFIG}"], 2, "no records; run collect first"),
        ("train_supernet", ["--work_dir=W", f"--config={CONFIG}"], 2, "has no supernet"),
        ("export_generator", ["--output=W"], 2, "--bundle"),
        ("export_generator", ["--bundle=mars", "--output=W"], 2, "known: california"),
        ("export_generator", ["--bundle=mnist_mlp", "--output=W", "--method=sgnas"], 2, "it has"),
        ("export_generator", ["--bundle=mnist_mlp", "--output=W", "--draws=999"], 2, "too many"),
        (
            "export_generator",
            ["--bundle=mnist_mlp", "--output=W", "--rank_by=file_kb"],
            2,
            "not served",
        ),
        ("export_generator", ["--bundle=mnist_mlp", "--output=R/a-b"], 2, "letters, digits"),
        ("deployment.benchmark_main", ["--model=R/nothing.tflite"], 1, "nothing.tflite"),
        ("deployment.benchmark_main", ["--model=R/garbage.tflite"], 1, "garbage.tflite"),
        ("deployment.benchmark_main", [], 2, "--model"),
    )
    def test_one_line_and_the_exit_code(self, program, arguments, code, message):
        work = self.root / "work"
        places = [a.replace("=W", f"={work}").replace("=R/", f"={self.root}/") for a in arguments]
        done = subprocess.run(
            [sys.executable, "-m", f"tfgen.{program}", *places],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=pathlib.Path(__file__).parents[1],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertIn(message, done.stderr)
        self.assertLen(done.stderr.strip().splitlines(), 1, done.stderr)
        self.assertEqual((self.root / "file").read_text(), "a user's own")


if __name__ == "__main__":
    absltest.main()
