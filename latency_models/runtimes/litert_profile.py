"""Watches a LiteRT model run, operator by operator. Run by `litert._Interpreted.profile`, with the
path of a JSON file that says what to run and where to write what was seen.

The Python package has no profiler, but the library inside it has the one of LiteRT's C interface
(`litert/c/litert_profiler.h`), which is called here. A process of its own, since a library that
lays a structure out in another way would end it, and since it talks a lot.
"""

import ctypes
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

_CPU = 1  # kLiteRtHwAcceleratorCpu
_WRITE = 1  # kLiteRtTensorBufferLockModeWrite
# LiteRtProfilerEventType: an operator of the interpreter, and one inside a delegate.
_OPERATOR, _DELEGATED = 1 << 1, 1 << 3
_TYPE_BYTES = 512  # A LiteRtRankedTensorType, with room: it is only handed on.

_Pointer = ctypes.c_void_p
_Deleter = ctypes.CFUNCTYPE(None, _Pointer)


class _Event(ctypes.Structure):
    """ProfiledEventData of `litert/c/litert_profiler_event.h`."""

    _fields_ = (
        ("tag", ctypes.c_char_p),
        ("type", ctypes.c_int),
        ("start_us", ctypes.c_uint64),
        ("elapsed_us", ctypes.c_uint64),
        ("memory_before", ctypes.c_size_t * 3),
        ("memory_after", ctypes.c_size_t * 3),
        ("number", ctypes.c_uint64),
        ("subgraph", ctypes.c_uint64),
        ("source", ctypes.c_int),
    )


class _Library:
    """LiteRT's C interface. A call that fails raises `OSError` with its name and status."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("ai_edge_litert")
        assert spec and spec.origin
        self._library = ctypes.CDLL(str(Path(spec.origin).with_name("libLiteRt.so")))
        self._kept: list[Any] = []  # What the library holds pointers to.

    def __call__(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, f"LiteRt{name}")(*arguments)
        if status:
            raise OSError(f"LiteRt{name} says {status}")

    def made(self, name: str, *arguments: Any) -> Any:
        """What a call gives through its last argument."""
        found = _Pointer()
        self(name, *arguments, ctypes.byref(found))
        return found

    def setting(self, options: Any, of: bytes, text: bytes) -> None:
        """Adds settings, a line of TOML, to options."""
        payload, deleter = ctypes.create_string_buffer(text), _Deleter(lambda _: None)
        self._kept += [payload, deleter]
        address = ctypes.cast(payload, _Pointer)
        self("AddOpaqueOptions", options, self.made("CreateOpaqueOptions", of, address, deleter))


def watch(model: str, inputs: list[str], threads: int, passes: int, events: str) -> None:
    """Writes `[name, kind, microseconds]` of every operator of every pass."""
    library = _Library()
    environment = library.made("CreateEnvironment", 0, None)
    read = library.made("CreateModelFromFile", environment, model.encode())
    options = library.made("CreateOptions")
    library("SetOptionsHardwareAccelerators", options, _CPU)
    library.setting(options, b"runtime_options_string", b"enable_profiling = true\n")
    library.setting(options, b"xnnpack", f"num_threads = {threads}\n".encode())
    compiled = library.made("CreateCompiledModel", environment, read, options)
    profiler = library.made("CompiledModelGetProfiler", compiled)
    buffers = {
        kind: _buffers(library, environment, read, compiled, kind) for kind in ("Input", "Output")
    }
    for (buffer, size), file in zip(buffers["Input"], inputs, strict=True):
        content = Path(file).read_bytes()
        if len(content) != size:
            raise OSError(f"an input of {size} bytes is given {len(content)}")
        place = _Pointer()
        library("LockTensorBuffer", buffer, ctypes.byref(place), _WRITE)
        ctypes.memmove(place, content, size)
        library("UnlockTensorBuffer", buffer)
    arguments = []
    for kind in ("Input", "Output"):
        held = [buffer for buffer, _ in buffers[kind]]
        arguments += [ctypes.c_size_t(len(held)), (_Pointer * len(held))(*held)]
    found = []
    for _ in range(passes):
        library("ResetProfiler", profiler)
        library("StartProfiler", profiler)
        library("RunCompiledModel", compiled, ctypes.c_size_t(0), *arguments)
        library("StopProfiler", profiler)
        found += _seen(library, profiler)
    Path(events).write_text(json.dumps(found))


def _buffers(
    library: _Library, environment: Any, model: Any, compiled: Any, kind: str
) -> list[tuple[Any, int]]:
    """Memory for the inputs or outputs of a model, and its bytes."""
    signature, first = library.made("GetModelSignature", model, ctypes.c_size_t(0)), []
    count = ctypes.c_size_t()
    library(f"GetNumSignature{kind}s", signature, ctypes.byref(count))
    for index in map(ctypes.c_size_t, range(count.value)):
        tensor = library.made(f"GetSignature{kind}TensorByIndex", signature, index)
        shape = ctypes.create_string_buffer(_TYPE_BYTES)
        library("GetRankedTensorType", tensor, shape)
        needed = library.made(
            f"GetCompiledModel{kind}BufferRequirements", compiled, ctypes.c_size_t(0), index
        )
        buffer = library.made(
            "CreateManagedTensorBufferFromRequirements", environment, shape, needed
        )
        size = ctypes.c_size_t()
        library("GetTensorBufferPackedSize", buffer, ctypes.byref(size))
        first.append((buffer, size.value))
    return first


def _seen(library: _Library, profiler: Any) -> list[tuple[str, str, int]]:
    """The operators of the pass that was watched, numbered in the order they ran."""
    count = ctypes.c_int()
    library("GetNumProfilerEvents", profiler, ctypes.byref(count))
    events = (_Event * count.value)()
    library("GetProfilerEvents", profiler, count, events)
    found = []
    for event in events:
        if event.type in (_OPERATOR, _DELEGATED):
            tag = event.tag.decode()
            kind = tag if event.type == _DELEGATED else f"{tag}, not by XNNPACK"
            found.append((f"{len(found)}/{tag}", kind, event.elapsed_us))
    return found


if __name__ == "__main__":
    watch(**json.loads(Path(sys.argv[1]).read_text()))
