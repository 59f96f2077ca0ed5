"""The command line. Each command is a module of `nas.commands`, imported when it is called."""

import contextlib
import gc
import importlib
import os
import pkgutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

# What the C library's malloc does with large arrays: it gives them huge pages, and keeps what is
# freed. Otherwise a pass on CPU has its memory given back and cleared anew by the kernel again and
# again, a third of its time at the size of Stable Diffusion. Read when a process starts.
_TUNABLES = ":".join(
    f"glibc.malloc.{name}"
    for name in (
        "hugetlb=1",
        f"mmap_threshold={1 << 32}",
        f"trim_threshold={1 << 36}",
        "arena_max=1",
    )
)

USAGE = """nas: shrinks a text-to-image U-Net to a latency budget

  nas search [RECIPE] [--budget 75%] [--device DEVICE]    runs a search, or goes on with it
  nas search [RECIPE] --strategy NAME --device D=75% ...  any strategy, for several devices at once
  nas search [RECIPE] --on ray [--address A] ...          the same on a cluster, or many processes
  nas explore STUDY --device D=2ms ...                    any strategy on a space of your own
  nas precompute [RECIPE] --out PATH_OR_URL               encodes training data once, for workers
  nas plan [RECIPE] [--journal FOLDER] [--workers N]      forecasts what a search will take
  nas report FOLDER                                       writes a search's report again
  nas describe PRESET_OR_FOLDER [--against OTHER]         prints an architecture and what it costs
  nas profile PRESET_OR_FOLDER... [--runtime RUNTIME]     measures blocks and networks here
  nas profile PRESET_OR_FOLDER... --device TPU            prices blocks by a TPU's compiler
  nas profile show | operators                            what was measured; operators of a network
  nas profile export | import                             the same on devices that are elsewhere
  nas latency fit | adapt | check | predict               latency models, and how wrong they are
  nas devices [NAME]                                      lists the devices that are known
  nas plugins                                             lists what other packages add
  nas export FOLDER --to stablehlo|onnx                   writes a network for other programs

RECIPE and STUDY are import paths, or names that `nas plugins` lists; by default RECIPE is
experiments.emoji.recipe:default. DEVICE is one that `nas
devices` lists, or the folder of a model that `nas latency fit` wrote.
`nas COMMAND --help` explains every setting.
"""


SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 1.0  # Seconds for what runs to end before it is said that it has not.
BYTES = 4096


class Interrupted(BaseException):
    """SIGINT or SIGTERM came. No `except Exception` on the way out may take it for a failure."""


def main() -> None:
    """Runs the command line; the exit status is 0, 1 for an error, 130 for an interruption."""
    tuned("nas")
    sys.exit(run(sys.argv[1:]))


def tuned(module: str) -> None:
    """Starts this process anew as `python -m module`, with malloc tuned, unless it has been."""
    if "GLIBC_TUNABLES" not in os.environ and sys.platform == "linux":
        os.environ["GLIBC_TUNABLES"] = _TUNABLES
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])


def run(arguments: list[str]) -> int:
    """Runs one command; returns the exit status."""
    from nas import commands

    names = [module.name for module in pkgutil.iter_modules(commands.__path__)]
    if not arguments or arguments[0] not in names:
        asked = bool(arguments) and arguments[0] not in ("-h", "--help")
        print(USAGE, file=sys.stderr if asked else sys.stdout)
        return 1 if asked else 0
    return guarded(lambda: _command(arguments[0])(arguments[1:]))


def guarded(command: Callable[[], int]) -> int:
    """The exit status of a command. SIGINT and SIGTERM interrupt it; every error is one message."""
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    try:
        with _twice_ends_at_once():
            return command()
    except (ValueError, OSError) as error:
        print(f"nas: {error}", file=sys.stderr)
        return 1
    except Interrupted:
        print("\nnas: interrupted; nothing is lost: the same command goes on", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _twice_ends_at_once() -> Iterator[None]:
    """Has a second signal end the process, whatever it does.

    Python handles a signal between two steps of its own, and a compiler that was called may take
    minutes. What was journalled is stored by then, and locks are the system's.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    over = threading.Event()
    threading.Thread(target=_watch, args=(ours, over), daemon=True).start()
    before = signal.set_wakeup_fd(theirs.fileno())
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        theirs.close()


def _watch(signals: socket.socket, over: threading.Event) -> None:
    """Ends the process at the second signal, until the other end is closed."""
    with signals:
        if _came(signals) and not over.wait(PATIENCE):
            with contextlib.suppress(BlockingIOError):
                signals.recv(BYTES, socket.MSG_DONTWAIT)  # `timeout` and others ask twice at once.
            print(
                "\nnas: interrupted; what runs ends first, or at once if asked again",
                file=sys.stderr,
                flush=True,
            )
            if _came(signals):
                os._exit(130)


def _came(signals: socket.socket) -> bool:
    """Waits; whether it was a signal, and not the end."""
    while numbers := signals.recv(BYTES):
        if not set(SIGNALS).isdisjoint(numbers):
            return True
    return False


def _command(name: str):
    """The function that runs a command.

    Looking for garbage as often as Python does by default costs importing and tracing, which make
    many objects and little garbage, a third of their time.
    """
    gc.set_threshold(100_000)
    return importlib.import_module(f"nas.commands.{name}").run


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted
