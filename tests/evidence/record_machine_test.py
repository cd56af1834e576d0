"""The record store beside a dictionary: appended to, reopened and killed, by two connections."""

import pathlib
import shutil
import sqlite3
import tempfile

import hypothesis
from absl.testing import absltest
from hypothesis import stateful
from hypothesis import strategies as st

from tests import strategies
from tests.space.small import small_space
from tfgen import errors
from tfgen.evidence.record import Key, Record, RecordStore

SPACE = small_space()
FILLING = 300  # records, in more pages than the killed writer below keeps in memory


def filling() -> list[Record]:
    architecture = SPACE.point({})
    return [Record(architecture, "filling", "recipe", n, n / 8, 0.5) for n in range(FILLING)]


class StoreMachine(stateful.RuleBasedStateMachine):
    """What was appended is there, once, as it first was, whatever happened since."""

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.path = pathlib.Path(self.temporary.name) / "records.db"
        self.stores = [RecordStore(self.path, SPACE) for _ in range(2)]
        self.model: dict[Key, Record] = {}

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        self.temporary.cleanup()

    def remember(self, records: list[Record]) -> None:
        for record in records:
            self.model.setdefault(record.key, record)

    @stateful.rule(
        number=st.integers(0, 1), records=st.lists(strategies.records(SPACE), max_size=4)
    )
    def append(self, number: int, records: list[Record]) -> None:
        self.stores[number].append(records)
        self.remember(records)

    @stateful.rule(number=st.integers(0, 1))
    def fill(self, number: int) -> None:
        self.stores[number].append(filling())
        self.remember(filling())

    @stateful.rule(number=st.integers(0, 1), data=st.data())
    def append_again(self, number: int, data: st.DataObject) -> None:
        """A training that is done twice may score otherwise; the first one counts."""
        if self.model:
            known = data.draw(st.sampled_from(sorted(self.model)))
            before = self.model[known]
            again = Record(before.architecture, *known[2:], before.metric + 1.0, 9.0)
            self.stores[number].append([again])

    @stateful.rule(number=st.integers(0, 1), good=strategies.records(SPACE))
    def append_what_is_no_record(self, number: int, good: Record) -> None:
        """All or none."""
        broken = Record(good.architecture, "data", "recipe", 3, None, None)  # type: ignore[arg-type]
        try:
            self.stores[number].append([good, broken])
        except errors.TfgenError:
            return
        raise AssertionError("a record without a score was stored")

    @stateful.rule(number=st.integers(0, 1))
    def reopen(self, number: int) -> None:
        self.stores[number].close()
        self.stores[number] = RecordStore(self.path, SPACE)

    @stateful.rule(number=st.integers(0, 1))
    def a_writer_gives_up(self, number: int) -> None:
        """Another process ends in the middle of a transaction."""
        connection = sqlite3.connect(self.path, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM records")
        connection.close()
        self.check(self.stores[number])

    @stateful.rule()
    def a_writer_is_killed(self) -> None:
        """The files as a kill leaves them: pages that were overwritten, and the journal of them."""
        writer = sqlite3.connect(self.path, isolation_level=None)
        writer.execute("PRAGMA cache_size=1")
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE records SET seconds = seconds + 1")
        with tempfile.TemporaryDirectory() as name:
            for path in self.path.parent.iterdir():
                shutil.copy(path, name)
            writer.execute("ROLLBACK")
            writer.close()
            with RecordStore(pathlib.Path(name) / self.path.name, SPACE) as left:
                self.check(left)

    @stateful.invariant()
    def both_agree_with_the_model(self) -> None:
        for store in self.stores:
            self.check(store)

    def check(self, store: RecordStore) -> None:
        assert store.keys() == set(self.model)
        assert len(store) == len(self.model)
        for dataset, recipe in {key[2:4] for key in self.model} | {("none", "none")}:
            wanted = {k: r for k, r in self.model.items() if k[2:4] == (dataset, recipe)}
            found = store.read(dataset, recipe)
            assert {record.key: record for record in found} == wanted
            assert len(found) == len(wanted)


class StoreMachineTest(absltest.TestCase):
    def test_what_was_appended_stays(self) -> None:
        bounded = hypothesis.settings(strategies.examples(20), stateful_step_count=20)
        stateful.run_state_machine_as_test(StoreMachine, settings=bounded)

    def test_a_kill_leaves_overwritten_pages(self) -> None:
        """The rule above meets what it says: pages on disk that only the journal takes back."""
        machine = StoreMachine()
        self.addCleanup(machine.teardown)
        machine.fill(0)
        before = machine.path.read_bytes()
        writer = sqlite3.connect(machine.path, isolation_level=None)
        self.addCleanup(writer.close)
        writer.execute("PRAGMA cache_size=1")
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE records SET seconds = seconds + 1")
        self.assertNotEqual(machine.path.read_bytes(), before)
        self.assertTrue(machine.path.with_name("records.db-journal").is_file())


if __name__ == "__main__":
    absltest.main()
