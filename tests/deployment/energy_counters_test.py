"""What an inference takes, by counters of a machine that is made up."""

import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest

from tfgen.deployment import energy_counters

_IDLE_W, _RUN_S, _RUN_MJ = 2.0, 0.01, 5.0


class Machine:
    """Two packages, a part of one of them, and a clock."""

    def __init__(self, root: pathlib.Path):
        self.root = root
        self.now_s = 0.0
        self.spent_uj = 0.0
        for zone, name in (
            ("intel-rapl:0", "package-0"),
            ("intel-rapl:0:0", "core"),
            ("intel-rapl:1", "package-1"),
        ):
            (root / zone).mkdir()
            (root / zone / "name").write_text(f"{name}\n")
            (root / zone / "energy_uj").write_text("999000000\n")
            (root / zone / "max_energy_range_uj").write_text("1000000000\n")

    def go_on(self, seconds: float, more_mj: float = 0.0) -> None:
        """Half of what it takes is told by each package; the part tells nonsense."""
        self.now_s += seconds
        self.spent_uj += 1e6 * _IDLE_W * seconds + 1e3 * more_mj
        for zone in ("intel-rapl:0", "intel-rapl:1"):
            told = round(999_000_000 + self.spent_uj / 2) % 1_000_000_000
            (self.root / zone / "energy_uj").write_text(f"{told}\n")
        (self.root / "intel-rapl:0:0" / "energy_uj").write_text("1\n")


class EnergyCountersTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.machine = Machine(self.root)

    def taken_mj(self, run_mj: float, zone: str = "") -> float | None:
        """Where a zone is named, it is gone after the first run."""
        counters = energy_counters.find(self.root)
        assert counters is not None

        def run() -> None:
            self.machine.go_on(_RUN_S, run_mj)
            if zone:
                (self.root / zone / "energy_uj").unlink()

        return energy_counters.of_a_run_mj(
            counters,
            run,
            clock=lambda: self.machine.now_s,
            rest=self.machine.go_on,
        )

    def test_packages_count_and_their_parts_do_not(self):
        counters = energy_counters.find(self.root)
        self.assertEqual(counters.read(), (999_000_000, 999_000_000))

    def test_a_counter_begins_again(self):
        counters = energy_counters.Counters((), (1000, 1000))
        self.assertEqual(counters.spent_uj((900, 10), (100, 30)), 200 + 20)

    def test_what_the_machine_takes_idle_is_taken_off(self):
        # Both counters begin again on the way: they are a joule from their end.
        self.assertAlmostEqual(self.taken_mj(_RUN_MJ), _RUN_MJ, delta=1e-3)

    def test_nothing_beyond_is_no_number(self):
        self.assertIsNone(self.taken_mj(-0.1))

    def test_a_counter_that_is_gone_later_is_no_number(self):
        self.machine.go_on = mock.Mock(wraps=self.machine.go_on)
        with mock.patch.object(energy_counters, "_SECONDS", _RUN_S / 2):  # one run
            self.assertIsNone(self.taken_mj(_RUN_MJ, "intel-rapl:1"))
        self.assertEqual(self.machine.go_on.call_count, 2)  # a rest and a run

    def test_counters_that_cannot_be_read_are_none(self):
        self.assertIsNone(energy_counters.find(self.root / "missing"))
        energy = self.root / "intel-rapl:1" / "energy_uj"
        energy.write_text("")
        self.assertIsNone(energy_counters.find(self.root))
        energy.unlink()
        self.assertIsNone(energy_counters.find(self.root))


if __name__ == "__main__":
    absltest.main()
