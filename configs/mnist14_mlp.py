"""MNIST at 14x14 with small quantized MLPs: experiment Cls.A of the NAGAN paper (table 2).

    tfgen-collect --config=configs/mnist14_mlp.py --work_dir=DIR --data_dir=TFDS
    tfgen-train --config=configs/mnist14_mlp.py --work_dir=DIR --data_dir=TFDS

10,000 records, the paper's number. Two cores cannot train so many on 784 pixels in reasonable time:
the means of 2x2 pixels are a fourth of that, and cost a point of accuracy. A record is the best of
four trainings of 400 steps. `configs/mnist_mlp.py`, whose bundle ships, has all pixels and 2,600
records.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "name": "mnist14_mlp",
            "space": "mnist14_mlp",
            "dataset": "mnist_14x14",
            "records": 10_000,
            "gap_networks": 30,
            "recipe": {
                "steps": 400,
                "batch_size": 64,
                "learning_rate": 1e-2,
                "warmup_steps": 100,
                "starts": 4,
            },
            "surrogate": {},
            "methods": {"nagan": {}, "random": {}},
            "seed": 2020,
        }
    )
