"""Atomic writes and manifests that find what was changed."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable

import numpy as np
from absl.testing import absltest

from tfgen import errors, workdir


def killed_at_call(number: int, run: Callable[[], None]) -> bool:
    """Whether a fork that runs this was killed at its call of that number, or came to its end."""
    pid = os.fork()
    if not pid:
        left = number

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            del arguments
            if event.partition(".")[0] in ("open", "os", "shutil", "tempfile", "fcntl"):
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(hook)
            run()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise AssertionError(f"ended with {code}")
    return code != 0


class WorkdirTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)

    def test_a_failed_write_leaves_the_old_file_and_no_other(self):
        path = self.root / "a.json"
        workdir.write_json(path, {"old": 1})
        with self.assertRaises(ValueError):
            workdir.write_json(path, {"new": float("nan")})
        with self.assertRaisesRegex(RuntimeError, "stopped"), workdir.writing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stopped")
        self.assertEqual(workdir.read_json(path), {"old": 1})
        self.assertEqual(os.listdir(self.root), ["a.json"])

    def test_arrays_both_ways_and_equal_bytes(self):
        arrays = {"b": np.arange(6.0).reshape(2, 3), "a": np.array([1], np.int32)}
        workdir.write_arrays(self.root / "one.npz", arrays)
        workdir.write_arrays(self.root / "two.npz", dict(reversed(arrays.items())))
        self.assertEqual((self.root / "one.npz").read_bytes(), (self.root / "two.npz").read_bytes())
        found = workdir.read_arrays(self.root / "one.npz")
        np.testing.assert_array_equal(found["b"], arrays["b"])
        self.assertEqual(found["a"].dtype, np.int32)

    def test_objects_are_neither_written_nor_read(self):
        with self.assertRaises(ValueError):
            workdir.write_arrays(self.root / "o.npz", {"o": np.array([{}], object)})
        np.savez(self.root / "o.npz", o=np.array([{}], object))
        with self.assertRaisesRegex(errors.CorruptFileError, "o.npz"):
            workdir.read_arrays(self.root / "o.npz")

    def test_a_folder_comes_back_after_a_crash_between_the_renames(self):
        folder = self.root / "supernet"
        with workdir.writing_folder(folder) as fresh:
            (fresh / "weights").write_text("old")
        folder.rename(self.root / ".supernet.old")  # where a crash leaves it
        workdir.recover(folder)
        self.assertEqual((folder / "weights").read_text(), "old")
        folder.rename(self.root / ".supernet.old")
        with self.assertRaises(ZeroDivisionError), workdir.writing_folder(folder):
            _ = 1 / 0  # a failed write brings it back too
        self.assertEqual(os.listdir(self.root), ["supernet"])
        workdir.recover(self.root / "nothing")  # is nothing to bring back

    def test_whatever_write_is_killed_a_folder_is_the_old_one_or_the_new_one(self):
        folder = self.root / "bundle"

        def write(content):
            with workdir.writing_folder(folder) as fresh:
                workdir.write_json(fresh / "a.json", content)
                workdir.write_arrays(fresh / "deep" / "b.npz", {"b": np.array(content)})
                workdir.write_manifest(fresh, config={}, seed=content, data={}, parents={})

        write(0)
        seen, last = set(), 0
        for content in range(1, 1000):
            # At the content-th call that Python reports: open, rename, mkdir, rmdir ..
            if killed_at_call(content, lambda content=content: write(content)):
                workdir.recover(folder)
                found = workdir.read_manifest(folder)["seed"]
                self.assertIn(found, (last, content))
                self.assertEqual(workdir.read_json(folder / "a.json"), found)
                seen.add(found == content)
                last = found
                continue
            break
        self.assertEqual(workdir.read_manifest(folder)["seed"], content)
        self.assertEqual(os.listdir(self.root), ["bundle"])  # what was left is swept away
        self.assertGreater(content, 30)
        self.assertEqual(seen, {False, True})

    def test_a_folder_that_is_being_written_is_not_swept_away(self):
        folder = self.root / "bundle"
        with workdir.writing_folder(folder) as slow:
            with workdir.writing_folder(folder) as fast:
                (fast / "a").write_text("fast")
            self.assertEqual((folder / "a").read_text(), "fast")
            (slow / "a").write_text("slow")
        self.assertEqual((folder / "a").read_text(), "slow")
        self.assertEqual(os.listdir(self.root), ["bundle"])

    def test_one_process_owns_a_path_until_it_ends(self):
        path = self.root / "records.db"
        code = (
            "import pathlib, sys, time; from tfgen import workdir\n"
            "with workdir.owning(pathlib.Path(sys.argv[1])):\n"
            "  print('mine', flush=True); time.sleep(60)"
        )
        other = subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self.addCleanup(other.kill)
        self.assertEqual(other.stdout.readline(), "mine\n")
        message = f"records.db: process {other.pid} is at work on it"
        with self.assertRaisesRegex(errors.UsageError, message), workdir.owning(path):
            self.fail("two own it")
        other.kill()
        other.communicate()
        with workdir.owning(path):
            message = f"process {os.getpid()} is"
            with self.assertRaisesRegex(errors.UsageError, message), workdir.owning(path):
                self.fail("two own it")
        with workdir.owning(path):
            pass

    def test_a_manifest_finds_changed_and_missing_files(self):
        folder = self.root / "artefact"
        workdir.write_json(folder / "a.json", 1)
        workdir.write_json(folder / "deep" / "b.json", 2)
        written = workdir.write_manifest(
            folder, config={"x": 1}, seed=3, data={"d": "f"}, parents={"p": "0"}
        )
        self.assertEqual(sorted(written["files"]), ["a.json", "deep/b.json"])
        self.assertEqual(workdir.read_manifest(folder)["seed"], 3)
        (folder / "deep" / "b.json").write_text("3\n")
        with self.assertRaisesRegex(errors.CorruptFileError, "b.json: sha256 differs"):
            workdir.read_manifest(folder)
        (folder / "deep" / "b.json").unlink()
        with self.assertRaisesRegex(errors.CorruptFileError, "b.json: file is missing"):
            workdir.read_manifest(folder)

    def test_damaged_json_and_arrays_are_named(self):
        path = self.root / "manifest.json"
        for content in (b"", b"{", b"\xff\xfe", b"[1, 2]", json.dumps({"files": 3}).encode()):
            path.write_bytes(content)
            with self.assertRaisesRegex(errors.CorruptFileError, "manifest.json"):
                workdir.read_manifest(self.root)
        (self.root / "x.npz").write_bytes(b"PK\x03\x04 no archive")
        with self.assertRaisesRegex(errors.CorruptFileError, "x.npz"):
            workdir.read_arrays(self.root / "x.npz")


if __name__ == "__main__":
    absltest.main()
