"""The Python face: what it takes, what it says, and that it knows torch's objects as torch's headers do."""

import shutil
import subprocess
import sysconfig

import fresh
import pytest
import torch
from torch.utils.cpp_extension import include_paths

import srmsnorm
from srmsnorm._library import _C

LAYOUT = """
#include <torch/csrc/Dtype.h>
#include <torch/csrc/autograd/python_variable.h>
#define Py_LIMITED_API 0x030A0000
#include "{root}/csrc/torch_python.h"
static_assert(offsetof(THPVariable, cdata) == offsetof(srmsnorm::TensorObject, tensor));
static_assert(std::is_same_v<decltype(THPVariable::cdata), at::Tensor>);
static_assert(offsetof(THPDtype, scalar_type) == offsetof(srmsnorm::DtypeObject, dtype));
static_assert(std::is_same_v<decltype(THPDtype::scalar_type), at::ScalarType>);
auto translate = static_cast<void (*)(const std::exception_ptr&)>(&torch::translate_exception_to_python);
"""


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
@pytest.mark.skipif(not (fresh.ROOT / "csrc").exists(), reason="needs the source tree")
def test_torch_objects(tmp_path):
    (tmp_path / "layout.cpp").write_text(LAYOUT.format(root=fresh.ROOT))
    includes = [f"-I{path}" for path in [*include_paths(), sysconfig.get_path("include")]]
    command = ["c++", "-std=c++20", "-fsyntax-only", "-Wno-invalid-offsetof", *includes, tmp_path / "layout.cpp"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Broken:
    def __float__(self):
        raise KeyError("own")

    __index__ = __bool__ = __float__


X = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("srms_norm", ([1.0], None, None, None), "argument 1 of srms_norm must be a Tensor, got list"),
        ("srms_norm", (X, 3, None, None), "argument 2 of srms_norm must be a Tensor or None, got int"),
        ("srms_norm", (X, None, "1", None), "argument 3 of srms_norm must be a number or None, got str"),
        (
            "srms_norm_quantized",
            (X, None, [1.0], "int8", None, False, None, None),
            "argument 3 of srms_norm_quantized must be a Tensor, a number, a str or None, got list",
        ),
        ("srms_norm", (X, None), r"srms_norm takes 4 arguments, got 2"),
        ("add_srms_norm", (X, None, None, None), "argument 2 of add_srms_norm must be a Tensor, got NoneType"),
        (
            "gated_srms_norm",
            (X, X, b"silu", True, None),
            "argument 3 of gated_srms_norm must be a str or None, got bytes",
        ),
        ("gated_srms_norm", (X, X, None, "yes", None), "argument 4 of gated_srms_norm must be a bool, got str"),
        ("launch_plan", (b"rstd", 8, X.dtype), "launch_plan takes 12 arguments, got 3"),
        (
            "launch_plan",
            ("rstd", 8, X.dtype, *[None] * 3, *[True] * 3, None, None, [1]),
            "ints of 64 bits or None, got list",
        ),
        (
            "launch_plan",
            ("rstd", 8, X.dtype, *[None] * 3, *[True] * 3, None, None, (1, "2")),
            "ints of 64 bits or None",
        ),
        ("_launch_plan", (1.5, X.dtype, None, False, False, True, True, 1), "must be an int of 64 bits, got float"),
        ("_launch_plan", (8, float, None, False, False, True, True, 1), "must be a torch.dtype, got type"),
        ("_launch_plan", (8, X.dtype, None, False, False, True, True, 2**31), "must be an int of 32 bits, got int"),
    ],
)
def test_what_it_does_not_take(name, arguments, message):
    with pytest.raises(TypeError, match=f"^srmsnorm: .*{message}"):
        getattr(_C, name)(*arguments)


def test_numbers():
    """Whatever Python takes for a number; what its conversion raises comes out as it is."""
    wanted = _C.srms_norm(X, None, 1.0, None)
    for eps in (1, True, torch.tensor(1.0), torch.tensor([1.0]).numpy()[0]):
        assert torch.equal(_C.srms_norm(X, None, eps, None), wanted), eps
    gated = _C.gated_srms_norm(X, X, "silu", False, 1.0)
    assert torch.equal(_C.gated_srms_norm(X, X, "silu", 0, 1.0), gated)
    for call in (
        lambda: _C.srms_norm(X, None, Broken(), None),
        lambda: _C.gated_srms_norm(X, X, None, Broken(), None),
        lambda: srmsnorm.launch_plan(Broken(), X.dtype),
    ):
        with pytest.raises(KeyError, match="own"):
            call()


def test_results():
    assert isinstance(_C.srms_norm(torch.nn.Parameter(X), None, None, None), torch.Tensor)
    both = _C.add_srms_norm(X, X, None, None)
    assert type(both) is tuple and len(both) == 2
    assert _C.add_srms_norm_(X.clone(), X.clone(), None) is None


def test_keeps_no_reference():
    import sys

    x, eps = torch.ones(4, 8), 1.25e-3
    objects = (x, eps, None)
    before = [sys.getrefcount(o) for o in objects[:2]]
    for _ in range(100):
        _C.srms_norm(x, None, eps, None)
        _C.add_srms_norm(x, x, eps, None)
        with pytest.raises(TypeError):
            _C.srms_norm(x, "residual", eps, None)
    assert [sys.getrefcount(o) for o in objects[:2]] == before
