"""Fixtures come from the test kit, as they would in anyone's own project."""

pytest_plugins = ["hetkern.testing.pytest_plugin"]
