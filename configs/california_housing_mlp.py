"""California Housing with small quantized MLPs: experiment Reg.C of the NAGAN paper (table 2).

    tfgen-collect --config=configs/california_housing_mlp.py --work_dir=DIR
    tfgen-train --config=configs/california_housing_mlp.py --work_dir=DIR

Expected on two cores: 7,000 records (the paper's number), each the best of eight trainings, in
about twenty minutes; fitting in about six more, most of it the fifty deliveries that measure the
gap between a record and a file. The result ships as the bundle of this name; its figures are in
docs/results.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "name": "california_housing_mlp",
            "space": "california_housing_mlp",
            "dataset": "california_housing",
            "records": 7000,
            "gap_networks": 50,
            "recipe": {
                "steps": 1000,
                "batch_size": 64,
                "learning_rate": 2e-2,
                "warmup_steps": 250,
                "starts": 8,
            },
            "surrogate": {},
            "methods": {"nagan": {}, "random": {}},
            "seed": 2020,
        }
    )
