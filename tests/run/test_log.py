"""The logger, in programs that set logging up as real ones do."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import structlog.testing

from qmpsnap.run.log import get_logger


def test_logger_hands_facts_to_the_standard_library_as_fields(caplog):
    with caplog.at_level(logging.INFO, logger="qmpsnap"):
        get_logger("qmpsnap.test").info("step.done", disk="vda", elapsed=0.5)
    (record,) = caplog.records
    assert record.name == "qmpsnap.test"
    assert (record.event, record.disk, record.elapsed) == ("step.done", "vda", 0.5)
    assert record.message == "step.done disk=vda elapsed=0.5"
    assert record.funcName == "test_logger_hands_facts_to_the_standard_library_as_fields"


def test_logger_spells_out_what_a_terminal_would_obey(caplog):
    get_logger("qmpsnap.test").warning("disk.lost", reason="\x1b[2J\nx")
    assert caplog.records[0].message == "disk.lost reason=\\x1b[2J\\nx"


def test_logger_drops_what_nobody_asked_for(caplog):
    with caplog.at_level(logging.WARNING, logger="qmpsnap"):
        get_logger("qmpsnap.test").info("step.done")
    assert caplog.records == []


def test_logger_has_the_methods_of_structlog_s_and_no_others(caplog):
    logger = get_logger("qmpsnap.test")
    logger.bind(disk="vda").warning("disk.lost")
    assert caplog.records[0].message == "disk.lost disk=vda"
    assert not hasattr(logger, "no_such_method")
    assert not hasattr(logger, "__wrapped__")  # what inspect and pickle ask for


def test_capture_logs_sees_every_level(caplog):
    logger = get_logger("qmpsnap.test")
    with structlog.testing.capture_logs() as logs:
        logger.debug("step.done", disk="vda")
    logger.debug("step.done", disk="vdb")
    assert logs == [{"event": "step.done", "disk": "vda", "log_level": "debug"}]
    assert caplog.records == []


# Each configuration is made before `import qmpsnap`, and after it and a first message.
PROGRAM = """
import json, logging, logging.config, sys
{before}
from qmpsnap.run.log import get_logger
log = get_logger("qmpsnap.test")
{between}
log.debug("not.asked", disk="vda")
log.info("step.done", disk="vda", text="two words, 100%")
"""
FIRST = 'log.debug("first")\n'


def output(*, before: str = "", between: str = "") -> tuple[str, str]:
    """What the program prints on stdout and on stderr, with that code before and after `import qmpsnap`."""
    program = PROGRAM.format(before=before, between=between)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


BASIC = "logging.basicConfig(level=logging.INFO)"
JSON = """
class Json(logging.Formatter):
    def format(self, record):
        return json.dumps({key: vars(record)[key] for key in ("name", "levelname", "event", "disk", "text")})
logging.config.dictConfig({
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": Json}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "loggers": {"qmpsnap": {"level": "INFO", "handlers": ["stderr"]}},
})
"""
JSON_LINE = (
    '{"name": "qmpsnap.test", "levelname": "INFO", "event": "step.done", "disk": "vda", '
    '"text": "two words, 100%"}\n'
)
# The first is the configuration of structlog's own guide to the standard library.
STDLIB = """
import structlog
structlog.configure(
    processors=[
        structlog.stdlib.filter_by_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(sort_keys=True),
    ],
    wrapper_class=structlog.stdlib.BoundLogger,
    logger_factory=structlog.stdlib.LoggerFactory(),
    cache_logger_on_first_use={cached},
)
logging.basicConfig(format="%(name)s %(message)s", level=logging.INFO)
"""
STDLIB_LINE = (
    'qmpsnap.test {"disk": "vda", "event": "step.done", "level": "info", "logger": "qmpsnap.test", '
    '"text": "two words, 100%"}\n'
)
FORMATTER = """
import structlog
structlog.configure(
    processors=[structlog.stdlib.add_log_level, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
    logger_factory=structlog.stdlib.LoggerFactory(),
)
handler = logging.StreamHandler()
handler.setFormatter(structlog.stdlib.ProcessorFormatter(
    processors=[
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.LogfmtRenderer(),
    ],
))
logging.getLogger().addHandler(handler)
logging.getLogger().setLevel(logging.INFO)
"""
FORMATTER_LINE = 'disk=vda text="two words, 100%" event=step.done level=info\n'
PRINT = """
import structlog
structlog.configure(
    processors=[structlog.processors.LogfmtRenderer(key_order=["event"])],
    wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    cache_logger_on_first_use={cached},
)
"""
PRINT_LINE = 'event=step.done disk=vda text="two words, 100%"\n'
CONTEXT = """
import structlog
structlog.configure(
    processors=[structlog.contextvars.merge_contextvars, structlog.processors.LogfmtRenderer(sort_keys=True)],
    wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
)
structlog.contextvars.bind_contextvars(request=7)
"""
CONTEXT_LINE = 'disk=vda event=step.done request=7 text="two words, 100%"\n'
CAPTURED = """
import structlog.testing
with structlog.testing.capture_logs():
    pass
"""

CONFIGURATIONS = [
    ("nothing", "", ("", "")),
    ("structlog imported", "import structlog", ("", "")),
    ("basicConfig", BASIC, ("", 'INFO:qmpsnap.test:step.done disk=vda text="two words, 100%"\n')),
    ("dictConfig with JSON", JSON, ("", JSON_LINE)),
    ("structlog over logging", STDLIB.format(cached=False), ("", STDLIB_LINE)),
    ("structlog over logging, cached", STDLIB.format(cached=True), ("", STDLIB_LINE)),
    ("structlog's formatter", FORMATTER, ("", FORMATTER_LINE)),
    ("PrintLogger", PRINT.format(cached=False), ("", PRINT_LINE)),
    ("PrintLogger, cached", PRINT.format(cached=True), ("", PRINT_LINE)),
    ("contextvars, on stdout", CONTEXT, (CONTEXT_LINE, "")),
    ("capture_logs has been used", CAPTURED, ("", "")),
]


@pytest.mark.parametrize(
    ("setup", "expected"), [row[1:] for row in CONFIGURATIONS], ids=[row[0] for row in CONFIGURATIONS]
)
@pytest.mark.parametrize("late", [False, True])
def test_logger_honours_the_application_s_configuration(setup, expected, late):
    assert (output(between=FIRST + setup) if late else output(before=setup)) == expected


def test_logger_goes_back_to_logging_after_capture_logs():
    expected = ("", 'INFO:qmpsnap.test:step.done disk=vda text="two words, 100%"\n')
    assert output(before=CAPTURED + BASIC) == expected


@pytest.mark.parametrize("cached", [False, True])
def test_capture_logs_sees_messages_where_structlog_is_configured(cached):
    capture = """
from structlog.testing import capture_logs
with capture_logs() as logs:
    log.info("seen", disk="vda")
print(logs)
"""
    expected = ("[{'disk': 'vda', 'event': 'seen', 'log_level': 'info'}]\n", PRINT_LINE)
    assert output(before=PRINT.format(cached=cached), between=capture) == expected


def test_logger_imports_structlog_with_the_first_message_that_is_read():
    imported = "print('structlog' in sys.modules)\n"
    messages = f"log.info('not.read')\n{imported}log.warning('disk.lost')\n{imported}"
    assert output(between=messages) == ("False\nTrue\n", "")
