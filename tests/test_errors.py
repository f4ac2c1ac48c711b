"""Bad input gets an error that says what it got, before anything is written."""

import pytest
import samples
import torch
from samples import BFLOAT, DOUBLE, FLOAT, HALF

import srmsnorm

SHAPE = (3, 8)


def raises(*words, error=RuntimeError):
    """An error of ours, with all of the words, in any order."""
    return pytest.raises(error, match="(?is)^(?=srmsnorm)" + "".join(f"(?=.*{word})" for word in words))


def plain(device, dtype=FLOAT, shape=SHAPE):
    return samples.tensor(shape, dtype, device)


NAMES = {
    torch.int32: "int",
    torch.int64: "long",
    torch.uint8: "byte",
    torch.bool: "bool",
    torch.complex64: "complexfloat",
    torch.float8_e4m3fn: "float8_e4m3fn",
}


@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_dtype(device, dtype):
    bad = torch.ones(SHAPE, device=device).to(dtype)
    for call in (srmsnorm.srms_norm, torch.ops.srmsnorm.srms_norm):
        with raises(f"got {NAMES[dtype]}$", " float16", "bfloat16", "float32", "float64"):
            call(bad)
    with raises(f"got {NAMES[dtype]}$"):
        srmsnorm.add_srms_norm(bad, bad)
    with raises(f"got {NAMES[dtype]}$"):
        srmsnorm.add_srms_norm_(bad, bad)


def test_scalar(device):
    scalar = torch.tensor(1.0, device=device)
    with raises("at least one dimension", "scalar"):
        srmsnorm.srms_norm(scalar)
    with raises("scalar"):
        torch.ops.srmsnorm._srms_norm(scalar, None, None)
    with raises("scalar"):
        srmsnorm.add_srms_norm(scalar, scalar)
    with raises("scalar"):
        torch.func.vmap(srmsnorm.srms_norm)(plain(device)[:, 0])


def test_empty_last_dim(device):
    with raises("last dimension", r"\[3, 0\]"):
        srmsnorm.srms_norm(torch.empty(3, 0, device=device))


@pytest.mark.parametrize("shape", [(8,), (1, 8), (3, 1), (8, 3), (3, 9), (1, 3, 8), ()], ids=str)
def test_residual_shape(device, shape):
    """No broadcasting."""
    input, residual = plain(device), torch.ones(shape, device=device)
    got = r"\[" + ", ".join(map(str, shape)) + r"\]"
    for call in (srmsnorm.srms_norm, srmsnorm.add_srms_norm, srmsnorm.add_srms_norm_):
        with raises("residual", "shape", got, r"\[3, 8\]"):
            call(input, residual)


@pytest.mark.parametrize(
    ("dtype", "other"),
    [(FLOAT, HALF), (FLOAT, BFLOAT), (FLOAT, DOUBLE), (DOUBLE, FLOAT), (HALF, BFLOAT), (BFLOAT, HALF), (HALF, DOUBLE)],
    ids=str,
)
def test_residual_dtype(device, dtype, other):
    names = {HALF: "half", BFLOAT: "bfloat16", FLOAT: "float", DOUBLE: "double"}
    input, residual = plain(device, dtype), plain(device, other)
    before = input.clone(), residual.clone()
    for call in (srmsnorm.srms_norm, srmsnorm.add_srms_norm, srmsnorm.add_srms_norm_):
        with raises("residual", f"got {names[other]} beside {names[dtype]}\\b"):
            call(input, residual)
    assert torch.equal(input, before[0]) and torch.equal(residual, before[1])


def test_residual_device():
    for device, other in (("cpu", "meta"), ("meta", "cpu")):
        with raises("residual", "device", "cpu", "meta"):
            srmsnorm.srms_norm(torch.ones(SHAPE, device=device), torch.ones(SHAPE, device=other))


def test_residual_on_the_cpu(cuda):
    with raises("residual", "device", "cuda:0", "cpu"):
        srmsnorm.srms_norm(plain(cuda), plain("cpu"))
    with raises("residual", "device", "cuda:0", "cpu"):
        srmsnorm.add_srms_norm_(plain("cpu"), plain(cuda))


@pytest.mark.parametrize("eps", [-1e-6, -1.0, float("nan"), float("-inf")])
def test_eps(device, eps):
    input, residual = plain(device), plain(device)
    before = input.clone()
    for call in (srmsnorm.srms_norm, srmsnorm.add_srms_norm, srmsnorm.add_srms_norm_):
        with raises("eps", f"got {eps:g}$"):
            call(input, residual, eps=eps)
    assert torch.equal(input, before) and torch.equal(residual, before)


def test_errors_come_for_empty_tensors_too(device):
    empty = torch.empty(0, 8, device=device)
    with raises("eps"):
        srmsnorm.srms_norm(empty, eps=-1.0)
    with raises("residual"):
        srmsnorm.srms_norm(empty, torch.empty(0, 9, device=device))


# ---- in place


def in_place_fails(input, residual, *words):
    before = input.detach().clone(), residual.detach().clone()
    versions = input._version, residual._version
    with raises(*words):
        srmsnorm.add_srms_norm_(input, residual)
    assert torch.equal(input.detach(), before[0]) and torch.equal(residual.detach(), before[1])
    assert (input._version, residual._version) == versions


def test_in_place_requires_grad(device):
    input, residual = plain(device), plain(device)
    leaf = plain(device).requires_grad_()
    in_place_fails(leaf, residual, "requires grad", "add_srms_norm")
    in_place_fails(input, leaf, "requires grad")
    in_place_fails(leaf * 1, residual, "requires grad")
    in_place_fails(leaf.detach()[:2], (leaf * 1)[:2], "requires grad")
    with torch.no_grad():
        srmsnorm.add_srms_norm_(leaf, residual)


@pytest.mark.parametrize("which", [0, 1])
def test_in_place_carries_a_tangent(device, which):
    with torch.autograd.forward_ad.dual_level():
        operands = [plain(device), plain(device)]
        operands[which] = torch.autograd.forward_ad.make_dual(plain(device), plain(device))
        in_place_fails(*operands, "forward gradient")


def test_in_place_breaks_a_graph_that_needs_the_operand(device):
    """Both version counters move, so a backward that kept an operand finds out."""
    for position in (0, 1):
        weight = plain(device).requires_grad_()
        operands = [plain(device), plain(device)]
        loss = (weight * operands[position]).sum()
        srmsnorm.add_srms_norm_(*operands)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_in_place_expanded(device):
    row = plain(device, shape=(8,))
    in_place_fails(row.expand(3, 8), plain(device), "overlap")
    in_place_fails(plain(device), row.expand(3, 8), "overlap")


def test_in_place_same_tensor(device):
    input = plain(device)
    in_place_fails(input, input, "overlap")
    in_place_fails(input, input.view(3, 8), "overlap")


def test_in_place_shifted_views(device):
    base = plain(device, shape=(40,))
    in_place_fails(base[:24].view(3, 8), base[8:32].view(3, 8), "overlap")
    in_place_fails(base[:24].view(3, 8), base[16:].view(3, 8), "overlap")


def test_in_place_strided_views_that_overlap(device):
    base = plain(device, shape=(3, 20))
    in_place_fails(base[:, :8], base[:, 4:12], "overlap")


def test_in_place_rows_that_overlap(device):
    in_place_fails(plain(device, shape=(40,)).as_strided((3, 8), (4, 1)), plain(device), "overlap")


def test_in_place_strided_views_side_by_side(device):
    """No overlap, so no error."""
    base = plain(device, shape=(3, 16))
    want = srmsnorm.add_srms_norm(base[:, :8], base[:, 8:])
    srmsnorm.add_srms_norm_(base[:, :8], base[:, 8:])
    assert torch.equal(base, torch.cat(want, -1))


def test_in_place_last_stride(device):
    wide = plain(device, shape=(3, 16))
    in_place_fails(wide[:, ::2], plain(device), "stride", r"\[16, 2\]")
    in_place_fails(plain(device), wide[:, ::2], "stride", r"\[16, 2\]")


def test_in_place_of_inference_tensors(device):
    with torch.inference_mode():
        input, residual = plain(device), plain(device)
        want = srmsnorm.add_srms_norm(input, residual)
        srmsnorm.add_srms_norm_(input, residual)
        assert torch.equal(input, want[0]) and torch.equal(residual, want[1])


@pytest.mark.parametrize("which", [0, 1])
def test_in_place_of_inference_tensors_outside(device, which):
    """Refused before anything is written."""
    operands = [plain(device), plain(device)]
    with torch.inference_mode():
        operands[which] = plain(device)
    before = [t.clone() for t in operands]
    with pytest.raises(RuntimeError, match="srmsnorm: .*inference tensor"):
        srmsnorm.add_srms_norm_(*operands)
    assert all(torch.equal(a, b) for a, b in zip(operands, before, strict=True))


# ---- the backward operators


def test_backward_operands(device):
    backward, pair = torch.ops.srmsnorm._srms_norm_backward, torch.ops.srmsnorm._srms_norm_backward_pair
    y, g = plain(device), plain(device)
    rstd = torch.ones(3, device=device)
    with raises("grad_output", "shape", r"\[3, 9\]"):
        backward(plain(device, shape=(3, 9)), y, rstd)
    with raises("grad_output", "dtype", "half"):
        backward(g.half(), y, rstd)
    with raises("rstd", r"\[3, 1\]"):
        backward(g, y, rstd[:, None])
    with raises("rstd", "double"):
        backward(g, y, rstd.double())
    with raises("rstd", "half"):
        backward(g.half(), y.half(), rstd.half())
    with raises("grad_sum", "shape", r"\[8\]"):
        backward(g, y, rstd, g[0])
    with raises("grad_sum", "double"):
        backward(g, y, rstd, g.double())
    with raises("double"):
        backward(g, y, rstd, dtype=DOUBLE)
    with raises("half"):
        backward(g, y, rstd, dtype=HALF)
    with raises("16-bit", "float"):
        pair(g, y, rstd)
    with raises("grad_sum", "float32", "half"):
        pair(g.half(), y.half(), rstd, g.half())
    with raises("device", "meta"):
        backward(g, y, rstd.to("meta"))


# ---- a gate


def gated_calls(input, gate):
    """The function and every operator, on these operands."""
    ops, rstd = torch.ops.srmsnorm, torch.ones(3, device=input.device)
    yield lambda **options: srmsnorm.gated_srms_norm(input, gate, **options)
    yield lambda **options: ops._gated_srms_norm(input, gate, **options)
    for op in (ops._gated_srms_norm_backward, ops._gated_srms_norm_backward_input, ops._gated_srms_norm_backward_gate):
        yield lambda op=op, **options: op(input, input, gate, rstd, **options)


@pytest.mark.parametrize("activation", ["relu", "SiLU", "", "silu ", "none"])
def test_activation(device, activation):
    """Names the known ones."""
    for call in gated_calls(plain(device), plain(device)):
        message = f"srmsnorm: activation must be None, 'silu', 'swish' or 'sigmoid', got '{activation}'"
        with pytest.raises(RuntimeError, match=f"^{message}"):
            call(activation=activation)
    for bad in (1, True, torch.nn.functional.silu):
        with pytest.raises((TypeError, RuntimeError)):
            srmsnorm.gated_srms_norm(plain(device), plain(device), activation=bad)


def test_gate(device):
    for shape in ((8,), (1, 8), (3, 1), (3, 9), (1, 3, 8), ()):
        got = r"\[" + ", ".join(map(str, shape)) + r"\]"
        for call in gated_calls(plain(device), torch.ones(shape, device=device)):
            with raises("gate must have the shape of input", got, r"\[3, 8\]"):
                call()
    for other, name in ((HALF, "half"), (BFLOAT, "bfloat16"), (DOUBLE, "double"), (torch.int32, "int")):
        for call in gated_calls(plain(device), torch.ones(SHAPE, dtype=other, device=device)):
            with raises("gate", f"got {name} beside float"):
                call()
    for call in gated_calls(plain(device), plain(device).to("meta")):
        with raises("gate", "device", "meta"):
            call()
    with raises("last dimension", r"\[3, 0\]"):
        srmsnorm.gated_srms_norm(torch.empty(3, 0, device=device), torch.empty(3, 0, device=device))


def test_gated_backward_operands(device):
    backward, x, rstd = torch.ops.srmsnorm._gated_srms_norm_backward, plain(device), torch.ones(3, device=device)
    with raises("grad_output", "shape of input", r"\[3, 9\]"):
        backward(plain(device, shape=(3, 9)), x, x, rstd)
    with raises("grad_output", "dtype of input", "half"):
        backward(x.half(), x, x, rstd)
    with raises("rstd", r"\[3, 1\]"):
        backward(x, x, x, rstd[:, None])
    with raises("rstd", "double"):
        backward(x, x, x, rstd.double())
    with raises("rstd", "device", "meta"):
        backward(x, x, x, rstd.to("meta"))


# ---- the module and the build


def test_module_last_dim(device):
    with raises(r"SRMSNorm\(7\)", "7", r"\[3, 8\]"):
        srmsnorm.SRMSNorm(7)(plain(device))
    with raises(r"SRMSNorm\(8\)", r"\[\]"):
        srmsnorm.SRMSNorm(8)(torch.tensor(1.0, device=device))
    with raises(r"SRMSNormGated\(7\)", "7", r"\[3, 8\]"):
        srmsnorm.SRMSNormGated(7)(plain(device), plain(device))


def test_return_sum_without_residual(device):
    with raises("residual", "None", error=TypeError):
        srmsnorm.SRMSNorm(8)(plain(device), return_sum=True)


def test_not_a_tensor():
    with pytest.raises((TypeError, RuntimeError)):
        srmsnorm.srms_norm([1.0, 2.0])
    with pytest.raises(TypeError):
        srmsnorm.srms_norm(torch.ones(3), None, 1e-6)  # eps is for keywords only
    with pytest.raises(TypeError):
        srmsnorm.add_srms_norm(torch.ones(3))
    with pytest.raises(TypeError):
        srmsnorm.gated_srms_norm(torch.ones(3), torch.ones(3), "silu")


@pytest.mark.skipif(
    not torch.cuda.is_available() or srmsnorm.build_info()["cuda"] is not None,
    reason="needs a GPU and a build without CUDA",
)
def test_cuda_tensor_in_a_build_without_cuda():
    with raises("built without CUDA", "SRMSNORM_CUDA=1"):
        srmsnorm.srms_norm(torch.ones(3, device="cuda"))
