"""What a config file describes: how a bundle comes to be."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfgen import errors, generators
from tfgen.evidence.surrogate import SurrogateConfig
from tfgen.training.recipe import Recipe, SupernetRecipe


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config file describes: from a space and data to a bundle.

    Attributes:
      name: of the bundle.
      space: of the catalogue.
      dataset: of the catalogue.
      records: how many trainings to collect.
      gap_networks: how many records are delivered as files to measure the gap.
      recipe: of every training; of deliveries from scratch where there is a supernet.
      surrogate: how the encoder is fitted.
      methods: by method, its configuration.
      seed: of everything.
      rounds: how often the first method's generator proposes networks that are trained, for
        the encoder and the generators to be fitted anew. A generator finds what its encoder
        overrates; the encoder learns that only from such networks.
      round_networks: how many in a round.
      round_portions: in which a round's networks are proposed and trained; the encoder and the
        generator are those of the round, but answers know the trainings of earlier portions.
      answer_share: of a round's networks, how many answer budgets; the others are drawn for
        conditions.
      supernet: how the weights that all networks share are trained. Records are then networks that
        inherit theirs; None where each is trained by itself.
      fine_tuning: how deliveries go on from inherited weights; None where there is no supernet.
    """

    name: str
    space: str
    dataset: str
    records: int
    gap_networks: int
    recipe: Recipe
    surrogate: SurrogateConfig
    methods: Mapping[str, Any]
    seed: int
    rounds: int = 0
    round_networks: int = 500
    round_portions: int = 1
    answer_share: float = 0.5
    supernet: SupernetRecipe | None = None
    fine_tuning: Recipe | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.answer_share <= 1:
            raise ValueError(f"answer_share must lie in 0..1: {self}")
        if self.recipe.distils:
            raise ValueError(f"a training from scratch has no teacher: {self.recipe}")
        if (self.supernet is None) != (self.fine_tuning is None):
            raise ValueError("a supernet needs fine_tuning, which nothing else has")
        if self.rounds < 0 or self.round_networks < 1 or (self.rounds and not self.methods):
            raise ValueError(f"rounds need a method and at least one network: {self}")
        if not 1 <= self.round_portions <= self.round_networks:
            raise ValueError(f"a round has 1 to round_networks portions: {self}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Experiment:
        """Reads a config's plain values; raises UsageError for what is not known."""
        try:
            methods = {
                name: generators.get(name).config(**values)
                for name, values in config["methods"].items()
            }
            supernet, tuning = config.get("supernet"), config.get("fine_tuning")
            return cls(
                config["name"],
                config["space"],
                config["dataset"],
                config["records"],
                config["gap_networks"],
                Recipe.from_json(config["recipe"]),
                SurrogateConfig(**config["surrogate"]),
                methods,
                config["seed"],
                config.get("rounds", 0),
                config.get("round_networks", 500),
                config.get("round_portions", 1),
                config.get("answer_share", 0.5),
                None if supernet is None else SupernetRecipe.from_config(supernet),
                None if tuning is None else Recipe.from_json(tuning),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise errors.UsageError(f"config: {error}") from error

    def to_json(self) -> dict[str, Any]:
        data = dataclasses.asdict(self)
        # Fits and proposals are named by this, and are older than some fields.
        data["recipe"] = {"float_share": 0.0} | self.recipe.to_json()
        if self.round_portions == 1:
            del data["round_portions"]
        if self.supernet is None or self.fine_tuning is None:
            del data["supernet"], data["fine_tuning"]
        else:
            data["supernet"] = self.supernet.to_json()
            older = {"float_share": 0.0, "patience": 0, "shift": 0, "flip": False}
            data["fine_tuning"] = older | self.fine_tuning.to_json()
        return data

    def supernet_json(self) -> dict[str, Any]:
        """What decides the supernet's weights; raises UsageError where there is none."""
        if self.supernet is None:
            raise errors.UsageError(f"config {self.name!r} has no supernet")
        own = {name: getattr(self, name) for name in ("space", "dataset", "seed")}
        return {**own, "supernet": self.supernet.to_json()}
