"""The shared weights of networks for CIFAR-10 of 2 to 25 million MACs (SGNAS).

    tfgen-train-supernet --config=configs/cifar10_supernet.py --work_dir=DIR --data_dir=TFDS

A third of the training is in float; after that every step rounds weights to the bits that it draws.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "name": "cifar10_supernet",
            "space": "cifar10_mobile",
            "dataset": "cifar10",
            "supernet": {"epochs": 30, "batch_size": 128, "learning_rate": 0.1},
            "seed": 2020,
        }
    )
