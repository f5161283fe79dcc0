"""The logger, in programs that set logging up as real ones do."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

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


# Each configuration is made before `import qmpsnap`, and after it and a first message. Each program runs in a
# fork of a process that has imported what structlog and qmpsnap need, and neither of the two.
FORKS = """
import json, logging.config, os, sys
import qmpsnap.run.log, structlog
for name in [name for name in sys.modules if name.partition(".")[0] in {"structlog", "qmpsnap"}]:
    del sys.modules[name]
for stem, program in json.loads(sys.stdin.read()).items():
    if os.fork() == 0:
        for number, stream in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{stem}.{stream}", os.O_WRONLY | os.O_CREAT), number)
        exec(program, {"__name__": "__main__"})
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""
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


def program(*, before: str = "", between: str = "") -> str:
    """A program that logs, with that code before and after `import qmpsnap`."""
    return PROGRAM.format(before=before, between=between)


def outputs(place: Path, programs: dict[str, str]) -> dict[str, tuple[str, str]]:
    """What each program prints on stdout and on stderr."""
    stems = {name: str(place / str(number)) for number, name in enumerate(programs)}
    given = json.dumps({stems[name]: text for name, text in programs.items()})
    subprocess.run([sys.executable, "-c", FORKS], input=given, text=True, check=True)
    return {
        name: (Path(f"{stem}.out").read_text(), Path(f"{stem}.err").read_text())
        for name, stem in stems.items()
    }


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

CONFIGURATIONS = {
    "nothing": ("", ("", "")),
    "structlog imported": ("import structlog", ("", "")),
    "basicConfig": (BASIC, ("", 'INFO:qmpsnap.test:step.done disk=vda text="two words, 100%"\n')),
    "dictConfig with JSON": (JSON, ("", JSON_LINE)),
    "structlog over logging": (STDLIB.format(cached=False), ("", STDLIB_LINE)),
    "structlog over logging, cached": (STDLIB.format(cached=True), ("", STDLIB_LINE)),
    "structlog's formatter": (FORMATTER, ("", FORMATTER_LINE)),
    "PrintLogger": (PRINT.format(cached=False), ("", PRINT_LINE)),
    "PrintLogger, cached": (PRINT.format(cached=True), ("", PRINT_LINE)),
    "contextvars, on stdout": (CONTEXT, (CONTEXT_LINE, "")),
    "capture_logs has been used": (CAPTURED, ("", "")),
}


def test_logger_honours_the_application_s_configuration(tmp_path):
    early = {name: program(before=setup) for name, (setup, _) in CONFIGURATIONS.items()}
    late = {f"{name}, late": program(between=FIRST + setup) for name, (setup, _) in CONFIGURATIONS.items()}
    lines = {name: expected for name, (_, expected) in CONFIGURATIONS.items()}
    assert outputs(tmp_path, early | late) == lines | {f"{name}, late": line for name, line in lines.items()}


CAPTURE = """
from structlog.testing import capture_logs
with capture_logs() as logs:
    log.info("seen", disk="vda")
print(logs)
"""
IMPORTED = "print('structlog' in sys.modules)\n"
MESSAGES = f"log.info('not.read')\n{IMPORTED}log.warning('disk.lost')\n{IMPORTED}"


def test_logger_and_capture_logs_leave_each_other_as_they_were(tmp_path):
    seen = ("[{'disk': 'vda', 'event': 'seen', 'log_level': 'info'}]\n", PRINT_LINE)
    found = outputs(tmp_path, {
        "used before": program(before=CAPTURED + BASIC),
        "used": program(before=PRINT.format(cached=False), between=CAPTURE),
        "used, cached": program(before=PRINT.format(cached=True), between=CAPTURE),
        "imported": program(between=MESSAGES),
    })  # fmt: skip
    assert found == {
        "used before": ("", 'INFO:qmpsnap.test:step.done disk=vda text="two words, 100%"\n'),
        "used": seen,
        "used, cached": seen,
        "imported": ("False\nTrue\n", ""),  # structlog, with the first message that is read
    }
