"""Makes the Python environment that everything built here runs in.

The repository holds a virtual environment with exactly the packages of requirements_lock.txt, installed by pip
under the machine's own pip configuration, and a Python toolchain that points at it. It is made on the first build
and again whenever the lock file changes.
"""

_PYTHON_VERSION = "3.11"

_PROBE = "import sys; print('%d.%d' % sys.version_info[:2]); print(sys.executable)"

_TIMEOUT_SECONDS = 2 * 60 * 60

# What is needed to build the few packages that are published as source only. Installed first and from the lock, so
# that pip never fetches an unlocked build tool.
_BUILD_TOOLS = ["packaging", "setuptools", "wheel"]

_BUILD_FILE = """\
load("@rules_python//python:py_runtime.bzl", "py_runtime")
load("@rules_python//python:py_runtime_pair.bzl", "py_runtime_pair")

py_runtime(
    name = "python3",
    interpreter_path = "{interpreter}",
    interpreter_version_info = {{"major": "3", "minor": "11"}},
    python_version = "PY3",
    # The start script of each program: Bazel's default is whatever "python" is on PATH, and Debian has none.
    # -ES: it needs no packages, and starts faster without them.
    stub_shebang = "#!{interpreter} -ES",
)

py_runtime_pair(
    name = "runtimes",
    py3_runtime = ":python3",
)

toolchain(
    name = "toolchain",
    toolchain = ":runtimes",
    toolchain_type = "@rules_python//python:toolchain_type",
    visibility = ["//visibility:public"],
)
"""

def _find_python(ctx):
    """Returns the path of a Python of the right version, or stops with what was found instead."""
    wanted = ctx.os.environ.get("TFGEN_PYTHON")
    found = []
    for name in [wanted] if wanted else ["python3", "python" + _PYTHON_VERSION]:
        path = name if name.startswith("/") else ctx.which(name)
        if not path:
            found.append("no %s on PATH" % name)
            continue
        probe = ctx.execute([path, "-c", _PROBE])
        if probe.return_code != 0:
            found.append("%s, which does not run" % path)
            continue
        version, executable = probe.stdout.strip().split("\n")
        if version == _PYTHON_VERSION:
            return executable
        found.append("%s, which is Python %s" % (path, version))
    fail("\n".join([
        "",
        "tfgen needs Python {}, the newest that its TensorFlow tools support. Found: {}.",
        "Install it (Debian 12: apt-get install python3 python3-venv; elsewhere: pyenv install {}) and have it on",
        "PATH as python3 or python{}, or say where it is with TFGEN_PYTHON=/path/to/python{}.",
    ]).format(_PYTHON_VERSION, "; ".join(found), _PYTHON_VERSION, _PYTHON_VERSION, _PYTHON_VERSION))

def _run(ctx, arguments, failure):
    """Runs a command in view of the user and stops with `failure` if it fails."""
    result = ctx.execute(
        arguments,
        timeout = _TIMEOUT_SECONDS,
        quiet = False,
        environment = {
            # Of what may be set for the user's other Pythons, nothing may leak into this one. pip's own variables
            # and files are the machine's way to say where packages come from, and stay.
            "PYTHONHOME": "",
            "PYTHONNOUSERSITE": "1",
            "PYTHONPATH": "",
        },
    )
    if result.return_code != 0:
        fail("\n" + failure)

def _entries(lock, names):
    """Returns the part of a lock file's text that pins `names`."""
    kept = []
    keep = False
    for line in lock.split("\n"):
        if line and line[0] not in " #":
            keep = line.split("==")[0].strip() in names
        if keep:
            kept.append(line)
    return "\n".join(kept) + "\n"

def _venv_impl(ctx):
    lock = ctx.path(ctx.attr.lock)
    python = _find_python(ctx)

    ctx.report_progress("making a virtual environment with %s" % python)
    _run(
        ctx,
        [python, "-m", "venv", "venv"],
        "%s cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv" % python,
    )
    interpreter = str(ctx.path("venv/bin/python3"))

    pip_install = [interpreter, "-m", "pip", "install", "--no-user", "--progress-bar=off", "--require-hashes"]
    failure = "pip could not install the packages of requirements_lock.txt; its own message is above."
    ctx.report_progress("installing the packages of requirements_lock.txt; the first time takes minutes")
    ctx.file("build_tools.txt", _entries(ctx.read(lock), _BUILD_TOOLS), executable = False)
    _run(ctx, pip_install + ["--quiet", "-r", "build_tools.txt"], failure)
    _run(ctx, pip_install + ["--no-build-isolation", "--use-pep517", "-r", str(lock)], failure)

    ctx.file("BUILD.bazel", _BUILD_FILE.format(interpreter = interpreter), executable = False)

venv = repository_rule(
    implementation = _venv_impl,
    attrs = {
        "lock": attr.label(
            mandatory = True,
            allow_single_file = True,
            doc = "A pip requirements file with exact versions and hashes.",
        ),
    },
    environ = ["TFGEN_PYTHON"],
    doc = "A virtual environment with the packages of a lock file, and the Python toolchain that uses it.",
)
