"""A damaged record is named and passed over, and the others are heard. The rule is ours: one QEMU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from integration.known_images import QEMUS
from integration.machines import blockdev
from qmpsnap.cli.main import run
from qmpsnap.model.names import state_directory
from qmpsnap.model.record import IntentRecord
from qmpsnap.model.record_file import from_json, to_json
from qmpsnap.plan.commands.records import finish_record
from tests.model.records import committing, stages


def folded_apart(body):
    """The record as if the first and the last layer had been folded, and not what lies between."""
    first, *between, last = body["chains"]["vda"]
    return body | {"folded": [first, last], "after": {"vda": between}}


DAMAGE = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "no object": lambda text: "[]",
    "another disk": lambda text: text.replace('"disk": "vda"', '"disk": "vdb"'),
    "no disk": lambda text: text.replace('"disk": "vda"', '"disk": ""'),
    "no chain": lambda text: json.dumps(json.loads(text) | {"chains": {}}),
    "another chain": lambda text: json.dumps(json.loads(text) | {"chains": {"vda": ["/d/x", "/d/y"]}}),
    "folded apart": lambda text: json.dumps(folded_apart(json.loads(text))),
    "no path": lambda text: json.dumps(json.loads(text) | {"folded": [7]}),
    "no zone": lambda text: json.dumps(json.loads(text) | {"created": "2024-05-01T12:00:00"}),
    "no stages": lambda text: json.dumps(json.loads(text) | {"stages": []}),
    "another action": lambda text: text.replace('"finish-record"', '"remove-file"'),
    "another command": lambda text: text.replace('"block-commit"', '"quit"'),
    "another id": lambda text: json.dumps(json.loads(text) | {"id": "qmpsnap-commit-keep-00000000"}),
}


@pytest.mark.parametrize("qemu", QEMUS[:1], ids=[QEMUS[0].short], indirect=True)
def test_jobs_names_a_damaged_record_and_tells_of_the_others(images, machine, leftovers, capsys):
    made = images("base <- s1 <- s2 <- s3")
    chain = made.files[::-1]
    job = "qmpsnap-commit-keep-0a1b2c3d"
    good = IntentRecord(
        id=job,
        op="commit",
        created="2024-05-01T12:00:00+00:00",
        chains={"vda": chain},
        after={"vda": (chain[0], chain[3])},
        stages=stages(
            committing(job, above=chain[0], base=chain[3]),
            tidy=(finish_record(state_directory(made.files[0]), (job,)),),
        ),
        folded=chain[1:3],
        invalid=(chain[3],),
    )
    directory = Path(state_directory(made.files[0]))
    directory.mkdir()
    other = from_json(to_json(good).replace(job, "qmpsnap-commit-keep-1a1b2c3d"))
    file = directory / other.file_name
    (directory / good.file_name).write_text(to_json(good))
    leftovers.allow(str(directory), str(directory / good.file_name), str(file))
    with machine(*blockdev("vda", made.active)) as running:
        for damage in DAMAGE.values():
            file.write_text(damage(to_json(other)))
            assert run(["-s", running.socket, "chain"]) == 0
            assert str(file) in capsys.readouterr().err
            assert run(["-s", running.socket, "--json", "jobs"]) == 0
            out, err = capsys.readouterr()
            assert str(file) in err
            (left,) = json.loads(out)["interrupted"]
            assert left["id"] == good.id
            assert left["ways"] == [f"qmpsnap commit vda --top {chain[1]} --base {chain[3]}"]
