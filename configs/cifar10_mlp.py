"""CIFAR-10 with small quantized MLPs: experiment Cls.B of the NAGAN paper (table 2).

    tfgen-collect --config=configs/cifar10_mlp.py --work_dir=DIR --data_dir=TFDS
    tfgen-train --config=configs/cifar10_mlp.py --work_dir=DIR --data_dir=TFDS

The paper's number of records. What makes them affordable on two cores is the recipe: images of 8x8,
means of 4x4 pixels, and 400 steps of 64, three quarters of an epoch, from two starts: 0.11 s of a
core a record, 20,000 in twenty minutes. In a sample of 40 networks 98 of 100 accuracies were in
0.17..0.44, and two trainings of one network differed by 0.012, 4 % of that range, on average.

Few networks reach the highest conditions: with the default temperature of its teacher a generator
wrote 401 different networks in 1,000 draws there, hence a higher one.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "name": "cifar10_mlp",
            "space": "cifar10_mlp",
            "dataset": "cifar10_8x8",
            "records": 20_000,
            "gap_networks": 20,
            "recipe": {
                "steps": 400,
                "batch_size": 64,
                "learning_rate": 5e-3,
                "warmup_steps": 100,
                "starts": 2,
            },
            "surrogate": {},
            "methods": {"nagan": {"teaching_temperature": 0.007}, "random": {}},
            "seed": 2020,
        }
    )
