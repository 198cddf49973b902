"""Keeps what TensorFlow says of itself off the terminal."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

STDERR = 2  # file descriptor, to which libraries in C++ write
NVIDIA_DRIVER = Path("/proc/driver/nvidia")  # where it is, complaints about the GPU matter


@contextlib.contextmanager
def import_quietly() -> Iterator[None]:
    """Holds back what is written to stderr while TensorFlow is imported; gives it out if the import fails.

    Afterwards TensorFlow writes warnings and errors, but no remarks, unless TF_CPP_MIN_LOG_LEVEL says otherwise.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    try:
        terminal = os.dup(STDERR)
    except OSError:  # stderr is closed
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), STDERR)
        is_wanted = NVIDIA_DRIVER.exists()
        try:
            yield
        except BaseException:
            is_wanted = True
            raise
        finally:
            os.dup2(terminal, STDERR)
            os.close(terminal)
            if is_wanted:
                held.seek(0)
                os.write(STDERR, held.read())
