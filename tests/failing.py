"""An allocator that fails at the n-th allocation, and what must hold after it: nothing leaks, the operands are as they
were, and the next call is right."""

import ctypes
import gc
import shutil
import subprocess
import time

import pytest
import samples
import torch
from samples import FLOAT

import srmsnorm

# Without the headers of CUDA: device memory comes from functions that it is handed.
SOURCE = r"""
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace {
std::atomic<long> left{-1}, allocations{0}, live{0};  // left: allocations until one fails; negative: none does

void count() {
  allocations++;
  if (left >= 0 && left-- == 0) throw std::runtime_error("injected: out of memory");
}

struct Failing final : c10::Allocator {
  static void release(void* data) {
    if (data) live--;
    std::free(data);
  }
  c10::DataPtr allocate(size_t bytes) override {
    count();
    void* data = bytes ? std::aligned_alloc(64, (bytes + 63) / 64 * 64) : nullptr;
    if (data) live++;
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
} failing;

c10::Allocator* original = nullptr;
int (*device_malloc)(void**, size_t) = nullptr;
int (*device_free)(void*) = nullptr;
}  // namespace

extern "C" {
void install() {
  original = c10::GetCPUAllocator();
  c10::SetCPUAllocator(&failing, 255);
}
void uninstall() { c10::SetCPUAllocator(original, 255); }
void fail_at(long n) { left = n; }
long allocated() { return allocations; }
long alive() { return live; }

void use_device(void* malloc, void* free) {
  device_malloc = reinterpret_cast<int (*)(void**, size_t)>(malloc);
  device_free = reinterpret_cast<int (*)(void*)>(free);
}
void* allocate_on_device(ssize_t bytes, int, void*) {
  count();
  void* data = nullptr;
  if (device_malloc(&data, bytes)) throw std::runtime_error("out of device memory");
  live++;
  return data;
}
void free_on_device(void* data, ssize_t, int, void*) {
  if (data) live--;
  device_free(data);
}
}
"""


def compiled(folder):
    """The allocator's library, compiled for this torch."""
    if shutil.which("c++") is None:
        pytest.skip("needs a compiler")
    torch_folder = torch.__path__[0]
    source, library = folder / "failing.cpp", folder / "failing.so"
    source.write_text(SOURCE)
    includes = [f"-I{torch_folder}/include", f"-I{torch_folder}/include/torch/csrc/api/include"]
    links = [f"-L{torch_folder}/lib", "-lc10", f"-Wl,-rpath,{torch_folder}/lib"]
    command = ["c++", "-std=c++20", "-shared", "-fPIC", *includes, str(source), *links, "-o", str(library)]
    subprocess.run(command, check=True)
    return library


def load(library) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library))
    for name in ("allocated", "alive"):
        getattr(loaded, name).restype = ctypes.c_long
    loaded.fail_at.argtypes = [ctypes.c_long]
    loaded.use_device.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return loaded


# Scenarios: a name, the operands, and a call that may be repeated


def _leaves(tensors):
    return [t.detach().requires_grad_() for t in tensors]


def _grad(tensors, g, again=False):
    leaves = _leaves(tensors)
    outputs = srmsnorm.srms_norm(*leaves) if len(leaves) == 1 else srmsnorm.add_srms_norm(*leaves)
    outputs = [outputs] if len(leaves) == 1 else list(outputs)
    grads = torch.autograd.grad(outputs, leaves, g[: len(outputs)], create_graph=again)
    return torch.autograd.grad(grads, leaves, list(tensors)) if again else grads


def _tangent(tensors):
    with torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(t, t) for t in tensors]
        y = srmsnorm.srms_norm(*duals)
        return [t.clone() for t in torch.autograd.forward_ad.unpack_dual(y)]


def _vmapped(tensors):
    return torch.func.vmap(srmsnorm.srms_norm, in_dims=1, out_dims=1)(*tensors)


def scenarios(kind, device):
    shape = (6, 4, 24)
    layouts = (samples.contiguous, samples.gapped, samples.every_other)
    for layout in layouts:
        for name, args, options in samples.calls(kind, shape, device, layout=layout):
            op = getattr(torch.ops.srmsnorm, name)
            if name != "add_srms_norm_":
                yield f"{name} {layout.__name__}", args, lambda op=op, args=args, options=options: op(*args, **options)
    tensors = [t for t in samples.forward(kind, shape, device) if t is not None]
    g = [samples.grad_output(kind, shape, device), samples.grad_sum(kind, shape, device)]
    yield "backward", (*tensors, *g), lambda: _grad(tensors, g)
    yield "double backward", (*tensors, *g), lambda: _grad(tensors, g, again=True)
    yield "forward mode", tensors, lambda: _tangent(tensors)
    yield "vmap", tensors, lambda: _vmapped(tensors)
    if kind.residual is not None:
        yield "in place", tensors, lambda: _in_place(tensors)
        yield "in place, refused", tensors, lambda: _refused(tensors)


def _in_place(tensors):
    copies = [t.clone() for t in tensors]
    srmsnorm.add_srms_norm_(*copies)
    return copies


def _refused(tensors):
    with pytest.raises(RuntimeError, match="srmsnorm: "):
        srmsnorm.add_srms_norm_(tensors[0][..., ::2], tensors[1][..., ::2])
    return [t.clone() for t in tensors]


def flat(results):
    results = (results,) if isinstance(results, torch.Tensor) else results
    return [t for t in results if t is not None]


def same(got, want):
    return all(torch.equal(a, b) for a, b in zip(flat(got), flat(want), strict=True))


def check(allocator, kind, device):
    """Every scenario of the kind, with a failure at each of its allocations; returns how many were injected."""
    injected = 0
    for name, operands, call in scenarios(kind, device):
        operands = [t for t in operands if isinstance(t, torch.Tensor)]
        before = [t.clone() for t in operands]
        want = [t.clone() for t in flat(call())]
        gc.collect()
        alive = allocator.alive()
        count = _count(allocator, call)
        assert count > 0, name
        for n in range(count):
            allocator.fail_at(n)
            try:
                call()
            except RuntimeError as error:
                assert "injected" in str(error), (name, n, error)
            else:
                raise AssertionError(f"{name}: allocation {n} of {count} did not fail")
            finally:
                allocator.fail_at(-1)
            injected += 1
            assert settles_at(alive, allocator), (name, n)
            assert same(operands, before), (name, n)
            assert same(call(), want), (name, n)
            assert settles_at(alive, allocator), (name, n)
    return injected


def settles_at(alive, allocator, seconds=5):
    """Whether so many are alive, as soon as the engine's threads and Python's collector have let go of the others."""
    end = time.monotonic() + seconds
    while allocator.alive() != alive and time.monotonic() < end:
        gc.collect()
        time.sleep(0.01)
    return allocator.alive() == alive


def _count(allocator, call):
    start = allocator.allocated()
    call()
    return allocator.allocated() - start


def check_on_gpu(library):
    """In a process that has not touched the GPU yet."""
    allocator = load(library)
    runtime = ctypes.CDLL(f"libcudart.so.{torch.version.cuda.split('.')[0]}")
    address = [ctypes.cast(getattr(runtime, name), ctypes.c_void_p) for name in ("cudaMalloc", "cudaFree")]
    allocator.use_device(*address)
    pluggable = torch.cuda.memory.CUDAPluggableAllocator(str(library), "allocate_on_device", "free_on_device")
    torch.cuda.memory.change_current_allocator(pluggable)
    for kind in (samples.Kind(FLOAT, FLOAT), samples.Kind(samples.BFLOAT, FLOAT), samples.Kind(samples.HALF)):
        assert check(allocator, kind, "cuda") > 20
