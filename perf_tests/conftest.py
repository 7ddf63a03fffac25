"""Loads the gate, so that plain `pytest perf_tests` is a gated run."""

from mpnn.regression import plugin


def pytest_addoption(parser, pluginmanager):  # noqa: ARG001 (a hook's argument)
    """Registers the plugin before its options are parsed."""
    pluginmanager.register(plugin, "mpnn-regression")
