"""``python -m hetkern.testing.traffic``."""

from hetkern.testing.traffic.command import main

main()
