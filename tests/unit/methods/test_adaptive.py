"""An adaptive number of drafts a round is EAGLE-3's alone, and a flag of its own."""

import pytest

from spec.errors import BadInput
from spec.methods import method_named


def test_a_chain_begins_at_three_and_adapts():
    flags = method_named("eagle3").flags("adaptive")
    assert flags == method_named("eagle3").flags(3) | {"--speculative-adaptive": ""}


@pytest.mark.parametrize("name", ["dflash", "dspark"])
def test_a_block_does_not(name):
    with pytest.raises(BadInput, match="EAGLE-3 draft's rounds alone"):
        method_named(name).flags("adaptive")
