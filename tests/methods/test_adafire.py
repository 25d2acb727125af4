"""AdaFire's choice of bursts: the dynamic programme against all choices, and the budget it keeps."""

import itertools
import random

import pytest
from support.networks import images, observed

from msat_det.methods.adafire import Try, choose
from msat_det.methods.convert import spiking_network


def tries(sites: int, seed: int) -> dict[str, list[Try]]:
    draw = random.Random(seed)
    first = Try(1, 1.0, 10.0)
    more = [[Try(g, 1 + draw.random(), 10 - 3 * draw.random() + 0.5) for g in (2, 3, 4)] for _ in range(sites)]
    return {f"s{i}": [first, *each] for i, each in enumerate(more)}


@pytest.mark.parametrize("budget", [None, 1.3, 2.0, 4.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_choice_is_the_best_of_all(budget: float | None, seed: int) -> None:
    given = tries(5, seed)

    def total(choice: tuple[Try, ...]) -> tuple[float, float]:
        return 1 + sum(t.spikes - 1 for t in choice), 10 + sum(t.error - 10 for t in choice)

    every = [
        (total(c), {n: t.gamma for n, t in zip(given, c, strict=True)}) for c in itertools.product(*given.values())
    ]
    allowed = [found for found in every if budget is None or found[0][0] <= budget + 1e-12]
    least = min(error for (_, error), _ in allowed)
    chosen = choose(given, budget)
    assert next(error for (_, error), gammas in every if gammas == chosen) == pytest.approx(least)


def test_a_budget_below_all_choices_leaves_single_spikes() -> None:
    assert set(choose(tries(4, 0), 0.5).values()) == {1}


def test_more_spikes_are_allowed_by_a_larger_budget() -> None:
    spent = []
    for budget in (2.0, 2.4, None):
        snn = spiking_network("adafire", {"budget": budget, "bursts": [2, 4], "factor": 0.4}, observed("plain"), 8)
        assert {n.gamma for n in snn.neurons.values()} <= {1, 2, 4}
        snn.run(images(), 8)
        spent.append(snn.counts[8].spikes_per_neuron)
    assert spent[0] < spent[1] < spent[2]
