"""The samples of torch's own tests of its modules (its ModuleInfo), through ours."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

import hetkern

common = pytest.importorskip("torch.testing._internal.common_modules")

NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
INFOS = [info for info in common.module_db if info.module_cls in [getattr(nn, n) for n in NAMES]]
pytestmark = [
    pytest.mark.any_level,
    pytest.mark.filterwarnings("ignore::hetkern.impl.Fallback"),
]


def ours(info):
    return getattr(hetkern.nn, info.module_cls.__name__)


def built(kind, sample, training):
    torch.manual_seed(0)
    made = kind(*sample.constructor_input.args, **sample.constructor_input.kwargs)
    return made.double().train(training)


def tensors(value):
    """Every tensor of an output; of a PackedSequence all four."""
    leaves = tree_leaves(value, is_leaf=lambda part: isinstance(part, PackedSequence))
    apart = [tuple(t) if isinstance(t, PackedSequence) else t for t in leaves]
    return [t for t in tree_leaves(apart) if isinstance(t, torch.Tensor)]


def results(module, sample):
    """Outputs and the gradients of all that asks for one."""
    inputs = sample.forward_input
    outputs = tensors(module(*inputs.args, **inputs.kwargs))
    leaves = [t for t in tensors((inputs.args, inputs.kwargs)) if t.requires_grad]
    loss = sum(((1 + i) * t).sin().sum() for i, t in enumerate(outputs) if t.requires_grad)
    return outputs + list(torch.autograd.grad(loss, [*leaves, *module.parameters()]))


def test_every_module_has_samples():
    assert {info.module_cls.__name__ for info in INFOS} == set(NAMES)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_a_module_on_torchs_samples(info, training):
    torch.manual_seed(1)  # what the samples are drawn with
    options = {"requires_grad": True, "training": training, "with_packed_sequence": True}
    samples = list(info.module_inputs_func(info, "cpu", torch.float64, **options))
    assert len(samples) > 1
    for sample in samples:
        mine, torchs = (built(kind, sample, training) for kind in (ours(info), info.module_cls))
        torch.testing.assert_close(mine.state_dict(), torchs.state_dict(), rtol=0, atol=0)
        assert repr(mine) == repr(torchs)
        torch.testing.assert_close(results(mine, sample), results(torchs, sample), msg=sample.desc)
        given = sample.forward_input
        if not isinstance(given.args[0], PackedSequence):  # torch's claim about unbatched calls
            wanted = sample.reference_fn(mine, *given.args, **given.kwargs)
            got = mine(*given.args, **given.kwargs)
            torch.testing.assert_close(tensors(got), tensors(wanted))


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_a_module_refuses_torchs_bad_samples_with_the_same_class_of_error(info):
    options = {"requires_grad": True, "training": True}
    samples = info.module_error_inputs_func(info, "cpu", torch.float64, **options)
    assert len(samples) > 3
    for bad in samples:
        construct = bad.module_error_input.constructor_input
        if bad.error_on == common.ModuleErrorEnum.CONSTRUCTION_ERROR:
            for kind in (info.module_cls, ours(info)):
                with pytest.raises(bad.error_type):
                    kind(*construct.args, **construct.kwargs)
            continue
        call = bad.module_error_input.forward_input
        for kind in (info.module_cls, ours(info)):
            made = kind(*construct.args, **{"dtype": torch.float64} | construct.kwargs)
            with pytest.raises(bad.error_type):
                made(*call.args, **call.kwargs)
