"""The shared weights of networks for CIFAR-10 of 2 to 25 million MACs, and what answers from them.

    tfgen-train-supernet --config=configs/cifar10.py --work_dir=DIR --data_dir=TFDS
    tfgen-collect --config=configs/cifar10.py --work_dir=DIR --data_dir=TFDS
    tfgen-train --config=configs/cifar10.py --work_dir=DIR --data_dir=TFDS

SGNAS (Huang and Chu, 2021). A third of the supernet's training is in float; after that every step
rounds weights to the bits that it draws. A quarter of the steps train the largest
network. Records are networks that inherit their weights, scored on 2,000 images; 120 more are what
the generator answers and draws after a first fit. `recipe` is that
of networks which are trained from scratch, `fine_tuning` that of networks which go on from their
inherited weights.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "name": "cifar10",
            "space": "cifar10_mobile",
            "dataset": "cifar10",
            "supernet": {
                "epochs": 50,
                "batch_size": 128,
                "learning_rate": 0.1,
                "float_share": 0.3,
                "largest_share": 0.25,
            },
            "records": 600,
            "gap_networks": 8,
            "rounds": 1,
            "round_networks": 120,
            "recipe": {
                "steps": 20_000,
                "batch_size": 128,
                "learning_rate": 3e-3,
                "warmup_steps": 500,
                "float_share": 0.5,
                "shift": 4,
                "flip": True,
            },
            "fine_tuning": {
                "steps": 6_000,
                "batch_size": 128,
                "learning_rate": 1e-3,
                "warmup_steps": 200,
                "patience": 8,
                "shift": 4,
                "flip": True,
            },
            "surrogate": {"steps": 2_000, "weight_decay": 0.5},
            # The first one answers; a plain dictionary would be sorted.
            "methods": ml_collections.ConfigDict(
                {"sgnas": {"teacher": "encoder", "constraint_weight": 8.0}, "random": {}},
                sort_keys=False,
            ),
            "seed": 2020,
        }
    )
