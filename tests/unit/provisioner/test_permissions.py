# SPDX-License-Identifier: Apache-2.0
"""Who may call which path: every route of the application is in the table below."""

import pytest

from kumo_provisioner import app, auth, permissions

# By first segment: who may read, who may write. ``t`` after a role: also when bound to a tenant.
# a = admin, s = storage, m = monitor, n = node, * = everybody, without a token too.
TABLE = {
    "adoptable_volumes": ("a s m", "a"),
    "adopt_volume": ("a s m", "a s"),
    "array_report": ("at st mt", "at st"),
    "backends": ("a s m", "a"),
    "clone_volume": ("at st mt", "at st"),
    "connect": ("a s m", "a s"),
    "disconnect": ("a s m", "a s"),
    "events": ("at st mt", "at"),
    "forward_log": ("at st mt", "at st"),
    "garbage": ("a s m", "a"),
    "healthz": ("*", "at"),
    "heartbeat": ("a s m", "a n"),
    "host_probe": ("at st mt", "at st"),
    "hosts": ("a s m", "a s"),
    "info": ("*", "at"),
    "inventory": ("a s m", "a"),
    "license": ("a s m", "a"),
    "metrics": ("a s m", "a"),
    "migrate_volume": ("at st mt", "at st"),
    "openapi.json": ("a s m", "a"),
    "publish": ("at st mt", "at st"),
    "readyz": ("*", "at"),
    "reconcile": ("a s m", "a"),
    "replica": ("at st mt", "at st"),
    "reset_inventory": ("a s m", "a"),
    "restored": ("a s m", "a"),
    "revert_volume": ("at st mt", "at st"),
    "snapshot_volumes": ("at st mt", "at st"),
    "snapshots": ("at st mt", "at st"),
    "snapshots_by_alias": ("at st mt", "at"),
    "snapshots_by_vol": ("at st mt", "at"),
    "syslog": ("a s m", "a"),
    "targets": ("at st mt", "at"),
    "tasks": ("a s m", "a s"),
    "tenants": ("a s m", "a"),
    "tokens": ("at st mt", "at st mt"),
    "unmanage_volume": ("a s m", "a s"),
    "unpublish": ("at st mt", "at st"),
    "volumes": ("at st mt", "at st"),
    "volumes_by_alias": ("at st mt", "at"),
}
ROLES = {"a": auth.ADMIN, "s": auth.STORAGE, "m": auth.MONITOR, "n": auth.NODE}


def test_every_route_is_in_the_table():
    missing = app.describe().state.resources - set(TABLE)
    assert not missing, f"say in TABLE and kumo_provisioner/permissions.py who may call {missing}"


@pytest.mark.parametrize("segment", sorted(TABLE))
@pytest.mark.parametrize(("method", "column"), [("GET", 0), ("POST", 1), ("DELETE", 1)])
def test_who_may_call(segment, method, column):
    words = TABLE[segment][column].split()
    for letter, role in ROLES.items():
        for tenant in ("", "red"):
            open_to_all = words == ["*"] or segment in permissions.OPEN
            wanted = open_to_all or any(
                word[0] == letter and (not tenant or word.endswith("t")) for word in words
            )
            if role == auth.NODE:
                wanted = open_to_all or (segment, method) == ("heartbeat", "POST")
            elif open_to_all and column == 1:
                wanted = True
            found = permissions.allowed(role, tenant, method, segment)
            assert found == wanted, (segment, method, role, tenant)


def test_a_path_that_nobody_opened_is_for_administrators():
    assert permissions.allowed(auth.ADMIN, "", "POST", "new_thing")
    assert not permissions.allowed(auth.STORAGE, "", "POST", "new_thing")
    assert not permissions.allowed(auth.ADMIN, "red", "GET", "new_thing")


@pytest.mark.parametrize(
    ("role", "given"),
    [
        (auth.ADMIN, {auth.ADMIN, auth.STORAGE, auth.MONITOR, auth.NODE}),
        (auth.STORAGE, {auth.STORAGE, auth.MONITOR}),
        (auth.MONITOR, {auth.MONITOR}),
        (auth.NODE, {auth.NODE}),
    ],
)
def test_nobody_gives_more_than_he_has(role, given):
    assert {one for one in permissions.ROLES if permissions.lower(role, one)} == given
