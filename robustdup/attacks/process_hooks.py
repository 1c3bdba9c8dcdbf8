"""What other code of the process is called by, wherever it is at work: kernels, reducers, monitors, the generator of torch.

Each is read and compared before and after a call of an attack, like the settings of `process_state`.
"""

from __future__ import annotations

import codecs
import copy
import copyreg
import decimal
import gc
import locale
import sys
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch.library import Library

# Operators that models and the referee compute with. Others are those of extensions, and of parts of torch (prims) that
# register theirs when they are imported, perhaps in the middle of a call.
_NUMERIC = "aten/"
_UNCALLED = ("Meta", "Python", "PythonTLSSnapshot")  # keys of shapes alone, which parts of torch register when imported
_KINDS = ("torch", "robustdup", "builtins", "numpy", "fractions")  # packages whose values travel between processes
# How values are pickled, sent to other processes, and copied.
_REDUCERS: tuple[dict[Any, Any], ...] = (
    copyreg.dispatch_table,
    ForkingPickler._extra_reducers,  # type: ignore[attr-defined]
    copy._deepcopy_dispatch,  # type: ignore[attr-defined]
    copy._copy_dispatch,  # type: ignore[attr-defined]
)
_ERRORS = ("strict", "replace", "ignore", "backslashreplace", "surrogateescape", "surrogatepass")
_TOOLS = range(6)  # of sys.monitoring
_KEYS = (
    "AutogradCPU", "AutogradCUDA", "AutogradOther", "ADInplaceOrView", "AutocastCPU", "AutocastCUDA", "Negative", "Conjugate",
    "Functionalize", "Python",
)  # fmt: skip
_C: Any = torch._C
_random: Any = torch.random
_monitoring: Any = getattr(sys, "monitoring", None)  # Python 3.12


def kernels() -> frozenset[str]:
    """Return the kernels that were registered in Python for operators of torch: 'aten/addmm/CPU'."""
    registered: set[str] = torch.library._impls  # type: ignore[attr-defined]
    return frozenset(name for name in registered if name.startswith(_NUMERIC) and not name.endswith(_UNCALLED))


def set_kernels(before: frozenset[str]) -> None:
    """Take away the kernels that were registered since."""
    added = kernels() - before
    for library in [thing for thing in gc.get_objects() if type(thing) is Library]:
        if not added.isdisjoint(library._op_impls):
            library._destroy()  # type: ignore[no-untyped-call]


def reducers() -> list[dict[Any, Any]]:
    """Return how values of torch, numpy, Python and robustdup are pickled, sent and copied."""
    return [{kind: way for kind, way in table.items() if _travels(kind)} for table in _REDUCERS]


def set_reducers(before: list[dict[Any, Any]]) -> None:
    """Let values be pickled, sent and copied as before."""
    for table, ways in zip(_REDUCERS, before, strict=True):
        for kind in [kind for kind in table if _travels(kind) and kind not in ways]:
            del table[kind]
        table.update(ways)


def _travels(kind: Any) -> bool:
    return str(getattr(kind, "__module__", "")).partition(".")[0] in _KINDS


def generators() -> list[Any]:
    """Return the generator that torch draws from by default, under both of its names."""
    return [torch.default_generator, _random.default_generator]


def set_generators(before: list[Any]) -> None:
    """Let torch draw from its own generator."""
    torch.default_generator, _random.default_generator = before


def monitors() -> list[Any]:
    """Return the tools that Python tells what code does."""
    return [_monitoring.get_tool(number) for number in _TOOLS] if _monitoring else []


def set_monitors(before: list[Any]) -> None:
    """Let go of the tools that were not there."""
    for number, tool in zip(_TOOLS, before, strict=False):
        if tool is None and _monitoring.get_tool(number) is not None:
            _monitoring.set_events(number, 0)
            for event in vars(_monitoring.events).values():
                if isinstance(event, int) and event.bit_count() == 1:
                    _monitoring.register_callback(number, event, None)
            _monitoring.free_tool_id(number)


def words_and_numbers() -> list[Any]:
    """Return how Python writes numbers and text: its locale, what handles errors of text, and the context of decimals."""
    decimals = decimal.getcontext()
    of_decimals = {name: getattr(decimals, name) for name in ("prec", "rounding", "Emin", "Emax")}
    errors = {name: codecs.lookup_error(name) for name in _ERRORS}
    return [locale.setlocale(locale.LC_ALL), errors, of_decimals, sys.get_int_max_str_digits()]


def set_words_and_numbers(before: list[Any]) -> None:
    """Write numbers and text as before."""
    locale.setlocale(locale.LC_ALL, before[0])
    for name, handler in before[1].items():
        codecs.register_error(name, handler)
    for name, value in before[2].items():
        setattr(decimal.getcontext(), name, value)
    sys.set_int_max_str_digits(before[3])


def dispatch_keys() -> list[tuple[bool, bool]]:
    """Return which kinds of kernels this thread leaves out, and takes besides: without autograd's no loss has a gradient."""
    return [
        (_C._dispatch_tls_is_dispatch_key_excluded(key), _C._dispatch_tls_is_dispatch_key_included(key))
        for key in _KEYS
    ]


def set_dispatch_keys(before: list[tuple[bool, bool]]) -> None:
    """Let this thread take the kernels of before."""
    for key, (excluded, included) in zip(_KEYS, before, strict=True):
        _C._dispatch_tls_set_dispatch_key_excluded(key, excluded)
        _C._dispatch_tls_set_dispatch_key_included(key, included)


HOOKS = (
    ("kinds of kernels", dispatch_keys, set_dispatch_keys),
    ("kernels of torch", kernels, set_kernels),
    ("how values are pickled and copied", reducers, set_reducers),
    ("the generator of torch", generators, set_generators),
    ("monitoring", monitors, set_monitors),
    ("how numbers and text are written", words_and_numbers, set_words_and_numbers),
)
