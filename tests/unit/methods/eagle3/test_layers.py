"""The target's layers whose outputs an EAGLE-3 draft reads."""

import pytest

from spec.errors import BadInput
from spec.methods.eagle3.layout import feature_layers


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [(32, (1, 15, 28)), (80, (1, 39, 76)), (48, (1, 23, 44)), (36, (1, 17, 32)), (64, (1, 31, 60)), (94, (1, 46, 90))],
)
def test_feature_layers_are_those_that_sglang_reads(layers, wanted):
    assert feature_layers(layers) == wanted


@pytest.mark.parametrize("layers", [1, 4, 5, 6])
def test_a_shallow_target_is_refused(layers):
    with pytest.raises(BadInput, match="too shallow"):
        feature_layers(layers)
