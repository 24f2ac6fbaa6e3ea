"""RNN cells and sequences, values and gradients, within the error budget of the reference."""

import pytest
import torch
from recurrent import CELLS

from hetkern.testing import check_seed
from hetkern.testing.cases.recurrent import cell_case, check_cell, check_rnn, sequence_case

pytestmark = [pytest.mark.any_level, pytest.mark.sample(4)]

# Units: fewer than a vector, one, one and a part, several of each width of panel.
UNITS = [1, 5, 16, 17, 40, 64, 100]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("H", UNITS)
def test_a_cell_is_within_budget(native, cell, H):
    check_cell(native.name, cell_case(cell, 3, 7, H), cell_case(cell, 1, 7, H, bias=False))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("H", UNITS)
def test_a_sequence_is_within_budget_at_every_width(native, cell, H):
    check_rnn(native.name, sequence_case(cell, 5, 3, 7, H))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("B", [1, 2, 7, 8, 9, 30])
def test_a_sequence_is_within_budget_at_every_number_of_rows(native, cell, B):
    check_rnn(native.name, sequence_case(cell, 3, B, 4, 20, bias=False))


RAGGED = {
    "lengths": {"lengths": torch.tensor([4, 0, 6, 1])},
    "batch first": {"batch_first": True},
    "lengths, batch first": {"lengths": torch.tensor([4, 0, 6, 1]), "batch_first": True},
    "packed": {"batch_sizes": torch.tensor([4, 4, 3, 1, 1, 1])},
    "reset": {"reset": torch.arange(24).reshape(4, 6) % 5 == 0},
    "packed, reset": {
        "batch_sizes": torch.tensor([4, 4, 3, 1, 1, 1]),
        "reset": torch.arange(24).reshape(4, 6) % 5 == 0,
    },
    "layers": {"layers": 2},
    "masks": {"variational_dropout": 0.5, "recurrent_dropout": 0.5},
}


# One cell shows each feature to the support table, of every implementation.
ALWAYS = [pytest.mark.sample(1), pytest.mark.any_level(1)]
OFTEN = [(cell, both) for cell in CELLS for both in (False, True)]
OFTEN.remove(("gru", True))


@pytest.mark.parametrize("cell, both", [pytest.param("gru", True, marks=ALWAYS), *OFTEN])
@pytest.mark.parametrize("options", RAGGED.values(), ids=RAGGED)
def test_a_sequence_is_within_budget_with_each_feature(impl, cell, options, both):
    if impl.name == "reference" and (cell, both) in OFTEN:
        pytest.skip("the claim is about our kernels, not about torch's")
    more = {"bidirectional": True} if both else {}
    check_rnn(impl.name, sequence_case(cell, 6, 4, 5, 18, **options, **more))


@pytest.mark.sample(1)
@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_is_within_budget_with_large_weights(native, cell):
    check_rnn(native.name, sequence_case(cell, 6, 3, 20, 20, scale=6.0))


@pytest.mark.parametrize("seed", range(60))
def test_a_sequence_is_within_budget_in_random_configurations(native, seed):
    check_seed("rnn", seed, native.name)


@pytest.mark.parametrize("product", ["fma", "dot"])
@pytest.mark.parametrize("cell", CELLS)
def test_both_products_of_bfloat16_are_within_budget(native, cell, product):
    from hetkern import _C

    before = _C.bf16_product()
    if _C.set_bf16_product(product) != product:
        pytest.skip("this processor, at this instruction set, has no dot product of bfloat16")
    try:
        assert _C.rnn_plan(cell, 5, 3, 40, "bfloat16")["product"] == product
        for H in (17, 40):
            check_rnn(native.name, sequence_case(cell, 5, 3, 7, H), dtypes=[torch.bfloat16])
    finally:
        _C.set_bf16_product(before)
