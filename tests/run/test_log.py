from __future__ import annotations

import logging

import structlog.testing

from qmpsnap.run.log import get_logger


def test_logger_prints_nothing_when_nothing_is_configured(capfd):
    get_logger("qmpsnap.test").warning("disk.lost", disk="vda")
    assert capfd.readouterr() == ("", "")


def test_logger_hands_facts_to_the_standard_library_as_fields(caplog):
    with caplog.at_level(logging.INFO, logger="qmpsnap"):
        get_logger("qmpsnap.test").info("step.done", disk="vda", elapsed=0.5)
    (record,) = caplog.records
    assert (record.name, record.message, record.disk, record.elapsed) == (
        "qmpsnap.test",
        "step.done",
        "vda",
        0.5,
    )


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
