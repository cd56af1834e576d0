"""Networks for CIFAR-10 with the units of MobileNetV3, whose shared weights shrink progressively.

    tfgen-train-supernet --config=configs/cifar10_once_for_all.py --work_dir=DIR --data_dir=TFDS
    tfgen-collect --config=configs/cifar10_once_for_all.py --work_dir=DIR --data_dir=TFDS
    tfgen-train --config=configs/cifar10_once_for_all.py --work_dir=DIR --data_dir=TFDS \\
        --device=host

NAG (Guo et al. 2021) on a space of Once-for-All (Cai et al. 2020): 5 to 24 million MACs. The
largest network is trained first, nearly all of it in float; then kernels (and bits), depths and
widths shrink in turn. A quarter of the steps go on training the largest network, which teaches the
others.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "name": "cifar10_once_for_all",
            "space": "cifar10_once_for_all",
            "dataset": "cifar10",
            "supernet": {
                "epochs": 30,
                "batch_size": 128,
                "float_share": 0.35,
                "largest_share": 0.25,
                "switchable": False,
                "distillation": 1.0,
                "phases": [
                    {"adds": "none", "epochs": 12, "learning_rate": 0.1},
                    {"adds": "kernel", "epochs": 5, "learning_rate": 0.04},
                    {"adds": "depth", "epochs": 6, "learning_rate": 0.04},
                    {"adds": "width", "epochs": 7, "learning_rate": 0.04},
                ],
            },
            "records": 4000,
            "gap_networks": 20,
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
            "surrogate": {},
            "methods": {"nag": {"costs": ("latency_ms", "macs", "params", "storage_kb")}},
            "seed": 2020,
        }
    )
