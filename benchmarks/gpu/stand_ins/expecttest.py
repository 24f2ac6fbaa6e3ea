"""For a GPU machine without expecttest: the names that torch.library.opcheck's imports need of it.

Nothing here asserts anything, and nothing of ours uses it.
"""

import unittest

ACCEPT = False


class TestCase(unittest.TestCase):
    """Base of torch's own test class, which opcheck imports and does not use."""
