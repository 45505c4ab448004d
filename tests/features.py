"""What some tests need of the machine, by name: where it is lacking they are skipped, or they fail.

``WW_REQUIRE=root,userns,landlock`` names what must be there. A test that lacks it fails then, and
does not pass over in silence what a build server was set up for. ``.ci/run`` sets it; nothing else
decides, neither ``CI`` nor the account. A name that is none is an error before any test runs.

A test says what it needs by ``@needs("root", CAN_BE_ROOT, "only root can mount")``, or calls
``lacks("npm", "node is not installed")`` when it finds out on its way. Bare ``pytest.skip`` is for
what nobody can be asked for: another processor, a kernel built otherwise, a test by request.
"""

import os
from pathlib import Path
from typing import NoReturn

import pytest

VARIABLE = "WW_REQUIRE"

FEATURES = {
    "root": "the tests are run as root",
    "ordinary": "another account can read this tree, and start the interpreter",
    "userns": "user, mount and network namespaces can be made",
    "landlock": "Landlock, of the newest version that ww knows",
    "cgroup": "a control group for ww, with memory and pids, of either version",
    "cgroup2": "version 2 of control groups, with a controller that can be handed on",
    "memory": "1 GiB of it is free",
    "systemd": "systemd-socket-activate and systemd-analyze (systemd need not run)",
    "install": "scripts/install set up this tree, and has nothing more to do",
    "npm": "node, and the packages that scripts/test installs with npm",
    "packages": "the packages of tests/packages.txt, which scripts/test unpacks",
    "vagrant": "vagrant, to check the Vagrantfile",
    "bwrap": "bubblewrap, as a sandbox to run ww in",
    "openssl": "openssl, to make a certificate",
    "apparmor": "AppArmor is on, and its profiles can be loaded",
    "apparmor-userns": "AppArmor decides who makes user namespaces (Linux 6.7)",
    "x86-64": "an x86-64 processor",
    "processor": "a real processor, or a virtual one: not one that qemu emulates",
}

# Only tests of tests/vm/guest need these, which nothing but scripts/vm/run collects.
OF_TEST_MACHINE = frozenset(("apparmor", "apparmor-userns"))

# Where a minute's work takes half an hour, and no time means anything.
EMULATED = "QEMU TCG" in Path("/proc/cpuinfo").read_text()

# What a program belongs to that scripts/test installs.
_PROGRAMS = {
    "systemd-socket-activate": "systemd",
    "systemd-analyze": "systemd",
    "node": "npm",
    "npm": "npm",
}


def required() -> frozenset[str]:
    """The features that must be there.

    Raises:
        pytest.UsageError: If a name is none of them.
    """
    given = os.environ.get(VARIABLE, "")
    names = frozenset(filter(None, (name.strip() for name in given.split(","))))
    unknown = sorted(names - FEATURES.keys())
    if unknown:
        raise pytest.UsageError(
            f"{VARIABLE}: no such feature: {', '.join(unknown)} (there are {', '.join(FEATURES)})"
        )
    elsewhere = sorted(names & OF_TEST_MACHINE)
    if elsewhere and not os.environ.get("WW_VM"):
        raise pytest.UsageError(
            f"{VARIABLE}: {', '.join(elsewhere)}: only the tests of scripts/vm/run need it"
        )
    return names


def lacks(feature: str, reason: str) -> NoReturn:
    """End the test: skipped for want of a feature, or failed where that is required.

    Raises:
        KeyError: If the feature has no such name, which is a defect of the test.
    """
    what = FEATURES[feature]
    if feature in required():
        pytest.fail(f"{VARIABLE} names {feature} ({what}), but: {reason}", pytrace=False)
    # Told as of the test, and not as of this line.
    raise pytest.skip.Exception(f"{feature}: {reason}", _use_item_location=True)


def needs(feature: str, there: bool, reason: str) -> pytest.MarkDecorator:
    """Mark a test, or all of a module (``pytestmark``), as one that needs a feature.

    Args:
        feature: Its name.
        there: Whether it is.
        reason: Why the test cannot do without it.

    Raises:
        KeyError: If the feature has no such name.
    """
    FEATURES[feature]
    return pytest.mark.needs(feature, there, reason)


def of_program(name: str) -> str:
    """The feature that a program belongs to; most are of their own name.

    Raises:
        KeyError: If there is no feature for it: a test must not need what nobody promises.
    """
    feature = _PROGRAMS.get(name, name)
    FEATURES[feature]
    return feature


def pytest_configure(config: pytest.Config) -> None:
    """Know the mark, and refuse a wrong name before anything runs."""
    config.addinivalue_line(
        "markers", "needs(feature, there, reason): skipped without it; see tests/features.py"
    )
    required()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture is made for it."""
    for mark in item.iter_markers("needs"):
        feature, there, reason = mark.args
        if not there:
            lacks(feature, reason)


def pytest_report_header() -> str:
    """Say what is required: a log without it would not tell what a skip means."""
    return f"{VARIABLE}: {','.join(sorted(required())) or '(nothing)'}"
