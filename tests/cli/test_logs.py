from __future__ import annotations

import logging

import pytest

from qmpsnap.cli.logs import configure
from qmpsnap.run.log import get_logger


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
