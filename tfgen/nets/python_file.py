"""A Python file of the user's own, which runs with the user's rights."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import sys
import types

_NAME = "prototype_factory"


def load(path: str | os.PathLike[str]) -> types.ModuleType:
    """The file as a module, which finds its neighbours; raises whatever its code raises.

    Raises:
      ImportError: its name is not that of a Python file.
    """
    spec = importlib.util.spec_from_file_location(_NAME, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{os.fspath(path)} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for the module that they are of
    sys.path.insert(0, str(pathlib.Path(path).parent))
    spec.loader.exec_module(module)
    return module
