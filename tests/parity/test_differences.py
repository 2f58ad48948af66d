"""Tests of the tolerances."""

import pytest
import torch
from differences import NOISE, Differences, Step, Values
from torch import Tensor


def compared(ours: Tensor, recorded: Tensor, allowed: float = 0.01) -> Differences:
    differences = Differences()
    differences.add("part", "name", ours, recorded, allowed)
    return differences


def test_a_difference_is_relative_to_the_largest_recorded_number() -> None:
    recorded = torch.tensor([100.0, 1.0])

    compared(recorded + torch.tensor([0.0, 0.9]), recorded).verify()
    with pytest.raises(AssertionError, match=r"part name: 1.10e-02 > 1.00e-02"):
        compared(recorded + torch.tensor([0.0, 1.1]), recorded).verify()


def test_each_layer_of_prompts_has_its_own_scale() -> None:
    recorded = torch.tensor([100.0, 1.0]).view(2, 1, 1)

    with pytest.raises(AssertionError):
        compared(recorded + torch.tensor([0.0, 0.9]).view(2, 1, 1), recorded).verify()


@pytest.mark.parametrize("ours", [torch.zeros(3), torch.zeros(2, 1), torch.full((2,), torch.nan)])
def test_other_shapes_and_no_numbers_differ(ours: Tensor) -> None:
    with pytest.raises(AssertionError):
        compared(ours, torch.zeros(2)).verify()


def test_comparing_nothing_is_no_agreement() -> None:
    with pytest.raises(AssertionError, match="nothing was compared"):
        Differences().verify()


def test_noise_excuses_what_it_explains_and_no_more() -> None:
    def ill_conditioned(noise: float) -> Values:
        return {"loss": torch.tensor(1.0 + 1000 * noise), "well": torch.tensor(1.0 + noise)}

    differences = Differences()
    step = Step(differences, "step1/", ill_conditioned)
    for name in ("loss", "well"):
        step.compare("part", name, 1.0 + 1000 * NOISE, allowed=1e-6)

    assert [difference.name for difference in differences.excused] == ["step1/loss"]
    with pytest.raises(AssertionError) as caught:
        differences.verify()
    assert "step1/well" in str(caught.value)
    assert "step1/loss" not in str(caught.value)


def test_a_difference_far_beyond_noise_is_not_excused() -> None:
    differences = Differences()
    step = Step(differences, "", lambda noise: {"loss": torch.tensor(1.0 + 1000 * noise)})

    step.compare("part", "loss", 1.1, allowed=1e-6)

    assert not differences.excused
    with pytest.raises(AssertionError):
        differences.verify()
