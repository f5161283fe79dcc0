from __future__ import annotations

import pytest

from qmpsnap.testing.server import Return

from .conftest import disks


def job(job_id):
    progress = {"current-progress": 1, "total-progress": 1}
    return Return([{"id": job_id, "type": "mirror", "status": "concluded", **progress}])


def test_a_machine_that_is_well_is_healthy(machine, server):
    disks(server)
    ended = machine("doctor")
    assert (ended.code, ended.out, ended.err) == (0, "no trouble found\n", "")
    assert machine("doctor", "--json").json == {"version": 1, "healthy": True, "findings": []}


def test_a_trouble_is_printed_with_the_command_that_mends_it(machine, server):
    disks(server)
    server.answer("query-jobs", job("the'irs\n\x1b[31m"))
    ended = machine("doctor")
    assert ended.code == 8
    first, *_, mend, note = ended.out.splitlines()
    assert first == r"job-concluded: the'irs\n\x1b[31m"
    assert mend.startswith("  mend: qmpsnap -s /")
    assert mend.endswith("""qmp job-dismiss '{"id": "the'"'"'irs\\n\\u001b[31m"}'""")
    assert note == "  note: unless its client still wants to read the outcome"
    found = machine("doctor", "--json", "--shared-fs", "no").json
    (finding,) = found["findings"]
    assert found["healthy"] is False
    assert (finding["code"], finding["subject"]) == ("job-concluded", "the'irs\n\x1b[31m")
    assert finding["remedy"][:2] == ["qmpsnap", "-s"]
    assert finding["remedy"][3:6] == ["--shared-fs", "no", "qmp"]


def test_a_limit_is_no_trouble(machine, server):
    disks(server)
    server.answer("query-jobs", Return([{**job("theirs").value[0], "status": "ready"}]))
    ended = machine("doctor")
    assert ended.code == 0
    assert ended.out.startswith("no trouble found\nlimit: job-waits: theirs\n")


@pytest.mark.parametrize("name", ["absent.qcow2", "two\nlines.qcow2"])
def test_images_that_cannot_be_read_are_a_trouble(qmpsnap, tmp_path, name):
    (tmp_path / "two\nlines.qcow2").write_bytes(b"no header")
    ended = qmpsnap("-i", f"vda={tmp_path}/{name}", "doctor")
    assert ended.code == 8
    assert ended.out.startswith("image-refused: vda\n")
    assert "mend:" not in ended.out
