"""Reg.A of the NAGAN paper for the best answers to budgets: three quarters are the generator's own.

    tfgen-collect --config=configs/quartic_mlp_answers.py --work_dir=DIR
    tfgen-train --config=configs/quartic_mlp_answers.py --work_dir=DIR

As many trainings as quartic_mlp, of which 2,000 are at random and 6,000 answer budgets from small
to large, in three rounds. Each round fits the encoder and the generator anew; its eight portions
know the trainings of those before. INAG's first seed of table 3 is
made with it.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "name": "quartic_mlp_answers",
            "space": "quartic_mlp",
            "dataset": "quartic",
            "records": 2000,
            "rounds": 3,
            "round_networks": 2000,
            "round_portions": 8,
            "answer_share": 1.0,
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
