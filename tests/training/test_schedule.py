"""How the learning rate and the weight of each epoch's state change over the epochs."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pd_core.core.errors import BadParams
from pd_core.training.loop.schedule import gaussian_weights, learning_rate

examples = settings(max_examples=50)
EPOCHS = st.integers(1, 60)


def rates(epochs: int, **given: float) -> list[float]:
    numbers: dict[str, float] = {"peak": 0.1, "warmup_epochs": 1, "warmup_lr": 1e-5, **given}
    return [learning_rate(e, epochs=epochs, **numbers) for e in range(1, epochs + 1)]  # type: ignore[arg-type]


def test_a_single_epoch_is_all_warm_up() -> None:
    assert rates(1) == [1e-5]


@pytest.mark.parametrize("warm", [0, 1, 2])
def test_after_the_warm_up_comes_a_cosine_stretched_over_all_epochs(warm: int) -> None:
    cosine = [0.05 * (1 + math.cos(math.pi * done / 20)) for done in range(20 - warm)]

    assert rates(20, warmup_epochs=warm) == pytest.approx([1e-5] * warm + cosine)
    assert rates(20, warmup_epochs=warm)[-1] > 1e-5


@examples
@given(epochs=EPOCHS, warm=st.integers(0, 60), peak=st.floats(1e-4, 1))
def test_after_the_warm_up_the_rate_falls_from_the_peak_and_stays_positive(
    epochs: int, warm: int, peak: float
) -> None:
    made = rates(epochs, peak=peak, warmup_epochs=warm, warmup_lr=0.5)
    first, rest = made[:warm], made[warm:]

    assert first == [0.5] * min(warm, epochs)
    assert not rest or rest[0] == pytest.approx(peak)
    assert all(0 < later < earlier for earlier, later in zip(rest, rest[1:], strict=False))


@examples
@given(epochs=EPOCHS, deviation=st.floats(0.3, 50), data=st.data())
def test_weights_add_up_to_one_and_are_a_normal_distribution_around_their_mean(
    epochs: int, deviation: float, data: st.DataObject
) -> None:
    mean = data.draw(st.integers(1, epochs))

    weights = gaussian_weights(epochs, mean=mean, deviation=deviation)

    assert len(weights) == epochs
    assert sum(weights) == pytest.approx(1)
    for epoch, weight in enumerate(weights, start=1):
        away = (epoch - mean) / deviation
        assert weight == pytest.approx(
            weights[mean - 1] * math.exp(-(away**2) / 2), rel=1e-9, abs=1e-99
        )


@pytest.mark.parametrize("deviation", [0.0, -1.0])
def test_a_deviation_that_is_not_positive_is_refused(deviation: float) -> None:
    with pytest.raises(BadParams) as caught:
        gaussian_weights(20, mean=15, deviation=deviation)

    assert str(caught.value) == f"averaging deviation = {deviation}; give a number above 0"


def test_a_small_deviation_is_no_mistake() -> None:
    assert gaussian_weights(3, mean=2, deviation=0.01) == (0.0, 1.0, 0.0)
    assert gaussian_weights(3, mean=2, deviation=0.5)[0] > 0


def test_a_mean_so_far_away_that_all_weights_vanish_is_refused() -> None:
    with pytest.raises(BadParams) as caught:
        gaussian_weights(3, mean=500, deviation=1)

    assert str(caught.value) == (
        "averaging mean = 500 with deviation 1 gives none of the 3 epochs a weight;"
        " choose a mean between 1 and 3"
    )
