"""CIFAR-10 with small quantized CNNs: experiment Cls.C of the NAGAN paper (table 2).

    tfgen-collect --config=configs/cifar10_cnn.py --work_dir=DIR --data_dir=TFDS
    tfgen-train --config=configs/cifar10_cnn.py --work_dir=DIR --data_dir=TFDS

The paper's number of records. What makes them affordable on two cores is the recipe: images of
16x16, means of 2x2 pixels, and 400 steps of 48, half an epoch: 0.3 to 0.4 s of a core a record,
20,000 in about an hour. In a sample of 40 networks 98 of 100 accuracies were in 0.14..0.40, and two
trainings of one network differed by 0.012, 5 % of that range, on average.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "name": "cifar10_cnn",
            "space": "cifar10_cnn",
            "dataset": "cifar10_16x16",
            "records": 20_000,
            "gap_networks": 20,
            "recipe": {
                "steps": 400,
                "batch_size": 48,
                "learning_rate": 3e-3,
                "warmup_steps": 60,
            },
            "surrogate": {},
            "methods": {"nagan": {}, "random": {}},
            "seed": 2020,
        }
    )
