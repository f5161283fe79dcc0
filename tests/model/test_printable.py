from qmpsnap.model.printable import masked, masked_all, shell_word, shortened
from tests.each import each

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


@each(
    ("word", "typed"),
    [
        ("plain", "plain"),
        ("two words", "'two words'"),
        ("", "''"),
        ("a\nb\x1b[31m", r"$'a\x0ab\x1b[31m'"),
        ("it's\t\\ü", r"$'it\'s\x09\\ü'"),
        ("\udcff", r"$'\xff'"),  # a byte that is not UTF-8
    ],
)
def test_a_word_for_a_shell_is_on_one_line(word: str, typed: str) -> None:
    assert shell_word(word) == typed


def test_shortened_leaves_every_path_and_takes_the_middle_out_of_what_is_longer():
    path = "/" + 4095 * "p"
    kept = f"{path} and {path} are different"
    assert shortened(kept) == kept
    word = 300 * "a" + 3_000_000 * "b" + 300 * "c"
    assert shortened(f"no {word} here") == (
        f"no {200 * 'a'}[... 3000200 characters left out ...]{200 * 'c'} here"
    )
    line = "x " * 1_000_000
    assert shortened(line) == "x " * 2048 + "[... 1991808 characters left out ...]" + "x " * 2048
    assert shortened(shortened(line)) == shortened(line)
