"""Tests of what is read, which holds neither time nor memory."""

import pathlib
import resource
import tempfile
import time
from collections.abc import Callable
from typing import Any

from absl.testing import parameterized

from tfgen import errors

MOST_SECONDS, MOST_KB = 20, 600_000  # of one example, of all


class Frugal(parameterized.TestCase):
    """Of each example the time is bounded, of all together the memory."""

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @classmethod
    def tearDownClass(cls) -> None:
        grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - cls.peak_kb
        assert grown_kb < MOST_KB, grown_kb
        super().tearDownClass()

    def setUp(self) -> None:
        super().setUp()
        self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

    def loaded(self, load: Callable[[], Any], named: str) -> Any:
        """What is loaded; None where it is refused, which names the file in one line."""
        start = time.monotonic()
        try:
            return load()
        except errors.TfgenError as error:
            self.assertIn(named, str(error))
            self.assertNotIn("\n", str(error))
            return None
        finally:
            self.assertLess(time.monotonic() - start, MOST_SECONDS)
