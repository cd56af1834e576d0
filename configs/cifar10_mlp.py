"""CIFAR-10 with small quantized MLPs: experiment Cls.B of the NAGAN paper (table 2).

tfgen-collect --config=configs/cifar10_mlp.py --work_dir=DIR --data_dir=TFDS
tfgen-train --config=configs/cifar10_mlp.py --work_dir=DIR --data_dir=TFDS
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
            "methods": {"nagan": {}, "random": {}},
            "seed": 2020,
        }
    )
