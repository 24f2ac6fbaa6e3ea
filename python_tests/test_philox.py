"""The generator of dropout masks: its published vectors, and the rate of a mask."""

import pytest
import torch

from hetkern.ops.philox import keep_mask, philox, philox4x32
from hetkern.testing.devices import here

# Counter, key and result of philox4x32-10, from the known answers that come with Random123.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("counter, key, words", KNOWN, ids=["zeros", "ones", "pi"])
def test_philox_gives_the_published_words(counter, key, words):
    def tensors(numbers):
        return tuple(here(torch.tensor(n)) for n in numbers)

    assert tuple(int(w) for w in philox4x32(tensors(counter), tensors(key))) == words


def test_a_seed_is_the_key_and_a_position_the_counter_at_the_same_bits():
    seed, position = here(torch.tensor(-2)), here(torch.tensor([5, 3 << 32 | 7]))
    words = philox(seed, position, 9)
    for i, low, high in ((0, 5, 0), (1, 7, 3)):
        counter = tuple(here(torch.tensor(n)) for n in (low, high, 9, 0))
        key = tuple(here(torch.tensor(n)) for n in (0xFFFFFFFE, 0xFFFFFFFF))
        assert [int(w[i]) for w in words] == [int(w) for w in philox4x32(counter, key)]


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_a_mask_has_its_rate_and_its_scale(p):
    """Of 200,000 the number of zeros is within five standard deviations."""
    like = here(torch.empty(0))
    mask = keep_mask(here(torch.tensor(1234)), (400, 500), p, 0, like)
    zeros = int((mask == 0).sum())
    assert abs(zeros - p * mask.numel()) <= 5 * (p * (1 - p) * mask.numel()) ** 0.5
    torch.testing.assert_close(mask[mask != 0], torch.full_like(mask[mask != 0], 1 / (1 - p)))


def test_masks_of_one_seed_differ_by_stream_and_are_the_same_again():
    like, seed = here(torch.empty(0)), here(torch.tensor(7))
    first, other, again = (keep_mask(seed, (8, 33), 0.5, s, like) for s in (0, 1, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
