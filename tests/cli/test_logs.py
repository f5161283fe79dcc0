from __future__ import annotations

import json
import logging

import pytest

from qmpsnap.cli.logs import configure
from qmpsnap.run.log import get_logger
from qmpsnap.run.session.client import Client


@pytest.mark.parametrize(("verbose", "seen"), [(0, ["w"]), (1, ["i", "w"]), (2, ["d", "i", "w"])])
def test_configure_shows_what_v_asks_for(capsys, verbose, seen):
    configure(verbose)
    log = get_logger("qmpsnap.run")
    log.debug("d")
    log.info("i")
    log.warning("w")
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split()[2] for line in err.splitlines()] == seen


def test_configure_writes_the_facts_of_a_message(capsys):
    configure(1)
    get_logger("qmpsnap.run").info("step.done", op="commit", elapsed=0.1, hint="two words")
    rest = capsys.readouterr().err.split(maxsplit=1)[1:]
    assert rest == ['info step.done op=commit elapsed=0.1 hint="two words"\n']


def test_configure_twice_says_everything_once(capsys):
    configure(0)
    configure(0)
    get_logger("qmpsnap.run").warning("w")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_configure_shows_the_traffic_a_message_a_line(capsys):
    configure(2)
    wire = logging.getLogger("qemu.qmp.protocol.qmpsnap")
    wire.debug("--> %s", '{\n "execute": "x"\n}')
    wire.debug("Transitioning")
    assert capsys.readouterr().err == '--> {"execute": "x"}\n'


def test_configure_hides_the_traffic_from_those_who_want_steps(capsys):
    configure(1)
    logging.getLogger("qemu.qmp.protocol.qmpsnap").debug("--> %s", "{}")
    assert capsys.readouterr().err == ""


def test_configure_leaves_the_errors_of_qemu_qmp_to_us(capsys):
    configure(1)
    logging.getLogger("qemu.qmp.protocol.qmpsnap").error("Failed to establish session")
    assert capsys.readouterr().err == ""


def test_configure_shows_no_secret_of_the_traffic(capsys):
    configure(2)
    wire = logging.getLogger("qemu.qmp.protocol.qmpsnap")
    wire.debug("--> %s", '{"execute": "object-add", "arguments": {"qom-type": "secret", "data": "hunter2"}}')
    assert '"data": "***"' in capsys.readouterr().err


def logged(capsys, name, direction, message):
    logging.getLogger(name).debug(f"{direction} %s", json.dumps(message, indent=2))
    line = capsys.readouterr().err
    assert line.startswith(f"{direction} ")
    return json.loads(line[4:])


@pytest.mark.parametrize(
    ("command", "answer", "shown"),
    [
        (("qom-get", {"path": "/objects/s0", "property": "data"}), "hunter2", "***"),
        (
            ("qom-list-get", {"paths": ["/objects/s0"]}),
            [{"properties": [{"name": "data", "value": "hunter2"}, {"name": "format", "value": "raw"}]}],
            [{"properties": [{"name": "data", "value": "***"}, {"name": "format", "value": "raw"}]}],
        ),
        (("human-monitor-command", {"command-line": "qom-get /objects/s0 data"}), '"hunter2"\r\n', "***"),
        (("qom-get", {"path": "/machine", "property": "type"}), "pc", "pc"),
        (("query-block", {"x": 1}), [{"file": "https://u:hunter2@h/d"}], [{"file": "https://u:***@h/d"}]),
    ],
)
def test_configure_shows_no_secret_that_qemu_returns(capsys, command, answer, shown):
    configure(2)
    name, other = "qemu.qmp.protocol.one", "qemu.qmp.protocol.two"
    execute, arguments = command
    sent = {"execute": execute, "arguments": arguments, "id": "1"}
    assert logged(capsys, name, "-->", sent) == sent
    assert logged(capsys, other, "<--", {"return": "kept", "id": "1"}) == {"return": "kept", "id": "1"}
    assert logged(capsys, name, "<--", {"return": answer, "id": "1"}) == {"return": shown, "id": "1"}
    assert logged(capsys, name, "<--", {"return": "kept", "id": "1"}) == {"return": "kept", "id": "1"}


def test_configure_masks_the_replies_of_each_connection_by_what_was_asked_on_it(capsys):
    configure(2)
    one, other = Client(), Client()

    def logged_by(client, direction, message):
        client.logger.debug(f"{direction} %s", json.dumps(message))
        return json.loads(capsys.readouterr().err[4:])

    asks = {"execute": "qom-get", "arguments": {"path": "/objects/s0", "property": "data"}, "id": "1"}
    assert logged_by(one, "-->", asks) == asks
    assert logged_by(other, "<--", {"return": "kept", "id": "1"}) == {"return": "kept", "id": "1"}
    assert logged_by(one, "<--", {"return": "hunter2", "id": "1"}) == {"return": "***", "id": "1"}
    assert one.logger.name == other.logger.name


def test_number_of_a_connection_is_never_that_of_an_earlier_one():
    numbers = [vars(Client().logger)["extra"]["connection"] for _ in range(100)]  # each of them is freed
    assert sorted({*numbers}) == numbers


def test_configure_shows_no_secret_of_a_command_that_only_its_table_knows(capsys):
    configure(2)
    sent = {"execute": "send-key", "arguments": {"keys": [{"type": "qcode", "data": 5}]}}
    assert logged(capsys, "qemu.qmp.protocol.one", "-->", sent)["arguments"] == {"keys": "***"}
