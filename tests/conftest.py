"""Fixtures: the devices every test runs on, and memory that is poisoned before an operator gets it."""

import pytest
import torch

import srmsnorm

pytest.register_assert_rewrite("tolerances")  # an assertion of a helper says what it compared, as one of a test does

WITH_CUDA = torch.cuda.is_available() and srmsnorm.build_info()["cuda"] is not None
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: runs on a CUDA GPU (select with -m gpu)")
    config.addinivalue_line("markers", "sanitizer: every kernel family once, small enough for compute-sanitizer")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not WITH_CUDA:
        pytest.skip("needs a GPU and a build with CUDA")


@pytest.fixture(params=["cpu", CUDA])
def device(request):
    """The CPU everywhere, and a GPU where there is one."""
    return request.param


@pytest.fixture(params=[CUDA])
def cuda(request):
    """For tests of what only a GPU has: streams, graphs, launches."""
    return request.param


@pytest.fixture(autouse=True)
def poisoned_memory():
    """at::empty and its kin return NaN, those that the operators call as well (test_forward proves it)."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def plain_memory(poisoned_memory):
    """No poison, where a test counts operators, allocations or launches."""
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def fresh_dynamo(plain_memory):
    """Nothing compiled before, and no poison in what is compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def table():
    """Of reasons, of inline_under_compile("auto"), nothing counted yet: another one that a test uses ends with it."""
    from srmsnorm import choosing  # not before it is asked for: see test_lazy.py

    torch._dynamo.utils.counters.clear()
    choosing.use(choosing.TABLE)
    yield choosing.use
    choosing.use(choosing.TABLE)


@pytest.fixture(autouse=True)
def no_slow_vmap():
    """An operator without a batching rule is looped over row by row, with no more than a warning: here, an error."""
    torch._C._functorch._set_vmap_fallback_enabled(False)
    yield
    torch._C._functorch._set_vmap_fallback_enabled(True)
