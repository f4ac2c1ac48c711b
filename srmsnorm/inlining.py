"""The choice between the operator and its formula under torch.compile."""

import warnings
from types import TracebackType
from typing import Literal

import torch

__all__ = ["inline_under_compile"]

Choice = bool | Literal["auto"]

# Read while tracing, and guarded: code compiled under another choice or table is not reused.
enabled: Choice = False
table = ""  # the name of the table of reasons under "auto" (choosing.py); "" where the operator is kept all the same
everywhere = ""  # of the table under True, which answers formula everywhere; "" where the formula is traced instead


def wanted() -> bool:
    """Of what is traced: on request, and for ONNX, which knows no operators of ours."""
    return enabled is True or torch.onnx.is_in_onnx_export()


def asked() -> str:
    """The table by which a call that is traced becomes operator or formula in its graph; "" where that is said at
    once: programs that are exported are for any compiler. In code that Dynamo of torch 2.11 traces, is_exporting() is
    always True."""
    name = table if enabled == "auto" else everywhere if enabled else ""
    return "" if name == "" or torch.compiler._is_exporting_flag else name


class inline_under_compile:
    """Lets ``torch.compile`` see the norm's formula instead of one operator, and fuse it with what is around it.

    By default compiled code calls the operator, and so gives the bits that eager code gives. With this, calls of
    :func:`srmsnorm.srms_norm`, :func:`srmsnorm.add_srms_norm`, :func:`srmsnorm.gated_srms_norm`, :func:`srmsnorm.rstd`,
    the quantised kin and of the modules that ``torch.compile`` or ``torch.export`` traces become the formula. The
    guarantees *same row, same bits* and *accuracy* are the compiler's then. Of :func:`srmsnorm.srms_norm`,
    :func:`srmsnorm.add_srms_norm` and their module under Inductor, backward has a formula of its own, and keeps what it
    keeps under ``"auto"``; everything else is a trace of :mod:`srmsnorm.reference`, and what is kept is the compiler's
    choice.
    The norm stays the operator where its formula's results would lie otherwise in memory (of a transposed input) or on
    a mesh. Inputs are checked all the same; eager calls and those in place stay as they are.

    A statement for the rest of the process, or a context around calls of the compiled function::

        srmsnorm.inline_under_compile()  # or (False)
        with srmsnorm.inline_under_compile():
            compiled(x)

    A compiled function that is called under another choice is compiled once more.

    ``"auto"`` leaves the choice to each call of :func:`srmsnorm.srms_norm`, :func:`srmsnorm.add_srms_norm` and their
    module: the operator stays in the graph through autograd, and is then replaced, forward and backward apart, by the
    formula with the same results where a table of measured reasons (``srmsnorm/choosing.py``) says so. Backward keeps y
    and rstd, or the input and rstd where a formula's y would be written for backward alone. Only Inductor asks the
    table; other backends, ``torch.export`` and the rest of the operators keep the operator. What became what, under
    either: the logger ``"srmsnorm"``, level INFO, and ``torch._dynamo.utils.counters["srmsnorm"]``.

    Args:
        enable: whether to inline, or ``"auto"``.

    Raises:
        ValueError: another value.
    """

    def __init__(self, enable: Choice = True) -> None:
        global enabled
        if not (type(enable) is bool or (type(enable) is str and enable == "auto")):
            raise ValueError(f"srmsnorm: enable must be True, False or 'auto', got {enable!r}")
        if enable is not False:
            _prepare()
        self._enable = enable
        self._before = [enabled]  # one for each entry; the first is made here
        self._entered = False
        enabled = enable

    def __enter__(self) -> None:
        global enabled
        if self._entered:
            self._before.append(enabled)
        elif enabled != self._enable:  # another statement came between
            self._before[0] = enabled
        self._entered = True
        enabled = self._enable

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global enabled
        enabled = self._before.pop()


def _prepare() -> None:
    """Once: nothing of it is imported, or known to PyTorch, unless asked for. Dynamo runs an import as it is."""
    from . import choosing  # noqa: F401


def warn_of(error: Exception) -> None:
    """Where PyTorch's internals have moved."""
    warnings.warn(
        'srmsnorm: inline_under_compile("auto") keeps the operator, and (True) leaves to the compiler what backward '
        f"keeps, as torch {torch.__version__} is not what it knows ({type(error).__name__}: {error})",
        stacklevel=2,
    )
