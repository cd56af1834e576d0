"""Reproduces the evaluations of the papers, with real trainings.

    reproduce --table=nagan4 --work_dir=ROOT --output_dir=DIR        mDist of the six experiments
    reproduce --table=nagan3 --work_dir=ROOT --output_dir=DIR        INAG against searches
    reproduce --table=ablation --work_dir=ROOT --output_dir=DIR      what helps the generator
    reproduce --figure=nagan4a --work_dir=ROOT --output_dir=DIR      mDist_r by number of records
    reproduce --figure=nagan4b --work_dir=ROOT --output_dir=DIR      performance against storage

    reproduce --table=sgnas3 --work_dir=ROOT --output_dir=DIR --tables_dir=TABLES    NAS-Bench-201
    reproduce --table=sgnas1 --work_dir=ROOT --output_dir=DIR --data_dir=TFDS    against searches
    reproduce --table=bits --work_dir=ROOT --output_dir=DIR --data_dir=TFDS      8, 4 and 2 bits
    reproduce --table=tuned --work_dir=ROOT --output_dir=DIR --data_dir=TFDS     after fine-tuning
    reproduce --table=sgnas5 --work_dir=ROOT --output_dir=DIR                    a step's memory
    reproduce --figure=sgnas6a --work_dir=ROOT --output_dir=DIR --data_dir=TFDS  ablations
    reproduce --figure=sgnas6b --work_dir=ROOT --output_dir=DIR                  supernets' sizes
    reproduce --figure=sgnas7 --work_dir=ROOT --output_dir=DIR --data_dir=TFDS   targets and priors

    reproduce --table=nag_devices --work_dir=ROOT --output_dir=DIR --tables_dir=TABLES
    reproduce --table=nag2|nag5 --work_dir=ROOT --output_dir=DIR --tables_dir=TABLES
    reproduce --table=nag_host --work_dir=ROOT --output_dir=DIR --data_dir=TFDS   measured here
    reproduce --table=nag1|nag3|nag4 --work_dir=ROOT --output_dir=DIR --tables_dir=TABLES

    reproduce --figure=gensynth1 --work_dir=ROOT --output_dir=DIR --data_dir=TFDS
    reproduce --figure=gensynth2 --work_dir=ROOT --output_dir=DIR --data_dir=TFDS    segmentation
    reproduce --figure=gensynth3 --work_dir=ROOT --output_dir=DIR --data_dir=TFDS    detection

ROOT/gensynth1 is the output directory of `generate --prototype`; models of `train_prototype` in
other folders of ROOT are compared with its networks.

Tables nag1, nag3 and nag4 come together, with figures nag3 and nag5; table sgnas3 writes its
paper's figure 5 too. ROOT holds a work directory for each config: ROOT/quartic_mlp/records.db and
so on, as `collect` makes them. Trainings and fits lie in ROOT/CONFIG/reproduce: a stopped run goes
on. CSV, Markdown, PNG and interactive HTML go to DIR.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Sequence

from absl import flags

from tfgen import errors, program, workdir
from tfgen.training import datasets
from tools import (
    charts,
    reproduce_cells,
    reproduce_distance,
    reproduce_front,
    reproduce_host,
    reproduce_nag,
    reproduce_search,
    reproduce_supernet,
    reproduce_synthesis,
    reproduce_variants,
)
from tools.reproduce_setting import EXPERIMENTS, Setting, published, work_dir

_TABLE = flags.DEFINE_enum(
    "table", None, [
        "nagan3", "nagan4", "ablation",
        "sgnas1", "sgnas3", "sgnas5", "bits", "tuned",
        "nag_devices", "nag_host", "nag1", "nag2", "nag3", "nag4", "nag5",
    ],
    "Which table.",
)  # fmt: skip
_FIGURE = flags.DEFINE_enum(
    "figure", None, [
        "gensynth1", "gensynth2", "gensynth3", "nag3", "nag5", "nagan4a", "nagan4b", "sgnas5",
        "sgnas6a", "sgnas6b", "sgnas7",
    ],
    "Which figure.",
)  # fmt: skip
_WORK_DIR = flags.DEFINE_string(
    "work_dir", None, "Where the configs' work directories are.", required=True
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Where results go.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS directory, for data that does not ship.")
_TABLES_DIR = flags.DEFINE_string("tables_dir", None, "Where NAS-Bench-201's tables are.")
_EXPERIMENTS = flags.DEFINE_list(
    "experiments", None, f"Of {', '.join(EXPERIMENTS)}. Default: all for nagan4, else Reg.A."
)
_RECORDS = flags.DEFINE_integer(
    "records", None, "Use only the first records of each plan; in nagan3 so many trainings are "
    "INAG's before any constraint is known.",
    lower_bound=1,
)  # fmt: skip
_GENERATORS = flags.DEFINE_integer(
    "generators", None, "Seeds of encoder and generator. Default: 3; 2 for nagan4a.", lower_bound=1
)
_NETWORKS = flags.DEFINE_integer(
    "networks", 20, "Networks a condition; of tuned, in all.", lower_bound=1
)
_REPEATED = flags.DEFINE_integer("repeated", 5, "Of these, trained twice.", lower_bound=1)
_FLOOR_NETWORKS = flags.DEFINE_integer("floor_networks", 10, "Records a condition.", lower_bound=1)
_RECORD_COUNTS = flags.DEFINE_list(
    "record_counts", [str(n) for n in reproduce_distance.RECORD_COUNTS], "Points of nagan4a."
)
_VARIANTS = flags.DEFINE_list("variants", list(reproduce_distance.VARIANTS), "Rows of ablation.")
_SEED_NUMBERS = flags.DEFINE_list(
    "seed_numbers", ["0", "1", "2", "3", "4"], "Seeds of each method in nagan3. Programs that do "
    "some each may share a work_dir; the last that is given all makes the table of all.",
)  # fmt: skip
_SEARCHERS = flags.DEFINE_list("searchers", ["genetic", "bayesian"], "Searches in nagan3.")
_SEARCH_EVALUATIONS = flags.DEFINE_integer(
    "search_evaluations", None, "Trainings of a search in nagan3. Default: INAG's records and ten.",
    lower_bound=10,
)  # fmt: skip
_MAX_SEARCH_SECONDS = flags.DEFINE_float(
    "max_search_seconds", 7200.0, "Of one search, after which it is stopped.", lower_bound=0.0
)
_FURTHER_SEEDS = flags.DEFINE_integer(
    "further_seeds", 5, "Seeds of nagan3 below this number also search at equal time and for "
    "constraints that nobody tuned for.",
    lower_bound=0,
)  # fmt: skip
_EVALUATIONS = flags.DEFINE_integer(
    "evaluations", 1000, "Networks that random search and evolution score for a limit in sgnas1.",
    lower_bound=1,
)  # fmt: skip
_CANDIDATES = flags.DEFINE_integer(
    "candidates", 30, "Networks of the generator that are scored for a limit in sgnas1.",
    lower_bound=1,
)  # fmt: skip
_BUDGETS = flags.DEFINE_integer("budgets", 5, "Limits in sgnas1 and nag_host.", lower_bound=1)
_PRIORS = flags.DEFINE_integer("priors", 4, "Generators in sgnas7.", lower_bound=1)
_DEVICE = flags.DEFINE_string(
    "device",
    None,
    "Whose latency sgnas7 asks for, beside MACs, and nag1 to nag5; for nag2 and "
    "nag5 pixel3 by default, for the others a phone, a CPU and a GPU.",
)
_SEED = flags.DEFINE_integer("seed", 1, "Of draws, trainings and searches.")
_PROCESSES = flags.DEFINE_integer(
    "processes", os.cpu_count() or 1, "Trainings at a time.", lower_bound=1
)
_TARGETS, _SCORED = 50, 10  # of sgnas7: targets of a cost, and answers whose accuracy is measured
_NETWORKS_AT_BITS = 50
_RANDOM_NETWORKS = 360  # of each supernet in sgnas6a: the paper's
_BATCHES = (32, 128)  # of sgnas5: the paper's


def main(argv: Sequence[str]) -> None:
    """Measures one table or figure and writes it."""
    del argv
    if (_TABLE.value is None) == (_FIGURE.value is None):
        raise errors.UsageError("give one of --table and --figure")
    wanted = _TABLE.value or _FIGURE.value
    if wanted in ("sgnas1", "sgnas6a", "sgnas7", "bits", "tuned", "nag_host"):  # depthwise layers
        program.prefer_onednn()
    charts.check()
    root = workdir.user_path(_WORK_DIR.value)
    folder = workdir.user_path(_OUTPUT_DIR.value)
    if _FIGURE.value in ("nag3", "nag5") or _TABLE.value in ("nag1", "nag3", "nag4"):
        sizes = reproduce_nag.Sizes(budgets=5)
        names = [_DEVICE.value] if _DEVICE.value else reproduce_front.DEVICES
        work = root / "nasbench201_nag"
        with workdir.owning(work):
            reproduce_front.front(_tables(), work, sizes, names, _SEED.value, folder, _say)
        return
    if wanted == "nag_host":
        with workdir.owning(root / reproduce_host.CONFIG / "reproduce"):
            host_lab = reproduce_host.lab(root, _DATA_DIR.value)
            reproduce_host.host(host_lab, _BUDGETS.value, _SEED.value, folder, _say)
        return
    if _TABLE.value in ("nag_devices", "nag2", "nag5"):
        with workdir.owning(root / "nasbench201_nag"):
            _nag(wanted, root, folder)
        return
    if _TABLE.value == "sgnas3" or _FIGURE.value == "sgnas5":
        reproduce_cells.table_3(
            _tables(),
            root / "nasbench201",
            _DATA_DIR.value,
            reproduce_cells.Sizes(),
            _SEED.value,
            folder,
            _say,
        )
        return
    if wanted.startswith("gensynth"):
        number = int(wanted[-1])
        reproduce_synthesis.figure(number, root, _DATA_DIR.value, _SEED.value, folder, _say)
        return
    if wanted == "sgnas5":
        space = reproduce_supernet.experiment().space
        reproduce_variants.table_5(space, _BATCHES, folder, _say)
        return
    if wanted == "sgnas6a":
        experiment = reproduce_supernet.experiment()
        reproduce_variants.figure_6a(
            experiment,
            root / reproduce_supernet.CONFIG / "reproduce" / "variants",
            datasets.load(experiment.dataset, _DATA_DIR.value),
            _RANDOM_NETWORKS,
            _SEED.value,
            folder,
            _say,
        )
        return
    if wanted == "sgnas6b":
        reproduce_supernet.figure_6b(folder, _say)
        return
    if wanted in ("sgnas1", "sgnas7", "bits", "tuned"):
        _supernet(wanted, root, folder)
        return
    labels = _EXPERIMENTS.value or (list(EXPERIMENTS) if wanted == "nagan4" else ["Reg.A"])
    for label in labels:
        published(label)
    for name in _VARIANTS.value:
        reproduce_distance.known_variant(name)
    for label in labels:
        work_dir(root, label)  # said before hours of work on the others
    settings = {
        label: functools.partial(
            Setting, label, root, _DATA_DIR.value, _PROCESSES.value, _RECORDS.value
        )
        for label in dict.fromkeys(labels)
    }
    folder.mkdir(parents=True, exist_ok=True)
    generators = _GENERATORS.value or (2 if wanted == "nagan4a" else 3)
    sizes = reproduce_distance.Sizes(
        generators, _NETWORKS.value, _REPEATED.value, _FLOOR_NETWORKS.value
    )
    if wanted == "nagan4":
        reproduce_distance.table_4(settings, sizes, _SEED.value, folder, _say)
        return
    if len(settings) > 1:
        raise errors.UsageError(f"{wanted} is of one experiment, got {', '.join(settings)}")
    (read,) = settings.values()
    with read() as setting:
        if wanted == "nagan4a":
            counts = _integers("record_counts", _RECORD_COUNTS.value)
            if _RECORD_COUNTS.value == _RECORD_COUNTS.default:
                counts = [count for count in counts if count <= setting.experiment.records]
            reproduce_distance.figure_4a(setting, counts, sizes, _SEED.value, folder, _say)
        elif wanted == "nagan4b":
            reproduce_distance.figure_4b(setting, _SEED.value, folder, _say)
        elif wanted == "ablation":
            names = _VARIANTS.value
            reproduce_distance.ablation(setting, sizes, _SEED.value, folder, _say, names)
        else:
            limits = reproduce_search.Sizes(
                _integers("seed_numbers", _SEED_NUMBERS.value),
                _SEARCHERS.value,
                _SEARCH_EVALUATIONS.value,
                _MAX_SEARCH_SECONDS.value,
                _FURTHER_SEEDS.value,
            )
            reproduce_search.table_3(setting, limits, _SEED.value, folder, _say)


def _tables() -> pathlib.Path:
    if _TABLES_DIR.value is None:
        raise errors.UsageError("give --tables_dir, the folder of nasbench201.csv.gz")
    return workdir.user_path(_TABLES_DIR.value)


def _nag(wanted: str, root: pathlib.Path, folder: pathlib.Path) -> None:
    """What is asked of cells of NAS-Bench-201."""
    sizes = reproduce_nag.Sizes()
    work = root / "nasbench201_nag"
    if wanted == "nag_devices":
        reproduce_nag.nag_devices(_tables(), work, sizes, _SEED.value, folder, _say)
        return
    compared = {
        "nag2": reproduce_nag.rewards_compared,
        "nag5": reproduce_nag.budgets_compared,
    }[wanted]
    reproduce_nag.nag_variants(
        wanted,
        compared(sizes.config),
        _tables(),
        work,
        sizes,
        _DEVICE.value or "pixel3",
        _SEED.value,
        folder,
        _say,
    )


def _supernet(wanted: str, root: pathlib.Path, folder: pathlib.Path) -> None:
    """What is asked of the CIFAR-10 supernet."""
    experiment = reproduce_supernet.experiment()
    with reproduce_supernet.Lab(root, _DATA_DIR.value, experiment) as lab:
        if wanted == "sgnas1":
            reproduce_supernet.table_1(
                lab,
                _EVALUATIONS.value,
                _CANDIDATES.value,
                _BUDGETS.value,
                _SEED.value,
                folder,
                _say,
            )
        elif wanted == "sgnas7":
            reproduce_supernet.figure_7(
                lab, _PRIORS.value, _TARGETS, _SCORED, _DEVICE.value, _SEED.value, folder, _say
            )
        elif wanted == "bits":
            reproduce_supernet.bits(lab, _NETWORKS_AT_BITS, _SEED.value, folder, _say)
        else:
            reproduce_supernet.tuned(lab, _NETWORKS.value, _SEED.value, folder, _say)


def _integers(name: str, texts: Sequence[str]) -> list[int]:
    """The numbers of a flag's list."""
    try:
        return [int(text) for text in texts]
    except ValueError as error:
        raise errors.UsageError(f"{name}: {error}") from error


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    program.run(main)
