"""Messages of salsa-dist, with the standard library's `logging`, and the results of commands.

    from salsa_dist.log import log, result

    log.debug("…")      standard output, first rank, with --debug
    log.info("…")       standard output, first rank: progress and notes; not with --quiet
    log.warning("…")    standard error, every rank
    result("…")         standard output, whatever the level: what the command was asked for

SALSA_LOG=quiet or =debug says the same as --quiet and --debug; ranks that a command starts inherit it.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback

VARIABLE = "SALSA_LOG"
_LEVELS = {"quiet": logging.WARNING, "debug": logging.DEBUG}
log = logging.getLogger("salsa_dist")


def choose(*, quiet: bool = False, debug: bool = False) -> None:
    """Set the level of this process and of those it starts; neither: as SALSA_LOG says, else info."""
    if quiet or debug:
        os.environ[VARIABLE] = "debug" if debug else "quiet"
    log.setLevel(_LEVELS.get(os.environ.get(VARIABLE, ""), logging.INFO))


def result(text: object) -> None:
    """Print the result of a command, with --quiet too."""
    print(text, flush=True)


def causes(error: BaseException) -> str:
    """The tracebacks of an error and of all that led to it, the first cause first.

    `raise … from None` only marks what it hides, so it is shown too.
    """
    parts: list[str] = []
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        own = traceback.format_exception(type(link), link, link.__traceback__, chain=False)
        parts.append("".join(own))
        link = link.__cause__ or link.__context__
    return "\nwhich led to:\n\n".join(reversed(parts))


def tell(line: str, behind: str) -> None:
    """Log an error that ends a command: one line, with --debug below the tracebacks behind it."""
    if log.isEnabledFor(logging.DEBUG):
        log.error(behind.rstrip())
    log.error(line)


class _Lines(logging.Handler):
    """Whole lines, flushed, to the streams as they are now: a bar or a test may have replaced them."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        try:
            stream.write(f"{self.format(record)}\n")  # in one write: other threads print too
            stream.flush()
        except Exception:  # such as a full disk below a log file: no reason to end a training
            self.handleError(record)


def _may_speak(record: logging.LogRecord) -> bool:
    """Below a warning the first rank speaks for all."""
    return record.levelno >= logging.WARNING or os.environ.get("RANK", "0") == "0"


def _start() -> None:
    handler = _Lines()
    handler.addFilter(_may_speak)
    log.addHandler(handler)
    log.propagate = False
    choose()


_start()
