"""Programs that were saved before keep their meaning; packages of the operators in them return what eager calls do."""

import pytest
import saved_programs
import torch
from saved_programs import PROGRAMS
from tolerances import unit_roundoff


def load(name):
    return torch.export.load(saved_programs.files(name)[0])


def check(name, function):
    operands, saved = torch.load(saved_programs.files(name)[1])
    got, now = function(*operands), PROGRAMS[name]()(*operands)
    for a, b, before in zip(got, now, saved, strict=True):
        assert a.dtype == b.dtype == before.dtype
        assert torch.equal(a, b)
        if a.itemsize == 1:  # a step
            torch.testing.assert_close(a.float(), before.float(), rtol=0.25, atol=1)
            continue
        torch.testing.assert_close(a, before, rtol=4 * unit_roundoff(a.dtype), atol=32 * unit_roundoff(a.dtype))


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("name", PROGRAMS)
def test_saved_program(name, decomposed):
    program = load(name)
    check(name, program.run_decompositions().module() if decomposed else program.module())


def test_the_operator_with_a_dtype_is_decomposed():
    program = load("operators")
    assert "dtype: torch.float32" in str(program.graph)
    assert "dtype" not in str(program.run_decompositions().graph)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("operators", "saved"),
        ("operators", "strict"),
        ("operators", "not strict"),
        ("later", "saved"),
        ("gated", "saved"),
        ("converted", "saved"),
        ("quantized", "saved"),
    ],
)
def test_package(name, source, tmp_path):
    """A package holds code for one torch and one machine, and calls the operators by name and schema, as a program."""
    if source == "saved":
        program = load(name)
    else:
        program = torch.export.export(PROGRAMS[name](), saved_programs.operands(), strict=source == "strict")
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "package.pt2"))
    check(name, torch._inductor.aoti_load_package(path))


# ---- what may change


def registered():
    """Those of tensors, which programs hold; the others tell of the library."""
    schemas = [schema for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("srmsnorm::")]
    return {schema.name: schema for schema in schemas if "Tensor" in str(schema)}


def only_gained_options(now, before):
    """Whether all that was written for the schema before means the same now: added are keyword arguments with defaults,
    behind all others."""
    added = now.arguments[len(before.arguments) :]
    return now.is_backward_compatible_with(before) and all(argument.kwarg_only for argument in added)


def test_schemas_only_gain_keyword_arguments_with_defaults():
    before = [torch._C.parse_schema(line) for line in saved_programs.SCHEMAS.read_text().splitlines()]
    now = registered()
    assert set(now) == {schema.name for schema in before}  # a new operator is another line
    for schema in before:
        assert only_gained_options(now[schema.name], schema), f"{now[schema.name]}\nwas\n{schema}"


@pytest.mark.parametrize(
    ("now", "allowed"),
    [
        ("f(Tensor a, float? b, *, float? eps=None, int k=1) -> Tensor", True),
        ("f(Tensor a, float? b, *, float? eps=None, int k) -> Tensor", False),
        ("f(Tensor a, float? b, int k=1, *, float? eps=None) -> Tensor", False),
        ("f(Tensor a, float? b, *, int k=1, float? eps=None) -> Tensor", False),
        ("f(Tensor a, *, float? eps=None) -> Tensor", False),
        ("f(Tensor a, float? c, *, float? eps=None) -> Tensor", False),
        ("f(Tensor a, float b, *, float? eps=None) -> Tensor", False),
        ("f(Tensor(a!) a, float? b, *, float? eps=None) -> Tensor", False),
        ("f(Tensor a, float? b, *, float? eps=1.0) -> Tensor", False),
        ("f(Tensor a, float? b, *, float? eps=None) -> (Tensor, Tensor)", False),
        ("g(Tensor a, float? b, *, float? eps=None) -> Tensor", False),
    ],
)
def test_what_only_gained_options_means(now, allowed):
    before = torch._C.parse_schema("f(Tensor a, float? b, *, float? eps=None) -> Tensor")
    assert only_gained_options(torch._C.parse_schema(now), before) == allowed


def test_without_keywords_an_option_is_refused():
    before, now = (torch._C.parse_schema(f"f(Tensor a{more}) -> Tensor") for more in ("", ", int k=1"))
    assert now.is_backward_compatible_with(before) and not only_gained_options(now, before)


def test_programs_hold_every_operator():
    """Those that were saved: each has to keep its name and what it means."""
    held = {
        node.target._schema.name
        for name in PROGRAMS
        for node in load(name).graph.nodes
        if "srmsnorm" in str(node.target)
    }
    assert held == set(registered())
