from __future__ import annotations

import json

import pytest

from qmpsnap.model.secrets import (
    PASSWORD_MARKS,
    answers_secret,
    mask_answer,
    mask_secrets,
    masked,
    masked_all,
    without_passwords,
)
from tests.each import each


def command(name, **arguments):
    return {"execute": name, "arguments": arguments, "id": "1"}


MASKED = [
    (
        command("object-add", **{"qom-type": "secret", "id": "s0", "data": "hunter2"}),
        {"qom-type": "secret", "id": "s0", "data": "***"},
    ),
    (command("set_password", protocol="vnc", password="x"), {"protocol": "vnc", "password": "***"}),
    (command("change-vnc-password", password="x"), {"password": "***"}),
    (
        command("blockdev-add", driver="https", url="https://u:pw@h/d", cookie="session=1"),
        {"driver": "https", "url": "https://u:***@h/d", "cookie": "***"},
    ),
    (
        command("transaction", actions=[{"type": "x", "data": {"password": "p", "node": "n"}}]),
        {"actions": [{"type": "x", "data": {"password": "***", "node": "n"}}]},
    ),
    (command("send-key", keys=[{"type": "qcode", "data": "p"}]), {"keys": "***"}),
    (command("input-send-event", events=[{"type": "key"}]), {"events": "***"}),
    (command("ringbuf-write", device="c", data="p"), {"device": "c", "data": "***"}),
    (
        command("sev-inject-launch-secret", **{"packet-header": "h", "secret": "s"}),
        {"packet-header": "h", "secret": "***"},
    ),
    (
        command("qom-set", path="/objects/s0", property="data", value="p"),
        {"path": "/objects/s0", "property": "data", "value": "***"},
    ),
    *(
        (
            command("human-monitor-command", **{"command-line": line}),
            {"command-line": kept},
        )
        for line, kept in [
            ("set_password vnc hunter2", "set_password ***"),
            (" object_add secret,id=s,data=hunter2", "object_add ***"),
            ("change vnc password hunter2", "change vnc ***"),
            ("qom-set /objects/s0 data hunter2", "qom-set /objects/s0 data ***"),
            ('qom-set /objects/s0 "data" hunter2', 'qom-set /objects/s0 "data ***'),
            ("sendkey h", "sendkey ***"),
        ]
    ),
]


@pytest.mark.parametrize(("message", "arguments"), MASKED, ids=lambda value: value.get("execute", ""))
def test_masked_replaces_secrets_and_nothing_else(message, arguments):
    assert mask_secrets(message) == {**message, "arguments": arguments}
    assert mask_secrets(mask_secrets(message)) == mask_secrets(message)


@pytest.mark.parametrize(
    "message",
    [
        {"execute": "stop"},
        {"execute": "x", "arguments": ["not", "a", "mapping"]},
        command("x-blockdev-amend", secret="id-of-an-object"),
        command("blockdev-add", **{"key-secret": "s0", "password-secret": "s1", "tls-creds": "t0"}),
        command("chardev-add", id="c", backend={"type": "ringbuf", "data": {"size": 64}}),
        command("human-monitor-command", **{"command-line": "savevm set_password"}),
        command("human-monitor-command", **{"command-line": "change ide0 /iso"}),
        command("qom-set", path="/machine", property="size", value=1),
        command("human-monitor-command"),
    ],
    ids=str,
)
def test_masked_keeps_what_is_no_secret(message):
    assert mask_secrets(message) == message


def test_answers_secret_knows_the_properties_of_secret_objects():
    assert answers_secret(command("qom-get", path="/objects/s0", property="data"))
    assert not answers_secret(command("qom-get", path="/machine", property="type"))
    assert not answers_secret({"execute": "qom-get"})


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ("qom-get /objects/s0 data", True),
        (' qom-get "/objects/s0" "password"', True),
        ("qom-get /machine type", False),
        ("info qom-tree", False),
    ],
)
def test_answers_secret_knows_the_human_monitor_s_command(line, secret):
    assert answers_secret(command("human-monitor-command", **{"command-line": line})) is secret


def test_masked_answer_keeps_its_shape():
    assert answers_secret(command("qom-list-get", paths=["/objects/s0"]))
    properties = [
        {"name": "format", "value": "raw", "type": "QCryptoSecretFormat"},
        {"name": "data", "value": "hunter2", "type": "string"},
    ]
    assert mask_answer([{"properties": properties}]) == [
        {"properties": [properties[0], {**properties[1], "value": "***"}]}
    ]
    assert mask_answer('"hunter2"\r\n') == "***"


def test_without_passwords_masks_the_cookie_of_a_node_s_name():
    name = 'json:{"driver": "https", "cookie": "id=1; k=2", "url": "https://h/d"}'
    masked = name.replace("id=1; k=2", "***")
    assert without_passwords(name) == masked
    assert json.loads(without_passwords(json.dumps({"file": name}))) == {"file": masked}


def test_without_passwords_masks_what_iscsi_and_ceph_have_in_a_name():
    assert without_passwords("iscsi://u%pw@h:3260/iqn.a/0") == "iscsi://u%***@h:3260/iqn.a/0"
    name = "rbd:pool/image:id=admin:key=AQB+x/==:auth_supported=cephx"
    masked = "rbd:pool/image:id=admin:key=***:auth_supported=cephx"
    assert without_passwords(name) == masked
    assert without_passwords(json.dumps([name])) == json.dumps([masked])
    assert without_passwords("rbd:pool/image:id=admin a:key=b") == "rbd:pool/image:id=admin a:key=b"


def test_without_passwords_keeps_urls_without_any():
    for text in ("nbd://host:10809/x", "https://user@h/d", "ssh://h/a:b@c", "no url: a@b"):
        assert without_passwords(text) == text
    assert without_passwords('"ssh://u:p@h/" "ftp://a:b@c"') == '"ssh://u:***@h/" "ftp://a:***@c"'


@each(
    "text",
    [
        "https://u:pw@h/d",
        "iscsi://u%pw@h:3260/iqn.a/0",
        "rbd:pool/image:id=admin:key=AQB",
        'json:{"driver": "https", "cookie": "id", "url": "https://h/d"}',
    ],
)
def test_password_marks_are_in_every_text_that_has_one(text):
    for message in (text, json.dumps({"file": text})):
        assert without_passwords(message) != message
        assert any(mark in message.encode() for mark in PASSWORD_MARKS)


@each("text", ['{"file": "nbd://host:10809/x"}', '{"file": "/a:key", "node-name": "://"}'])
def test_password_marks_are_not_in_the_messages_of_others(text):
    assert not any(mark in text.encode() for mark in PASSWORD_MARKS)


SECRET = "hunter2"


@each(
    "text",
    [
        f"secret,id=s0,data={SECRET}",
        f"secret,id=s0,data={SECRET},format=raw",
        f"secret,data=a,,{SECRET},id=s0",
        f"tls-creds-x509,id=t,PASSWORD={SECRET}",
        f"port=5900,password={SECRET}",
        f'{{"qom-type":"secret","id":"s0","data":"{SECRET}"}}',
        f'{{"qom-type": "secret", "data" : "a\\"{SECRET}"}}',
        f'{{"execute": "set_password", "arguments": {{"protocol": "vnc", "password": "{SECRET}"}}}}',
        f"driver=https,url=https://user:{SECRET}@host/x",
        f'driver=https,url=https://user:a"{SECRET}@host/x',
        f"driver=https,url=https://host/x,cookie=id={SECRET}",
        f"if=none,file.driver=https,file.url=https://host/x,file.cookie={SECRET}",
        f'{{"driver":"https","url":"https://user:{SECRET}@host/x"}}',
        f"if=virtio,file=iscsi://user%{SECRET}@host/iqn.x/0",
        f"if=virtio,file=rbd:pool/image:id=admin:key={SECRET}",
        f'file=json:{{"driver":"https","url":"https://host/x","cookie":"{SECRET}"}}',
        f"name=opt/io.systemd.credentials/x,string={SECRET}",
        f"type=11,value=io.systemd.credential:x={SECRET}",
    ],
)
def test_masked_hides_what_may_be_a_secret(text):
    assert SECRET not in masked(text)
    assert "***" in masked(text)


@each(
    "text",
    [
        "driver=qcow2,file.filename=/d/x.qcow2,encrypt.key-secret=s0",
        "tls-creds-x509,id=t,dir=/d,passwordid=p",
        '{"driver":"file","filename":"/d/x","node-name":"n"}',
        "nbd://host:10809/export",
        "-m",
        "512",
    ],
)
def test_masked_leaves_what_is_none(text):
    assert masked(text) == text


def test_masked_all_keeps_the_words_apart():
    words = ["qemu", "-object", f"secret,id=s,data={SECRET}", "-S"]
    assert masked_all(words) == ["qemu", "-object", "secret,id=s,data=***", "-S"]
