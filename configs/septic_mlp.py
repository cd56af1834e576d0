"""A polynomial of degree 7 with small quantized MLPs: Reg.B of the NAGAN paper (table 2).

    tfgen-collect --config=configs/septic_mlp.py --work_dir=DIR
    tfgen-train --config=configs/septic_mlp.py --work_dir=DIR

8,000 records, the paper's number, each the best of sixteen short, calm trainings. Trained to the
end at a high rate, nearly all networks reach the noise, and which of a few poor places the others
reach is chance: retrained, the records nearest to a condition missed it by 19 % of the range. With
this recipe performance follows from size.
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
                "steps": 150,
                "batch_size": 64,
                "learning_rate": 4e-3,
                "warmup_steps": 20,
                "starts": 16,
            },
            "surrogate": {},
            "methods": {"nagan": {}, "random": {}},
            "seed": 2020,
        }
    )
