# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests with real daemons, and the limits under which each test runs."""
import faulthandler
import os
import signal
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from harness.cluster import Cluster  # noqa: E402
from harness.processes import DOG, SHEEP  # noqa: E402

TEST_LIMIT_S = 300


def pytest_configure(config):
    config.addinivalue_line("markers", "limit(seconds): the test may take that long (default 300)")
    config.addinivalue_line("markers", "restarts: the test restarts a daemon of a shared cluster")


def pytest_sessionstart(session):
    for path in (SHEEP, DOG):
        if not os.access(path, os.X_OK):
            pytest.exit(f"{path} is not there: run `make build` first", returncode=2)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    """Each test ends: an alarm fails it at its limit; if even that does not get through, the run ends a minute later."""
    marker = item.get_closest_marker("limit")
    limit_s = marker.args[0] if marker else TEST_LIMIT_S

    def late(number, frame):
        raise AssertionError(f"not done after {limit_s} s")

    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(limit_s)
    faulthandler.dump_traceback_later(limit_s + 60, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Adds the daemons' logs to the report of a failed test."""
    outcome = yield
    report = outcome.get_result()
    if report.when != "call" or report.passed:
        return
    for name in item.fixturenames:
        value = item.funcargs.get(name)
        for cluster in value.clusters if isinstance(value, Maker) else [value]:
            if isinstance(cluster, Cluster):
                report.sections.append((f"daemons of {cluster.folder}", cluster.logs()))


class Maker:
    """Makes clusters for one test and ends them all after it."""

    def __init__(self):
        self.clusters = []

    def __call__(self, *args, **options):
        cluster = Cluster(*args, **options)
        self.clusters.append(cluster)
        return cluster

    def end(self):
        for cluster in self.clusters:
            cluster.destroy()


@pytest.fixture
def make_cluster():
    """make_cluster(count, …) gives a Cluster that is not formatted yet."""
    maker = Maker()
    yield maker
    maker.end()


@pytest.fixture
def cluster(make_cluster):
    """Three daemons in three zones, formatted with three copies, for this test alone."""
    return make_cluster(3).up()


@pytest.fixture(scope="module")
def shared():
    """The same, for all tests of a file; each uses names of its own and leaves the daemons running."""
    cluster = Cluster(3, size="2G")
    try:
        cluster.up()
        yield cluster
        if all(sheep.alive() for sheep in cluster.sheep):
            cluster.stop_all()
    finally:
        cluster.destroy()
