"""What bad input to attention gets: an error that names op, argument, wanted and got."""

import pytest
import torch

import hetkern
from hetkern.testing.devices import here

pytestmark = pytest.mark.any_level

Q, K = torch.zeros(2, 4, 3, 8), torch.zeros(2, 2, 5, 8)
WRONG = {
    "three dimensions": ({"q": Q[0]}, r"q: wanted .*got .*4, 3, 8"),
    "k of three dimensions": ({"k": K[0]}, r"k: wanted .*got .*2, 5, 8"),
    "integers": ({"q": Q.long(), "k": K.long(), "v": K.long()}, r"q: wanted .*float.*got .*int64"),
    "another width of k": ({"k": torch.zeros(2, 2, 5, 7)}, r"k: wanted .*8.*got .*7"),
    "another batch of k": ({"k": torch.zeros(3, 2, 5, 8)}, r"k: wanted .*2.*got .*3"),
    "another length of v": ({"v": torch.zeros(2, 2, 6, 8)}, r"v: wanted .*5.*got .*6"),
    "other heads of v": ({"v": torch.zeros(2, 4, 5, 8)}, r"v: wanted .*2.*got .*4"),
    "heads that do not divide": (
        {"k": torch.zeros(2, 3, 5, 8), "v": torch.zeros(2, 3, 5, 8)},
        r"k: wanted .*divides.*4.*got 3",
    ),
    "more key heads": (
        {"k": torch.zeros(2, 8, 5, 8), "v": torch.zeros(2, 8, 5, 8)},
        r"k: wanted .*divides.*4.*got 8",
    ),
    "k of another dtype": ({"k": K.double()}, r"k: wanted .*float32.*got .*(float64|double)"),
    "v of another dtype": ({"v": K.bfloat16()}, r"v: wanted .*float32.*got .*bfloat16"),
    "wide bias": ({"bias": torch.zeros(6)}, r"bias: wanted .*2, 4, 3, 5.*got .*6"),
    "deep bias": ({"bias": torch.zeros(1, 1, 1, 3, 5)}, r"bias: wanted .*got .*1, 1, 1, 3, 5"),
    "integer mask": ({"mask": torch.ones(5).long()}, r"mask: wanted .*bool.*got .*int64"),
    "float mask": ({"mask": torch.ones(5)}, r"mask: wanted .*bool.*got .*float32"),
    "wide mask": ({"mask": torch.ones(3, 4) > 0}, r"mask: wanted .*got .*3, 4"),
    "sink a key head": ({"sink": torch.zeros(2)}, r"sink: wanted .*4.*got .*2"),
    "sink of a batch": ({"sink": torch.zeros(2, 4)}, r"sink: wanted .*4.*got .*2, 4"),
    "slopes of other heads": (
        {"alibi_slopes": torch.zeros(3)},
        r"alibi_slopes: wanted .*4.*got .*3",
    ),
    "slopes of other sequences": (
        {"alibi_slopes": torch.zeros(3, 4)},
        r"alibi_slopes: wanted .*2, 4.*got .*3, 4",
    ),
    "integer slopes": (
        {"alibi_slopes": torch.ones(4).long()},
        r"alibi_slopes: wanted .*float.*int64",
    ),
    "softcap of 0": ({"softcap": 0.0}, r"softcap: wanted .*above 0.*got (0|0\.0)$"),
    "negative softcap": ({"softcap": -2.0}, r"softcap: wanted .*got -2"),
    "a window below 0": ({"window": (-2, 0)}, r"window: wanted .*got \(-2, 0\)"),
    "one side of a window": ({"window": 3}, r"window: wanted \(left, right\).*got 3"),
    "dropout of 1": ({"dropout_p": 1.0}, r"dropout_p: wanted .*\[0, 1\).*got 1"),
    "negative dropout": ({"dropout_p": -0.1}, r"dropout_p: wanted .*got -0\.1"),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("wrong, message", WRONG.values(), ids=WRONG)
def test_attention_refuses_by_name(impl, wrong, message, grad):
    arguments = here({"q": Q, "k": K, "v": K} | wrong)
    if grad and arguments["q"].is_floating_point():
        arguments["q"] = arguments["q"].clone().requires_grad_()
    with pytest.raises(ValueError, match=rf"attention: {message}"):
        hetkern.attention(**arguments)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["k", "v", "bias", "mask", "sink", "alibi_slopes"])
def test_attention_refuses_a_tensor_on_another_device(native, name, grad):
    tensor = {"k": K, "v": K, "mask": torch.ones(5) > 0, "bias": torch.zeros(5)}.get(
        name, torch.zeros(4)
    )
    arguments = here({"q": Q, "k": K, "v": K}) | {name: tensor.to("meta")}
    arguments["q"] = arguments["q"].clone().requires_grad_(grad)
    wanted = rf"attention\w*: {name}: wanted a tensor on .*got one on meta"
    with pytest.raises(ValueError, match=wanted):
        hetkern.attention(**arguments)


@pytest.mark.parametrize("name", ["bias", "sink"])
def test_attention_refuses_mixed_dtypes_outside_autocast(native, name):
    tensor = torch.zeros(1, 1, 1, 5) if name == "bias" else torch.zeros(4)
    q, k = here((Q, K))
    with pytest.raises(ValueError, match=rf"attention: {name}: wanted .*bfloat16.*got .*float"):
        hetkern.attention(q.bfloat16(), k.bfloat16(), k.bfloat16(), **{name: tensor})


PACKED = {"q": torch.zeros(7, 4, 8), "k": torch.zeros(7, 2, 8), "v": torch.zeros(7, 2, 8)}
ENDS = [0, 3, 7]
WRONG_ENDS = {
    "a start above 0": ([1, 3, 7], r"cu_seqlens_X: wanted 0 first, got 1"),
    "falling": ([0, 4, 3, 7], r"cu_seqlens_X: wanted rising numbers, got 4 before 3"),
    "an end before the last row": ([0, 3, 6], r"cu_seqlens_X: wanted .*7.*got 6"),
    "an end behind the last row": ([0, 4, 8], r"cu_seqlens_X: wanted .*7.*got 8"),
    "a negative one": ([0, -1, 7], r"cu_seqlens_X: wanted rising numbers, got 0 before -1"),
    "one beyond int32": (
        [0, 3, 2**32 + 7],
        r"max_seqlen_X: wanted at least 2147483644.*got 4",
    ),
    "a sequence that is too long": ([0, 0, 7], r"max_seqlen_X: wanted at least 7.*got 4"),
}


@pytest.mark.parametrize("which", ["cu_seqlens_q", "cu_seqlens_k"])
@pytest.mark.parametrize("ends, message", WRONG_ENDS.values(), ids=WRONG_ENDS)
def test_ends_of_sequences_are_checked_on_the_cpu(native, which, ends, message):
    if native.name != "cpu":
        pytest.skip("a GPU checks them on the device")
    given = {"cu_seqlens_q": ENDS, "cu_seqlens_k": ENDS} | {which: ends}
    if len(ends) != 3:
        given = {key: [0, 0, 3, 7] for key in given} | {which: ends}
    given = {name: torch.tensor(value) for name, value in given.items()}
    message = message.replace("X", which[-1])
    with pytest.raises(ValueError, match=rf"attention\w*: {message}"):
        hetkern.attention_varlen(**PACKED, **given, max_seqlen_q=4, max_seqlen_k=4)


WRONG_PACKED = {
    "four dimensions": ({"q": Q}, r"q: wanted .*got .*2, 4, 3, 8"),
    "floats": ({"cu_seqlens_q": torch.tensor([0.0, 7.0])}, r"cu_seqlens_q: wanted int32.*float32"),
    "two dimensions": (
        {"cu_seqlens_q": torch.tensor([[0, 7]])},
        r"cu_seqlens_q: wanted .*got .*1, 2",
    ),
    "other sequences": (
        {"cu_seqlens_q": torch.tensor([0, 7])},
        r"cu_seqlens_k: wanted .*2.*got .*3|cu_seqlens_q: wanted .*3.*got .*2",
    ),
}


@pytest.mark.parametrize("wrong, message", WRONG_PACKED.values(), ids=WRONG_PACKED)
def test_packed_attention_refuses_by_name(native, wrong, message):
    ends = torch.tensor(ENDS)
    given = here({**PACKED, "cu_seqlens_q": ends, "cu_seqlens_k": ends} | wrong)
    with pytest.raises(ValueError, match=rf"attention\w*: ({message})"):
        hetkern.attention_varlen(**given, max_seqlen_q=7, max_seqlen_k=7)


WRONG_CACHE = {
    "beyond the cache": (torch.tensor([3, 6]), r"wanted .*5.*got 6"),
    "negative": (torch.tensor([-1, 3]), r"wanted .*got -1"),
    "beyond int32": (torch.tensor([3, 2**32 + 3]), r"wanted .*5.*got"),
    "below int32": (torch.tensor([3 - 2**32, 3]), r"wanted .*5.*got"),
    "another batch": (torch.tensor([3, 3, 3]), r"wanted .*2.*got .*3"),
    "floats": (torch.tensor([3.0, 3.0]), r"wanted int32.*got .*float32"),
}


@pytest.mark.parametrize("lengths, message", WRONG_CACHE.values(), ids=WRONG_CACHE)
def test_lengths_in_a_cache_are_checked_on_the_cpu(native, lengths, message):
    if native.name != "cpu" and lengths.shape == (2,) and not lengths.is_floating_point():
        pytest.skip("a GPU checks them on the device")
    q, k = here((Q, K))
    with pytest.raises(ValueError, match=rf"attention\w*: (cache_seqlens|seqlens_k): {message}"):
        hetkern.attention_decode(q, k, k, lengths)


def test_attention_refuses_numbers_that_want_a_gradient(impl):
    learned = torch.tensor(0.5, requires_grad=True)
    q, k = here((Q, K))
    with pytest.raises(NotImplementedError, match=r"attention: scale: wanted a number.*multiply"):
        hetkern.attention(q, k, k, scale=learned)
    assert torch.equal(
        hetkern.attention(q, k, k, scale=learned.detach()), hetkern.attention(q, k, k, scale=0.5)
    )


def test_attention_refuses_what_is_no_tensor():
    for place in range(3):
        given = [Q, K, K]
        given[place] = [1.0]
        with pytest.raises(
            TypeError, match=rf"attention: {'qkv'[place]}: wanted a tensor, got list"
        ):
            hetkern.attention(*given)
    with pytest.raises(
        TypeError, match=r"attention_decode: cache_seqlens: wanted a tensor, got int"
    ):
        hetkern.attention_decode(Q, K, K, 3)


def test_attention_refuses_what_is_no_integer(impl):
    q, k = here((Q, K))
    with pytest.raises(ValueError, match=r"attention: window: wanted integers .*got \(1\.5, 0\)"):
        hetkern.attention(q, k, k, window=(1.5, 0))
    packed, ends = here((PACKED, torch.tensor(ENDS)))
    message = r"attention_varlen: max_seqlen_k: wanted an integer, got 7\.0"
    with pytest.raises(ValueError, match=message):
        hetkern.attention_varlen(
            **packed, cu_seqlens_q=ends, cu_seqlens_k=ends, max_seqlen_q=7, max_seqlen_k=7.0
        )


def test_attention_refuses_an_unknown_implementation():
    with pytest.raises(ValueError, match=r"attention: impl: wanted .*cpu.*reference.*got 'gpu'"):
        hetkern.attention(Q, K, K, impl="gpu")
