"""The choice between the operator and its formula under torch.compile."""

from types import TracebackType

import torch

__all__ = ["inline_under_compile"]

enabled = False  # read while tracing, and guarded: code compiled under the other choice is not reused


def wanted() -> bool:
    """Of what is traced: on request, and for ONNX, which knows no operators of ours."""
    return enabled or torch.onnx.is_in_onnx_export()


class inline_under_compile:
    """Lets ``torch.compile`` see the norm's formula instead of one operator, and fuse it with what is around it.

    By default compiled code calls the operator, and so gives the bits that eager code gives. With this, calls of
    :func:`srmsnorm.srms_norm`, :func:`srmsnorm.add_srms_norm`, :func:`srmsnorm.gated_srms_norm`, :func:`srmsnorm.rstd`,
    the quantised kin and of the modules that ``torch.compile`` or ``torch.export`` traces become
    :mod:`srmsnorm.reference`. The guarantees *same row, same bits* and *accuracy*, and what backward keeps, are the
    compiler's then. Inputs are checked all the same; eager calls and those in place stay as they are.

    A statement for the rest of the process, or a context around calls of the compiled function::

        srmsnorm.inline_under_compile()  # or (False)
        with srmsnorm.inline_under_compile():
            compiled(x)

    A compiled function that is called under the other choice is compiled once more.

    Args:
        enable: whether to inline.
    """

    def __init__(self, enable: bool = True) -> None:
        global enabled
        self._enable, self._before = enable, enabled
        enabled = enable

    def __enter__(self) -> None:
        global enabled
        if enabled != self._enable:  # used a second time
            self._before, enabled = enabled, self._enable

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global enabled
        enabled = self._before
