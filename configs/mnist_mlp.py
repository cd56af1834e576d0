"""MNIST with small quantized MLPs: experiment Cls.A of the NAGAN paper (table 2).

    tfgen-collect --config=configs/mnist_mlp.py --work_dir=DIR --data_dir=TFDS
    tfgen-train --config=configs/mnist_mlp.py --work_dir=DIR --data_dir=TFDS

The paper has 10,000 records; this bundle has 2,600, each the better of two trainings of 1,000 steps
(2.5 epochs): about half an hour on two cores. Its figures are in docs/results.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "name": "mnist_mlp",
            "space": "mnist_mlp",
            "dataset": "mnist",
            "records": 2600,
            "gap_networks": 30,
            "recipe": {
                "steps": 1000,
                "batch_size": 128,
                "learning_rate": 5e-3,
                "warmup_steps": 250,
                "starts": 2,
            },
            "surrogate": {},
            # The first one answers; a plain dictionary would be sorted.
            "methods": ml_collections.ConfigDict(
                {
                    "nagan": {},
                    "nag": {"costs": ("storage_kb", "energy_uj", "macs", "params")},
                    "random": {},
                },
                sort_keys=False,
            ),
            "seed": 2020,
        }
    )
