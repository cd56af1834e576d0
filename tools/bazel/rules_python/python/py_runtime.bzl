"""Stands in for rules_python on Bazel 4."""

def py_runtime(interpreter_version_info = None, **kwargs):
    """py_runtime without the attributes that Bazel 4 does not know."""
    native.py_runtime(**kwargs)
