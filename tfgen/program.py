"""What every program does around its main: flags, help, errors as one line, exit codes."""

from __future__ import annotations

import math
import os
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

from tfgen import errors

_INTERRUPTED = 130
_QUOTED = 2_000  # characters of an error
_ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
_HELP = frozenset({"-h", "-help", "--help", "--helpshort", "--helpfull"})


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs an absl main and exits: 0 done, 2 bad usage, and what the error raised says."""
    module = sys.modules[main.__module__]

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            if _HELP.intersection(argv):
                _help(module, everything="--helpfull" in argv)
                sys.exit(0)
            rest: list[str] = flags.FLAGS(list(argv))
            for name, value in flags.FLAGS.flag_values_dict().items():
                if isinstance(value, float) and math.isnan(value):  # absl's bounds let it through
                    raise ValueError(f"flag --{name}=nan: is no number")
        except Exception as error:  # a --config file is Python, and may raise anything
            # Some of absl's messages have several lines; what helps stands in the first.
            text = (str(error) or type(error).__name__).strip().splitlines()[0]
            print(f"error: {text}", file=sys.stderr)
            sys.exit(errors.UsageError.exit_code)
        return rest

    def guarded(argv: Sequence[str]) -> int | None:
        try:
            if len(argv) > 1:
                raise errors.UsageError(f"unexpected argument {argv[1]!r}; options start with --")
            return main(argv)
        except errors.TfgenError as error:
            complain(error)
            return error.exit_code
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            print(f"error: {where}{error.strerror or error}", file=sys.stderr)
            return errors.TfgenError.exit_code
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return _INTERRUPTED

    # `bazel run` starts programs elsewhere and says where the user stood.
    os.chdir(os.environ.get("BUILD_WORKING_DIRECTORY", "."))
    app.run(guarded, flags_parser=parse)


def prefer_onednn() -> None:
    """Chooses oneDNN's kernels before TensorFlow is imported, for work on supernets.

    oneDNN is TensorFlow's default where there is AVX-512. Elsewhere depthwise convolutions take two
    to four times as long without it; but there its gradients of 1x1 kernels of stride 2 on fewer
    than eight channels are wrong, now and then, which no supernet has and other networks may have.
    A user who sets the variable has the last word.
    """
    os.environ.setdefault(_ONEDNN, "1")


def _help(module: types.ModuleType, everything: bool) -> None:
    """Prints a program's flags.

    absl's own help looks for them in the script that was started, which may be a wrapper.
    """
    print(module.__doc__)
    print(str(flags.FLAGS) if everything else flags.FLAGS.module_help(module))


def config(flag: flags.FlagHolder[Any]) -> dict[str, Any]:
    """The values of a --config flag; raises UsageError where none is given."""
    if flag.value is None:
        raise errors.UsageError("give --config, as in --config=configs/california_housing_mlp.py")
    try:
        values: dict[str, Any] = flag.value.to_dict()
    except Exception as error:  # the file is Python, and may raise anything
        text = " ".join(str(error).split())
        raise errors.UsageError(f"--config cannot be read: {text}") from error
    return values


def complain(error: errors.TfgenError, flag: str = "budget") -> None:
    """Prints an error as a line, and the nearest feasible budget where it carries one.

    Args:
      error: which.
      flag: by which budgets are asked for.
    """
    text = str(error)
    if len(text) > _QUOTED:  # names in files of others may have millions
        text = f"{text[:_QUOTED]}..."
    print(f"error: {text}", file=sys.stderr)
    nearest = getattr(error, "nearest", None)
    if nearest is not None:
        print(f"nearest feasible: --{flag}={nearest}", file=sys.stderr)
