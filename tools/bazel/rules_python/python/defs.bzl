"""Stands in for rules_python on Bazel 4, which has these rules built in."""

py_binary = native.py_binary
py_library = native.py_library
py_test = native.py_test
