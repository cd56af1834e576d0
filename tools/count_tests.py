"""Counts test cases in what Bazel reports about a `bazel test`.

  bazel test //... --build_event_json_file=events.json
  python3 tools/count_tests.py --bazel_exit_code=$? events.json

Prints the logs of failed tests and closes with the line "N passed, N failed". The exit code is 0
only if Bazel's was, and at least one test ran, and none failed. Needs nothing but Python, so that
it also tells of a build that could not install its packages.
"""

import argparse
import json
import pathlib
import sys
import urllib.parse
import xml.etree.ElementTree
from collections.abc import Iterable, Iterator
from typing import Any

MAX_LOGS = 20
MAX_LOG_BYTES = 20_000

Event = dict[str, Any]


class Tally:
    """Cases passed, failed and skipped, and the logs of what failed."""

    def __init__(self) -> None:
        self.passed = 0
        self.skipped = 0
        self.failures: list[str] = []
        self.logs: list[tuple[str, pathlib.Path]] = []


def read_events(path: pathlib.Path) -> list[Event]:
    """The events of a file that Bazel may have been stopped from finishing."""
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{path}: a line is cut off, Bazel did not finish it", file=sys.stderr)
    return events


def output(result: Event, name: str) -> pathlib.Path | None:
    """The file that a test left under a name such as test.xml."""
    for file in result.get("testActionOutput", ()):
        uri = urllib.parse.urlparse(file.get("uri", ""))
        if file.get("name") == name and uri.scheme == "file":
            path = pathlib.Path(urllib.parse.unquote(uri.path))
            return path if path.exists() else None
    return None


def cases(path: pathlib.Path | None) -> Iterator[tuple[str, str]]:
    """Name and outcome of each case in a test.xml: passed, failed or skipped."""
    if path is None:
        return
    try:
        root = xml.etree.ElementTree.parse(path).getroot()
    except xml.etree.ElementTree.ParseError:
        return
    for case in root.iter("testcase"):
        name = ".".join(filter(None, [case.get("classname"), case.get("name")]))
        if case.find("failure") is not None or case.find("error") is not None:
            yield name, "failed"
        elif case.find("skipped") is not None or case.get("status") == "notrun":
            yield name, "skipped"
        else:
            yield name, "passed"


def count(events: Iterable[Event], bazel_exit_code: int) -> Tally:
    tally = Tally()
    expected: set[str] = set()  # Labels of the test targets.
    last_attempt: dict[tuple[str, int, int], tuple[int, Event]] = {}

    for event in events:
        ident = event.get("id", {})
        if "targetConfigured" in ident and "testSize" in event.get("configured", {}):
            expected.add(ident["targetConfigured"]["label"])
        elif event.get("aborted", {}).get("reason") and (
            target := ident.get("targetConfigured") or ident.get("targetCompleted")
        ):
            expected.add(target["label"])  # Whether it is a test is not known: it counts as one.
        elif "testResult" in ident and "testResult" in event:
            key = ident["testResult"]
            place = (key["label"], key.get("run", 1), key.get("shard", 1))
            attempt = key.get("attempt", 1)
            if place not in last_attempt or attempt >= last_attempt[place][0]:
                last_attempt[place] = (attempt, event["testResult"])

    for (label, _, _), (_, result) in sorted(last_attempt.items()):
        status = result.get("status", "NO_STATUS")
        outcomes = list(cases(output(result, "test.xml")))
        failed = [f"{label} {name}" for name, outcome in outcomes if outcome == "failed"]
        if status not in ("PASSED", "FLAKY") and not failed:
            failed = [f"{label} ({status})"]
        tally.passed += sum(outcome == "passed" for _, outcome in outcomes)
        tally.skipped += sum(outcome == "skipped" for _, outcome in outcomes)
        tally.failures += failed
        log = output(result, "test.log")
        if failed and log is not None:
            tally.logs.append((label, log))

    ran = {label for label, _, _ in last_attempt}
    tally.failures += [
        f"{label} (did not build, or did not run)" for label in sorted(expected - ran)
    ]
    if bazel_exit_code != 0 and not tally.failures:
        tally.failures.append(f"Bazel itself (exit code {bazel_exit_code}; its message is above)")
    return tally


def tail(path: pathlib.Path) -> str:
    data = path.read_bytes()
    text = data[-MAX_LOG_BYTES:].decode("utf-8", errors="replace")
    cut = len(data) - MAX_LOG_BYTES
    return f"[the first {cut} bytes are left out]\n{text}" if cut > 0 else text


def main() -> int:
    parser = argparse.ArgumentParser(description="Counts test cases in Bazel's build events.")
    parser.add_argument("events", type=pathlib.Path, help="the file of --build_event_json_file")
    parser.add_argument("--bazel_exit_code", type=int, default=0)
    arguments = parser.parse_args()

    tally = count(read_events(arguments.events), arguments.bazel_exit_code)
    for label, log in tally.logs[:MAX_LOGS]:
        print(f"\n==================== {label}\n{tail(log)}")
    if len(tally.logs) > MAX_LOGS:
        print(f"\n[{len(tally.logs) - MAX_LOGS} more logs are left out]")
    for failure in tally.failures:
        print(f"FAILED {failure}")
    if tally.skipped:
        print(f"{tally.skipped} skipped")
    print(f"{tally.passed} passed, {len(tally.failures)} failed", flush=True)
    return int(arguments.bazel_exit_code != 0 or bool(tally.failures) or tally.passed == 0)


if __name__ == "__main__":
    sys.exit(main())
