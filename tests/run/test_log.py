from __future__ import annotations

import logging
import subprocess
import sys

import structlog.testing

from qmpsnap.run.log import get_logger


def test_logger_prints_nothing_when_nothing_is_configured(capfd):
    get_logger("qmpsnap.test").warning("disk.lost", disk="vda")
    assert capfd.readouterr() == ("", "")


def test_logger_hands_facts_to_the_standard_library_as_fields(caplog):
    with caplog.at_level(logging.INFO, logger="qmpsnap"):
        get_logger("qmpsnap.test").info("step.done", disk="vda", elapsed=0.5)
    (record,) = caplog.records
    assert record.name == "qmpsnap.test"
    assert (record.event, record.disk, record.elapsed) == ("step.done", "vda", 0.5)
    assert record.message == "step.done disk=vda elapsed=0.5"


def test_logger_drops_what_nobody_asked_for(caplog):
    with caplog.at_level(logging.WARNING, logger="qmpsnap"):
        get_logger("qmpsnap.test").info("step.done")
    assert caplog.records == []


def test_capture_logs_sees_every_level(caplog):
    logger = get_logger("qmpsnap.test")
    with structlog.testing.capture_logs() as logs:
        logger.debug("step.done", disk="vda")
    logger.debug("step.done", disk="vdb")
    assert logs == [{"event": "step.done", "disk": "vda", "log_level": "debug"}]
    assert caplog.records == []


PROGRAM = """
import logging, sys
{setup}
from qmpsnap.run.log import get_logger
log = get_logger("qmpsnap.test")
log.debug("not.asked", disk="vda")
log.info("step.done", disk="vda", text="two words, 100%")
"""


def said(setup):
    """What a program prints that sets logging up like that; on stdout and on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(setup=setup)], capture_output=True, text=True, check=True
    )
    return done.stdout, done.stderr


def test_logger_shows_its_fields_under_basic_config():
    out, err = said("logging.basicConfig(level=logging.INFO)")
    assert (out, err) == ("", 'INFO:qmpsnap.test:step.done disk=vda text="two words, 100%"\n')


STRUCTLOG = """
import structlog
structlog.configure(
    processors=[structlog.stdlib.add_log_level, structlog.processors.JSONRenderer()],
    wrapper_class=structlog.make_filtering_bound_logger(logging.INFO), {more}
)
"""
LINE = '{"disk": "vda", "text": "two words, 100%", "event": "step.done", "level": "info"}\n'


def test_logger_uses_the_application_s_structlog():
    more = "logger_factory=structlog.PrintLoggerFactory(sys.stderr)"
    assert said(STRUCTLOG.format(more=more)) == ("", LINE)
    more = "logger_factory=structlog.stdlib.LoggerFactory()"
    setup = "logging.basicConfig(level=logging.INFO, format='%(name)s %(message)s')"
    assert said(setup + STRUCTLOG.format(more=more)) == ("", "qmpsnap.test " + LINE)


def test_logger_prints_nothing_after_capture_logs_where_nobody_configured_structlog():
    capture = "import structlog.testing\nwith structlog.testing.capture_logs(): pass"
    assert said(capture) == ("", "")
    assert said(f"{capture}\nlogging.basicConfig(level=logging.INFO)")[0] == ""


def test_capture_logs_sees_messages_where_structlog_is_configured():
    setup = STRUCTLOG.format(more="")
    capture = """
from structlog.testing import capture_logs
from qmpsnap.run.log import get_logger
with capture_logs() as logs:
    get_logger("qmpsnap.test").info("seen", disk="vda")
print(logs)
"""
    seen = "[{'disk': 'vda', 'event': 'seen', 'log_level': 'info'}]\n"
    assert said(setup + capture)[0] == seen + LINE
