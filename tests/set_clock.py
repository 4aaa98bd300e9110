"""A clock that processes of an installation are told by a file. Found through ``sys.path`` by ``tests/conftest.py``."""

import textwrap

# What Python imports by itself when it starts. The clock of the file system is set with the other.
CLOCK = textwrap.dedent(
    """
    import os, time

    _true_ns, _monotonic, _utime = time.time_ns, time.monotonic, os.utime
    _says = os.environ["TEST_CLOCK"]
    _read = [0.0, 0]

    def _time_ns():
        if _monotonic() - _read[0] > 0.02:
            with open(_says, "rb") as file:
                _read[:] = _monotonic(), int(file.read())
        return _true_ns() + _read[1] * 10**9

    def _touch(path, times=None, **more):
        if times is None and "ns" not in more:
            more["ns"] = (_time_ns(), _time_ns())
        return _utime(path, times, **more)

    time.time_ns = _time_ns
    time.time = lambda: _time_ns() / 10**9
    os.utime = _touch
    """
)
