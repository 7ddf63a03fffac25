"""Loads the gate, so that plain `pytest perf_tests` is a gated run."""

from mpnn.regression import plugin

collect_ignore = ["example"]  # another project, see test_example.py


def pytest_addoption(parser, pluginmanager):
    """Registers the plugin before its options are parsed."""
    pluginmanager.register(plugin, "mpnn-regression")
    parser.addoption(
        "--record-counters", action="store_true", help="store the work counters of these claims"
    )
