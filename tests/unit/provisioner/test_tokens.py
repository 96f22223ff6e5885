# SPDX-License-Identifier: Apache-2.0
"""Signed tokens, the files of tokens and keys, and what keeps tenants apart at the edge."""

import base64
import json
import os
import time

import jwt
import pytest
from starlette.testclient import TestClient

from kumo_client import errors
from kumo_client.schemas.tenant import TenantWrite
from kumo_client.schemas.token import HOUR, MAX_LIFE, TokenCreate
from kumo_provisioner import app, auth, edge, keys, main
from kumo_provisioner.db import models
from kumo_provisioner.services import tenants, tokens
from tests.unit.provisioner.conftest import READER, TOKEN, WRITER
from tests.unit.provisioner.stories import rows

ADMIN = auth.Identity("root", auth.ADMIN)
USER = auth.Identity("user", auth.STORAGE)


@pytest.fixture
def accepted():
    known = {
        auth.digest(TOKEN): ADMIN,
        auth.digest(READER): auth.Identity("reader", auth.MONITOR),
        auth.digest(WRITER): USER,
    }
    return auth.Tokens(known, [keys.new_key()])


@pytest.fixture
def api(core, accepted):
    application = app.make(core, accepted, background=False)
    with TestClient(application, raise_server_exceptions=False) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        yield client


def made(core, accepted, caller=ADMIN, **request):
    return tokens.create(core, accepted, caller, TokenCreate(**request))


def identity(accepted, answer):
    return accepted.identify(f"Bearer {answer.token}")


def test_a_token_says_who_and_until_when(core, accepted):
    answer = made(core, accepted, name="nova", role="storage", life=2 * HOUR)
    found = identity(accepted, answer)
    assert (found.name, found.role, found.tenant) == ("nova", auth.STORAGE, "")
    assert found.token_id == answer.token_id
    assert abs(found.expires - time.time() - 2 * HOUR) < 60
    assert made(core, accepted, USER).expires - time.time() <= HOUR


def test_nobody_makes_a_token_with_more_rights(core, accepted):
    tenants.create(core, TenantWrite(tenant_id="red", name="red"), frozenset())
    bound = auth.Identity("user", auth.STORAGE, "red")
    for caller, request in (
        (USER, {"role": "admin"}),
        (USER, {"name": "root"}),
        (auth.Identity("m", auth.MONITOR), {"role": "storage"}),
        (bound, {"tenant_id": "blue"}),
    ):
        with pytest.raises(errors.ForbiddenError):
            made(core, accepted, caller, **request)
    assert identity(accepted, made(core, accepted, USER, tenant_id="red")).tenant == "red"
    assert identity(accepted, made(core, accepted, bound)).tenant == "red"
    with pytest.raises(errors.NotExistsError):
        made(core, accepted, tenant_id="green")
    with pytest.raises(errors.NotAvailableError, match="jwt_key_file"):
        made(core, auth.Tokens({}))


def test_only_our_own_good_tokens_count(core, accepted):
    (key,) = accepted.signing
    good = {"sub": "x", "role": "admin", "jti": "1", "exp": time.time() + 60, "aud": "kumo"}

    def sign(claims, secret=key.secret, kid=key.kid, algorithm="HS256"):
        return jwt.encode(claims, secret, algorithm=algorithm, headers={"kid": kid})

    assert accepted.identify(f"bearer {sign(good)}").role == auth.ADMIN
    other = keys.new_key()
    wrong = [
        sign(good | {"exp": time.time() - 3600}),
        sign(good | {"aud": "other"}),
        sign(good | {"role": "emperor"}),
        sign({name: value for name, value in good.items() if name != "exp"}),
        sign({name: value for name, value in good.items() if name != "jti"}),
        sign(good, secret=other.secret),
        sign(good, kid=other.kid),
        jwt.encode(good, "", algorithm="none", headers={"kid": key.kid}),
        "a.b.c",
        "..",
    ]
    for token in wrong:
        with pytest.raises(errors.UnauthorizedError):
            accepted.identify(f"Bearer {token}")


def test_a_revoked_token_counts_no_more_here_and_elsewhere(core, accepted):
    answer = made(core, accepted, name="nova", role="storage")
    elsewhere = auth.Tokens({}, accepted.signing)
    tokens.revoke(core, accepted, ADMIN, answer.token_id)
    tokens.revoke(core, accepted, ADMIN, answer.token_id)
    with pytest.raises(errors.UnauthorizedError):
        identity(accepted, answer)
    assert identity(elsewhere, answer).name == "nova"
    tokens.refresh(core, elsewhere)
    with pytest.raises(errors.UnauthorizedError):
        identity(elsewhere, answer)
    (row,) = rows(core, models.RevokedToken)
    (duty,) = tokens.DUTIES
    duty.run(core)
    assert len(rows(core, models.RevokedToken)) == 1
    with core.db.write() as session:
        session.get_one(models.RevokedToken, row.jti).expires = 1
    duty.run(core)
    assert rows(core, models.RevokedToken) == []


def test_who_may_revoke(core, accepted):
    answer = made(core, accepted, USER)
    mine = identity(accepted, answer)
    with pytest.raises(errors.ForbiddenError):
        tokens.revoke(core, accepted, USER, answer.token_id)
    tokens.revoke(core, accepted, mine, mine.token_id)


def test_keys_are_rotated_and_old_ones_end(accepted):
    now = time.time()
    young = keys.Key("young", b"y" * 32, int(now - MAX_LIFE) + 5)
    old = keys.Key("old", b"o" * 32, int(now - 3 * MAX_LIFE))
    older = keys.Key("older", b"p" * 32, int(now - 4 * MAX_LIFE))
    found = keys.rotated([young, old, older], now)
    # A token of "old" may have been made until "young" was.
    assert [key.kid for key in found[1:]] == ["young", "old"]
    assert found[0].kid not in ("young", "old", "older")


def test_files_are_read_again_when_they_change(tmp_path, monkeypatch):
    path, key_path = tmp_path / "tokens.json", tmp_path / "keys.json"

    def write(*entries):
        path.write_text(json.dumps({"tokens": entries}))

    def entry(token, **more):
        return {"name": "a", "role": "storage", "sha256": auth.digest(token)} | more

    write(entry("one"))
    key_path.write_text(keys.dump([keys.new_key()]))
    monkeypatch.setattr(auth, "LOOK_SECONDS", 0)
    accepted = auth.Tokens.load(str(path), str(key_path))
    first = accepted.signing[0]
    write(entry("two", tenant="red"), entry("old", expires=int(time.time()) - 3600))
    os.utime(path, (1, 1))
    assert accepted.identify("Bearer two").tenant == "red"
    for gone in ("one", "old"):
        with pytest.raises(errors.UnauthorizedError):
            accepted.identify(f"Bearer {gone}")
    path.write_text("{")
    os.utime(path, (2, 2))
    assert accepted.identify("Bearer two").name == "a"
    path.unlink()
    assert accepted.identify("Bearer two").name == "a"
    key_path.write_text(keys.dump(keys.rotated([first], time.time())))
    os.utime(key_path, (3, 3))
    assert [key.kid for key in accepted.signing][1] == first.kid


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"keys": []}',
        '{"keys": [{"kid": "a", "created": 1}]}',
        json.dumps({"keys": [{"kid": "a", "created": 1, "key": "not base64 !"}]}),
        json.dumps(
            {"keys": [{"kid": "a", "created": 1, "key": base64.b64encode(b"short").decode()}]}
        ),
    ],
)
def test_a_wrong_key_file_is_refused_at_start(tmp_path, text):
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(errors.ConfigError, match=r"keys\.json"):
        keys.load(path)


def test_keys_do_not_show_in_messages():
    key = keys.new_key()
    assert repr(key.secret) not in repr(key)


def test_the_command_makes_tokens_and_rotates(tmp_path, capsys):
    directory = tmp_path / "kumo"
    assert main.main(["init", "--directory", str(directory), "--address", "10.0.0.1"]) == 0
    config = ["--config-file", str(directory / "provisioner.conf")]
    capsys.readouterr()
    create = ["token", "create", *config, "--name", "nova", "--tenant", "red", "--hours", "2"]
    assert main.main(create) == 0
    token = capsys.readouterr().out.strip()
    files = str(directory / "tokens.json"), str(directory / "jwt-keys.json")
    assert auth.Tokens.load(*files).identify(f"Bearer {token}").tenant == "red"
    assert main.main(["token", "rotate-keys", *config]) == 0
    assert len(keys.load(files[1])) == 2
    assert auth.Tokens.load(*files).identify(f"Bearer {token}").name == "nova"
    heartbeat = (directory / "heartbeat.token").read_text().strip()
    assert auth.Tokens.load(*files).identify(f"Bearer {heartbeat}").role == auth.NODE
    assert main.main([*create[:-1], "721"]) == 1
    assert "--hours" in capsys.readouterr().err


# -- at the edge --------------------------------------------------------------------------------


def bearer(api, core, accepted, **request):
    token = made(core, accepted, **request).token
    api.headers["Authorization"] = f"Bearer {token}"


def test_tokens_over_the_wire(api, accepted):
    made = api.post("/tokens", json={"name": "nova", "role": "storage", "life": 7200}).json()
    assert made["status"] == "Success"
    api.headers["Authorization"] = f"Bearer {made['token']}"
    assert api.get("/volumes").json() == []
    assert api.post("/backends", json={}).status_code == 403
    assert api.delete(f"/tokens/{made['tokenId']}").json()["status"] == "Success"
    assert api.get("/volumes").status_code == 401
    api.headers["Authorization"] = f"Bearer {TOKEN}"
    assert api.post("/tokens", json={"life": 60}).status_code == 400


def test_what_other_provisioners_revoke_is_learned(api, core, accepted, monkeypatch):
    monkeypatch.setattr(edge, "REVOKED_SECONDS", 0.0)
    answer = made(core, accepted, name="nova", role="storage")
    api.headers["Authorization"] = f"Bearer {answer.token}"
    assert api.get("/volumes").status_code == 200
    with core.db.write() as session:
        session.add(models.RevokedToken(jti=answer.token_id, expires=1 << 40))
    assert api.get("/volumes").status_code == 401


def published_by(api, core, accepted, tenant, uid):
    """The targets of a volume that its tenant has published."""
    bearer(api, core, accepted, role="storage", tenant_id=tenant)
    host = {"hostNqn": f"nqn.host-of-{tenant}", "hostId": f"host-of-{tenant}"}
    body = {"hostId": host["hostId"], "volId": uid, "host": host}
    assert api.post("/publish", json=body).json()["status"] == "Success"
    return api.get(f"/targets?volId={uid}").json()


def test_a_tenant_sees_only_its_own(api, core, accepted, three):
    for tenant in ("red", "blue"):
        body = {"tenantId": tenant, "name": tenant, "capacity": 3}
        assert api.post("/tenants", json=body).json()["tenantId"] == tenant
    uid = api.post("/red/volumes", json={"alias": "v", "capacity": 1}).json()["uuid"]
    bearer(api, core, accepted, role="storage", tenant_id="blue")
    for path in (f"/volumes/{uid}", f"/red/volumes/{uid}", "/red/volumes", "/0/volumes"):
        answer = api.get(path)
        assert (answer.status_code, answer.json()["status"]) == (404, "NotExists"), path
    assert api.get("/volumes").json() == []
    assert api.delete(f"/volumes/{uid}").status_code == 404
    publish = {"hostId": "h", "volId": uid, "host": {"hostNqn": "nqn.host-of-blue", "hostId": "h"}}
    assert api.post("/publish", json=publish).status_code == 404
    assert published_by(api, core, accepted, "red", uid)
    bearer(api, core, accepted, role="storage", tenant_id="blue")
    assert api.get(f"/targets?volId={uid}").json() == []
    assert api.get("/targets?hostId=host-of-red").json() == []
    for path in ("/backends", "/tenants", "/hosts", "/blue/backends"):
        assert api.get(path).status_code in (403, 404), path
    mine = api.post("/volumes", json={"alias": "v", "capacity": 1}).json()["uuid"]
    assert [one["uuid"] for one in api.get("/blue/volumes").json()] == [mine]
    bearer(api, core, accepted, role="storage", tenant_id="red")
    assert [one["uuid"] for one in api.get("/volumes").json()] == [uid]


def test_a_path_is_no_tenant(api):
    answer = api.post("/tenants", json={"tenantId": "volumes", "name": "x"})
    assert answer.json()["status"] == "InvalidInput"
    assert api.get("/nobody/volumes").status_code == 404


def test_info_needs_no_token(api):
    del api.headers["Authorization"]
    assert api.get("/info").json()["version"]
    api.headers["Authorization"] = "Bearer Unknown"
    assert api.get("/info").status_code == 200
    assert api.post("/info").status_code == 401
