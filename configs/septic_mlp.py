"""A polynomial of degree 7 with small quantized MLPs: experiment Reg.B of the NAGAN paper (table 2).

    tfgen-collect --config=configs/septic_mlp.py --work_dir=DIR
    tfgen-train --config=configs/septic_mlp.py --work_dir=DIR

8,000 records, the paper's number, each the best of eight trainings from different weights: a
network of a few units ends in one of several poor places, and which one is chance. With one start
two trainings of a network differ by 12 % of the range in the middle of it, with eight by 2 %.
Expected: under five minutes on two idle cores, the best R² above 0.997; noise allows 0.9975.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "name": "septic_mlp",
            "space": "septic_mlp",
            "dataset": "septic",
            "records": 8000,
            "gap_networks": 30,
            "recipe": {
                "steps": 400,
                "batch_size": 32,
                "learning_rate": 3e-2,
                "warmup_steps": 40,
                "starts": 8,
            },
            "surrogate": {},
            "methods": {"nagan": {}, "random": {}},
            "seed": 2020,
        }
    )
