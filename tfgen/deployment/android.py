"""Runs a .tflite on a phone through adb and `benchmark_model`, and leaves nothing there."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator

from tfgen import errors, workdir
from tfgen.deployment import benchmark_output, benchmark_result
from tfgen.deployment.benchmark_delegates import ACCELERATORS, ASKED
from tfgen.deployment.measurement import Measurement

RUNS = 50
WARMUP = 1
TIMEOUT_SECONDS = 600.0
BINARY = "benchmark_model"

_FOLDER = "/data/local/tmp"  # the one place where a shell may write and execute
_QUICK_SECONDS = 30.0  # for what needs no time of the phone's
_CLEAN_SECONDS = 10.0  # where an error may already be on its way
_MASK = re.compile(r"(?:0x)?(0*[1-9a-fA-F][0-9a-fA-F]*)")
_LOST = re.compile(
    r"device (?:'[^']*' )?not found|device offline|device unauthorized|no devices/emulators found"
    r"|error: closed|protocol fault|[Cc]onnection reset|copy response: EOF"
)
_NO_SPACE = "No space left on device"
# Unknown flags are no error to the tools: --use_cpu is LiteRT's alone, the others TFLite's too.
_WHOLE = ("--require_full_delegation=true", "--use_cpu=false")
_DELEGATE_FLAGS = {
    "none": ("--use_xnnpack=false",),
    "xnnpack": ("--use_xnnpack=true",),
    "gpu": ("--use_gpu=true",),
    # NNAPI's own CPU is no accelerator.
    "nnapi": ("--use_nnapi=true", "--disable_nnapi_cpu=true"),
}


def measure(
    path: str | os.PathLike[str],
    *,
    binary: str | os.PathLike[str] | None = None,
    tools_dir: str | os.PathLike[str] | None = None,
    serial: str | None = None,
    threads: int = 1,
    runs: int = RUNS,
    warmup: int = WARMUP,
    delegate: str = "xnnpack",
    allow_partial: bool = False,
    taskset: str | None = None,
    profile: bool = False,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Measurement:
    """Times single inferences on random inputs on a phone.

    Args:
      path: the .tflite.
      binary: `benchmark_model` for the phone's processor; or
      tools_dir: a folder that has it as `<ABI>/benchmark_model`, such as arm64-v8a/benchmark_model,
        with the libraries (.so) that it needs beside it.
      serial: of the phone; None for $ANDROID_SERIAL or the only one.
      threads: of the runtime.
      runs: inferences timed at least; the tools time for a second at least.
      warmup: inferences before them at least; the tools take half a second at least.
      delegate: what shall run the ops, one of `benchmark_delegates.ASKED`.
      allow_partial: whether the CPU may run what an accelerator does not take.
      taskset: hexadecimal mask of the cores to run on, such as "f0"; None for all.
      profile: whether to bring the times of single ops, which makes the whole slower.
      timeout_seconds: for each copy to the phone and for the run.

    Raises:
      UsageError: an argument is out of range.
      CorruptFileError: the .tflite is missing.
      DeviceError: there is no phone to run on, it or the tool failed, or it took too long.
    """
    _check(threads, runs, warmup, delegate, timeout_seconds)
    mask = None if taskset is None else _mask(taskset)
    if (binary is None) == (tools_dir is None):
        raise errors.UsageError("give either benchmark_model itself or a folder of it by ABI")
    path = pathlib.Path(path).absolute()
    if not path.is_file():
        raise errors.CorruptFileError(f"{path}: file is missing")
    phone = connect(serial)
    abi = phone.property("ro.product.cpu.abi")
    device = phone.describe(abi)
    tool = _tool(binary, tools_dir, abi)
    with _folder(phone) as folder, tempfile.TemporaryDirectory(prefix="tfgen-") as local:
        remote_tool, model = f"{folder}/{BINARY}", f"{folder}/model.tflite"
        phone.push(tool, remote_tool, timeout_seconds)
        phone.push(path, model, timeout_seconds)
        phone.shell("chmod", "755", remote_tool)
        # LiteRT's accelerators are libraries of their own.
        libraries = sorted(tool.parent.glob("*.so")) if tools_dir is not None else []
        for library in libraries:
            phone.push(library, f"{folder}/{library.name}", timeout_seconds)
        result = f"{folder}/result.pb"
        words = ["env", f"LD_LIBRARY_PATH={folder}"] if libraries else []
        words += [remote_tool, f"--graph={model}", f"--result_file_path={result}"]
        words += [f"--num_threads={threads}", f"--num_runs={runs}", f"--warmup_runs={warmup}"]
        words += _DELEGATE_FLAGS[delegate]
        words += _WHOLE if delegate in ACCELERATORS and not allow_partial else ()
        words += ["--enable_op_profiling=true"] if profile else []
        words = words if mask is None else ["taskset", mask, *words]
        text = phone.run(words, timeout_seconds)
        output = benchmark_output.parse(text, delegate=delegate, allow_partial=allow_partial)
        written = phone.pull(result, pathlib.Path(local) / "result.pb")
        if written is not None:
            output = benchmark_result.with_result(output, written)
    return Measurement(
        latency_ms=output.latency_ms,
        median_ms=output.median_ms,
        mean_ms=output.mean_ms,
        p95_ms=output.p95_ms,
        std_ms=output.std_ms,
        min_ms=output.min_ms,
        init_ms=output.init_ms,
        runs=output.runs,
        warmup=output.warmup,
        threads=threads,
        peak_memory_kb=output.peak_memory_kb,
        peak_rss_kb=output.peak_rss_kb,
        # The tools do not tell their version.
        runtime=f"{output.tool} {workdir.sha256(tool)[:12]}",
        device=device,
        delegate=output.delegate,
        fully_accelerated=output.fully_accelerated,
        ops=output.ops,
        file_bytes=path.stat().st_size,
        sha256=workdir.sha256(path),
    )


def connect(serial: str | None = None) -> Phone:
    """The phone to use, after a look at its state.

    Args:
      serial: its serial number; None for $ANDROID_SERIAL or the only one.

    Raises:
      DeviceError: there is none, there are several, or it does not answer.
    """
    adb = shutil.which("adb")
    if adb is None:
        raise errors.DeviceError(
            "adb is not on PATH; install Android's platform tools (Debian: apt install adb)"
        )
    serial = serial or os.environ.get("ANDROID_SERIAL") or _only(adb)
    done = _call([adb, "-s", serial, "get-state"], _QUICK_SECONDS)
    said = done.output.strip() if done.code == 0 else done.text
    if said == "device":
        return Phone(adb, serial)
    for word, help_text in (
        ("unauthorized", "unlock the phone and allow USB debugging from this computer"),
        ("authorizing", "unlock the phone and allow USB debugging from this computer"),
        ("offline", "plug the phone in again, or run `adb reconnect`"),
        ("no permissions", "allow your user to use it (on Debian: apt install adb, plug in again)"),
        ("not found", "`adb devices` lists the serial numbers there are"),
        ("no devices", "`adb devices` lists the serial numbers there are"),
    ):
        if word in said:
            raise errors.DeviceError(f"phone {serial}: {word}; {help_text}")
    if done.code:
        raise errors.DeviceError(f"phone {serial}: adb failed: {_short(said)}")
    raise errors.DeviceError(f"phone {serial}: in state {said!r}, must be in state 'device'")


@dataclasses.dataclass(frozen=True)
class Phone:
    """A phone that answers; every call names it, since another may be plugged in at any time."""

    adb: str
    serial: str

    def shell(self, *words: str, timeout_seconds: float = _QUICK_SECONDS) -> str:
        """Runs a command on the phone and returns its standard output.

        Raises:
          DeviceError: the connection broke, it took too long, or the command failed.
        """
        done = self._adb("shell", shlex.join(words), timeout_seconds=timeout_seconds)
        if done.code:
            raise errors.DeviceError(f"phone {self.serial}: {words[0]} failed: {_short(done.text)}")
        return done.output

    def property(self, name: str) -> str:
        return self.shell("getprop", name).strip()

    def describe(self, abi: str) -> str:
        """Model, Android version and ABI; the serial number is nobody's business."""
        model = " ".join(map(self.property, ("ro.product.manufacturer", "ro.product.model")))
        version = self.property("ro.build.version.release")
        return ", ".join(filter(None, (model.strip(), version and f"Android {version}", abi)))

    def push(self, source: pathlib.Path, target: str, timeout_seconds: float) -> None:
        """Copies a file to the phone; raises DeviceError where it does not arrive."""
        done = self._adb("push", str(source), target, timeout_seconds=timeout_seconds)
        if _NO_SPACE in done.text:
            raise errors.DeviceError(
                f"phone {self.serial}: no space in {_FOLDER} for {source}; free some and try again"
            )
        # Some versions of adb return 0 all the same.
        if done.code or "failed to copy" in done.text:
            raise errors.DeviceError(
                f"phone {self.serial}: {source} cannot be copied to it: {_short(done.text)}"
            )

    def run(self, words: list[str], timeout_seconds: float) -> str:
        """Runs the benchmark and returns all that it wrote; raises DeviceError where it failed."""
        done = self._adb("shell", shlex.join(words), timeout_seconds=timeout_seconds)
        if done.code:
            failure = benchmark_output.failure_in(map(str.strip, done.text.split("\n")))
            if failure is None:
                failure = f"benchmark_model {_ended(done.code)}: {_short(done.text)}"
            raise errors.DeviceError(f"phone {self.serial}: {failure}")
        return done.text

    def pull(self, source: str, target: pathlib.Path) -> bytes | None:
        """A file of the phone; None where there is none, as tools before 2025 write none."""
        done = self._adb("pull", source, str(target), timeout_seconds=_QUICK_SECONDS)
        return target.read_bytes() if done.code == 0 and target.is_file() else None

    def clean(self, folder: str, running: bool) -> None:
        """Removes a folder of ours, and ends what still runs in it; says so where it cannot."""
        if running:
            # Brackets, so that the pattern is not found in the command that looks for it.
            name = folder.rpartition("/")[2]
            self._try("pkill", "-9", "-f", f"[{name[0]}]{name[1:]}")
        if not self._try("rm", "-rf", folder):
            print(
                f"warning: {folder} may be left on phone {self.serial}; when it answers again: "
                f"adb -s {shlex.quote(self.serial)} shell rm -rf {folder}",
                file=sys.stderr,
            )

    def _try(self, *words: str) -> bool:
        try:
            return self._adb("shell", shlex.join(words), timeout_seconds=_CLEAN_SECONDS).code == 0
        except errors.DeviceError:
            return False

    def _adb(self, *words: str, timeout_seconds: float) -> _Done:
        done = _call([self.adb, "-s", self.serial, *words], timeout_seconds)
        if done.code and (match := _LOST.search(done.said)):
            raise errors.DeviceError(
                f"phone {self.serial}: the connection broke ({match[0]}); check the cable and "
                "try again"
            )
        return done


@contextlib.contextmanager
def _folder(phone: Phone) -> Iterator[str]:
    """A new folder on the phone, gone when the block ends, however it ends."""
    name = f"{_FOLDER}/tfgen-{uuid.uuid4().hex}"
    running = True
    try:
        phone.shell("mkdir", name)
        yield name
        running = False
    finally:
        phone.clean(name, running)


def _check(threads: int, runs: int, warmup: int, delegate: str, timeout_seconds: float) -> None:
    if threads < 1 or runs < 1 or warmup < 0 or not timeout_seconds > 0:
        raise errors.UsageError(
            "need threads >= 1, runs >= 1, warmup >= 0, timeout > 0; "
            f"got {threads}, {runs}, {warmup}, {timeout_seconds}"
        )
    if delegate not in ASKED:
        raise errors.UsageError(f"delegate must be one of {', '.join(ASKED)}, got {delegate!r}")


def _mask(taskset: str) -> str:
    """The digits of a mask, which is what Android's `taskset` takes."""
    match = _MASK.fullmatch(taskset)
    if match is None:
        raise errors.UsageError(
            "taskset must be a hexadecimal mask of cores, such as f0 for the upper four of eight; "
            f"got {taskset!r}"
        )
    return match[1]


def _only(adb: str) -> str:
    """The serial number of the one phone that adb knows."""
    done = _call([adb, "devices"], _QUICK_SECONDS)
    if done.code:
        raise errors.DeviceError(f"adb failed: {_short(done.text)}")
    lines = [line for line in done.output.split("\n") if not line.startswith(("*", "List of "))]
    rows = [line.split(maxsplit=1) for line in lines if len(line.split()) > 1]
    if not rows:
        raise errors.DeviceError(
            "no phone; connect one with USB debugging on, until `adb devices` lists it"
        )
    if len(rows) > 1:
        known = ", ".join(f"{serial} ({state.strip()})" for serial, state in rows)
        raise errors.DeviceError(f"{len(rows)} phones: {known}; name one with --serial")
    return rows[0][0]


def _tool(
    binary: str | os.PathLike[str] | None, tools_dir: str | os.PathLike[str] | None, abi: str
) -> pathlib.Path:
    if binary is not None:
        path = pathlib.Path(binary).absolute()
        if not path.is_file():
            raise errors.UsageError(f"{path}: there is no benchmark_model")
        return path
    folder = pathlib.Path(tools_dir or "").absolute()
    path = folder / abi / BINARY
    if not abi or not path.is_file():
        there = sorted(p.parent.name for p in folder.glob(f"*/{BINARY}"))
        raise errors.UsageError(
            f"{path}: there is no benchmark_model for the phone's ABI {abi!r}; "
            f"{folder} has it for: {', '.join(there) or 'none'}"
        )
    return path


@dataclasses.dataclass(frozen=True)
class _Done:
    """What a call of adb came to: its exit code, standard output and standard error."""

    code: int
    output: str
    said: str

    @property
    def text(self) -> str:
        return "\n".join(filter(None, (self.output, self.said)))


def _call(command: list[str], timeout_seconds: float) -> _Done:
    """Runs adb, which has a session of its own so that all of it can be ended."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            output, said = process.communicate(timeout=timeout_seconds)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise errors.DeviceError(
                    f"`{_named(command)}` did not finish within "
                    f"{timeout_seconds:g} s; raise the time-out, or look at the phone"
                ) from None
            raise
    return _Done(process.returncode, output.decode(errors="replace"), said.decode(errors="replace"))


def _named(command: list[str]) -> str:
    """The beginning of a command, which says what it does; where the program lies says nothing."""
    return shlex.join([pathlib.PurePath(command[0]).name, *command[1:]])[:300]


def _short(text: str) -> str:
    """The end of the last line that says something."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return lines[-1][-300:] if lines else "no word"


def _ended(code: int) -> str:
    if code == 255:  # adb's own, where the phone sent no exit code
        return "was not seen to end; check the cable"
    try:
        return f"was ended by {signal.Signals(code - 128).name} (exit code {code})"
    except ValueError:
        return f"failed (exit code {code})"
