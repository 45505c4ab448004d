"""Attacks by cells, and by native code in their place, in jails that a server had made before.

The tests are those of the other lifetime. ``WW_TEST_LIFETIME=server`` runs all of tests/escape and
tests/jail/test_inside.py like this; here is a part that takes little time.
"""

import pytest

from tests import conftest
from tests.conftest import EXAMPLES, Ww
from tests.escape.test_attacks import (
    probe,
    test_a_server_on_the_hosts_loopback_cannot_be_reached,
    test_an_abstract_socket_of_the_host_cannot_be_reached,
    test_no_capability_can_be_had_back,
    test_no_descriptor_leads_to_a_directory,
    test_no_file_can_be_opened_by_handle,
    test_no_limit_can_be_raised,
    test_no_other_process_can_be_seen_or_joined,
    test_no_path_leads_to_the_host,
    test_the_example_attack_cell_breaks_nothing,
    test_the_jail_refuses,
)
from tests.jail.test_inside import (
    inside,
    test_no_capability_is_in_any_set,
    test_no_new_privs_is_set_and_the_securebits_are_locked,
    test_the_cell_is_the_first_process_of_its_pid_namespace,
    test_the_ids_inside_are_nobodys_and_no_group_is_named,
    test_the_network_is_a_lo_that_is_down,
)

# What pytest finds here.
__all__ = [
    "inside",
    "probe",
    "test_a_server_on_the_hosts_loopback_cannot_be_reached",
    "test_an_abstract_socket_of_the_host_cannot_be_reached",
    "test_no_capability_can_be_had_back",
    "test_no_capability_is_in_any_set",
    "test_no_descriptor_leads_to_a_directory",
    "test_no_file_can_be_opened_by_handle",
    "test_no_limit_can_be_raised",
    "test_no_new_privs_is_set_and_the_securebits_are_locked",
    "test_no_other_process_can_be_seen_or_joined",
    "test_no_path_leads_to_the_host",
    "test_the_cell_is_the_first_process_of_its_pid_namespace",
    "test_the_example_attack_cell_breaks_nothing",
    "test_the_ids_inside_are_nobodys_and_no_group_is_named",
    "test_the_jail_refuses",
    "test_the_network_is_a_lo_that_is_down",
]


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each `ww run` has a server with jails that are ready, and cannot do without."""
    monkeypatch.setattr(conftest, "SERVED", True)


def test_these_runs_go_through_a_server(ww: Ww) -> None:
    done = ww.run("run", "--status-fd", "2", EXAMPLES / "hello" / "hello.wasm")
    assert b'{"event": "server", "socket": "/tmp/served-' in done.stderr
    assert done.stdout.startswith(b"Hello")
    without = ww.run("run", "--no-serve", EXAMPLES / "hello" / "hello.wasm")
    assert without.returncode == 1
