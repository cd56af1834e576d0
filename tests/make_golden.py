"""Writes what later versions must open: python -m tests.make_golden FOLDER.

Golden files are never written anew: a version whose files differ adds a folder of its own, made by
this, and `golden_test` opens them all. What is learned here is small and of no use.
"""

import pathlib
import subprocess
import sys

import numpy as np

from tests.space.small import mlp, small_space
from tfgen import bundle as bundles
from tfgen import generators, seeds, workdir
from tfgen.cost.adapted_device import AdaptedDevice
from tfgen.cost.budget import Cost, Quantity
from tfgen.cost.cost_model import CostModel
from tfgen.cost.latency_table import Device, LatencyTable, NetworkTiming, OpTiming
from tfgen.cost.metrics import PerformanceScale
from tfgen.evidence import surrogate
from tfgen.evidence.insight import Insight, InsightSurrogate
from tfgen.evidence.reactions import Reactions
from tfgen.evidence.record import Record, RecordStore
from tfgen.generators import gensynth, nag, nagan, sgnas
from tfgen.generators.base import Evidence
from tfgen.space.lowering import lower
from tfgen.space.prototype import Prototype
from tfgen.space.search_space import Choices, SearchSpace
from tfgen.training import tasks
from tfgen.training.datasets import Dataset, Split
from tfgen.training.recipe import Recipe

RECIPE = Recipe(steps=20, batch_size=8, warmup_steps=2)
METHODS = {
    "nagan": nagan.NaganConfig(units=8, teaching_chains=100, teaching_kept=5, teaching_steps=50),
    "nag": nag.NagConfig(
        costs=("macs", "storage_kb"),
        budgets=5,
        embedding=8,
        units=8,
        steps=20,
        samples=8,
        evaluator_members=2,
        evaluator_units=8,
        evaluator_steps=20,
        evaluator_records=32,
    ),
    "sgnas": sgnas.SgnasConfig(costs=("macs", "storage_kb"), steps=20, channels=8),
}
GENSYNTH = gensynth.GensynthConfig(cycles=2, networks=4, steps=20, units=8)
BUDGET = ["--bundle=california_housing_mlp", "--budget=storage_kb=0.3,r2=0.65", "--count=2"]


def metrics_of(choices: Choices) -> np.ndarray:
    """A made-up truth: wider is better, from 0.1 to 0.7 [networks]."""
    widths = choices[:, 1] + np.where(choices[:, 0] == 1, choices[:, 3] + 1, 0)
    return 0.2 + 0.1 * widths


def records(space: SearchSpace, count: int) -> list[Record]:
    choices = space.sample(count, seeds.stream(1, "golden"))
    return [
        Record(space.architecture(row), "data", "recipe", number, float(metric), 0.25)
        for number, (row, metric) in enumerate(zip(choices, metrics_of(choices), strict=True))
    ]


def store(path: pathlib.Path) -> None:
    """Five records, the last with a cost that was measured."""
    space = small_space()
    made = records(space, 4)
    cost = Cost({"latency_ms": Quantity(0.125, "measured")})
    made.append(Record(made[0].architecture, "data", "recipe", 2**62, -1.5, 0.1, cost))
    with RecordStore(path, space) as opened:
        opened.append(made)


def encoder(path: pathlib.Path) -> None:
    """A bundle of records and an encoder, with a generator of each method that is taught so."""
    space = small_space()
    made = records(space, 200)
    scale = PerformanceScale.of([record.metric for record in made])
    config = surrogate.SurrogateConfig(members=2, units=8, steps=200, batch_size=32)
    fitted = surrogate.fit(space, made, scale, config, seed=2)
    evidence = Evidence(space, CostModel(space), made, fitted)
    answering = {
        name: generators.get(name).fit(evidence, config, 3) for name, config in METHODS.items()
    }
    answering["random"] = generators.get("random").restore(space, {})
    bundle = bundles.Bundle(
        "encoder", space, tasks.REGRESSION, "data", "0123456789ab", RECIPE, fitted, answering
    )
    bundles.save(path, bundle, config={"name": "encoder"}, seed=3, parents={"records.db": "0"})


def prototype(path: pathlib.Path) -> None:
    """A bundle of a prototype: an insight in the encoder's place, and shared weights."""
    from tfgen.nets.supernet import Supernet

    made = Prototype(mlp((16, 16, 1), (8, 8, 8), inputs=4), (4,))
    space = made.space("golden", compact=False)
    lost = tuple(np.linspace(1.0, 0.0, len(d.values)) for d in space.decisions)

    def evaluate(architectures, seed):
        metrics = 0.5 + 0.02 * space.choices(architectures).sum(axis=1)
        return [
            Record(architecture, "data", "recipe", seed, float(metric), 0.0)
            for architecture, metric in zip(architectures, metrics, strict=True)
        ]

    def probe(architectures):
        return [Reactions(np.ones(len(lost)), lost) for _ in architectures]

    evidence = Evidence(space, CostModel(space), evaluate=evaluate, probe=probe)
    generator = generators.get("gensynth").fit(evidence, GENSYNTH, 4)
    insight = InsightSurrogate.of(
        space, Insight(1.0, lost, lost, 0.0), np.linspace(-0.5, 0.5, 9), PerformanceScale(0.3, 0.9)
    ).with_gain(np.array([[0.4, 0.5], [0.7, 0.8]]))
    random = seeds.stream(5, "golden")
    splits = [
        Split(
            random.normal(size=(8, 4)).astype(np.float32),
            random.normal(size=(8, 1)).astype(np.float32),
        )
        for _ in range(3)
    ]
    shared = bundles.SharedWeights(
        {name: v.numpy() for name, v in Supernet(space, 1, switchable=False).variables.items()},
        Dataset("data_shipped", tasks.REGRESSION, *splits, {"input": "standardised"}),
        RECIPE,
    )
    bundle = bundles.Bundle(
        "prototype",
        space,
        tasks.REGRESSION,
        "data",
        "0123456789ab",
        RECIPE,
        insight,
        {"gensynth": generator, "random": generators.get("random").restore(space, {})},
        shared=shared,
    )
    bundles.save(path, bundle, config={"name": "golden"}, seed=4, parents={"gains.json": "0"})


def device(path: pathlib.Path) -> None:
    """Two ops and two networks that nobody timed."""
    space = small_space()
    architectures = [space.point({"depth": depth}) for depth in (1, 2)]
    timed = {"spread": 0.01, "quiet_windows": 5}
    ops = [
        OpTiming(layers=(layer,), latency_ms=0.001, **timed)
        for layer in lower(space, architectures[0])
    ]
    networks = [
        NetworkTiming(
            architecture=architecture,
            activation_bits=8,
            io="float",
            origin="selected",
            latency_ms=0.002 * number,
            **timed,
        )
        for number, architecture in enumerate(architectures, 1)
    ]
    LatencyTable(
        device=Device(
            name="board", processor="a processor", runtime="ai-edge-litert 2.3.0", threads=1
        ),
        date="2026-11-30",
        reference_ms=0.01,
        repeatability=0.02,
        ops=tuple(ops),
        networks=tuple(networks),
    ).save(path)


def adapted(path: pathlib.Path) -> None:
    """A new device, told by three networks of NAS-Bench-201."""
    AdaptedDevice(
        name=path.stem,
        description="a board",
        space="nasbench201",
        known=("pixel3", "raspi4"),
        date="2026-11-30",
        networks={(1,) * 6: 1.5, (2,) * 6: 2.5, (3,) * 6: 3.5},
    ).save(path)


def delivery(folder: pathlib.Path) -> None:
    """Candidates, and a file with its contract; takes half a minute."""
    with workdir.scratch() as out:
        subprocess.run(
            [sys.executable, "-m", "tfgen.generate", *BUDGET, f"--output_dir={out}"], check=True
        )
        (out / "candidates.json").rename(folder / "candidates.json")
        (made,) = (out / "deployments").iterdir()
        made.rename(folder / "deployment")


def main(folder: str) -> None:
    root = pathlib.Path(folder)
    root.mkdir(parents=True)
    store(root / "records.db")
    encoder(root / "encoder")
    prototype(root / "prototype")
    device(root / "board.json")
    adapted(root / "adapted.json")
    delivery(root)


if __name__ == "__main__":
    main(*sys.argv[1:])
