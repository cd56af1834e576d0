"""venv.bzl for MODULE.bazel. A file of its own, since Bazel 4 has no module_extension."""

load(":venv.bzl", "venv")

def _venv_extension_impl(_module_ctx):
    venv(
        name = "venv",
        lock = Label("//:requirements_lock.txt"),
    )

venv_extension = module_extension(implementation = _venv_extension_impl)
