"""CIFAR-10 with small quantized CNNs: experiment Cls.C of the NAGAN paper (table 2).

tfgen-collect --config=configs/cifar10_cnn.py --work_dir=DIR --data_dir=TFDS
tfgen-train --config=configs/cifar10_cnn.py --work_dir=DIR --data_dir=TFDS
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
