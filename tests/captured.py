"""What a captured call launches: the kernels of a CUDA graph, by the runtime's own account."""

import ctypes
from dataclasses import dataclass

import torch

KERNEL_NODE = 0


class _Params(ctypes.Structure):
    _fields_ = (
        ("function", ctypes.c_void_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("arguments", ctypes.c_void_p),
        ("extra", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Launch:
    blocks: int
    threads: tuple[int, int]
    shared: int


def captured(call, stream=None):
    """The graph of a call on a stream, and what the call returned: its results once the graph is replayed."""
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph, stream=stream):
        results = call()
    return graph, results


def launches(graph: torch.cuda.CUDAGraph) -> list[Launch]:
    runtime = ctypes.CDLL(f"libcudart.so.{torch.version.cuda.split('.')[0]}")  # the one that torch has loaded

    def ask(name, *arguments):
        error = getattr(runtime, name)(*arguments)
        assert error == 0, (name, error)

    raw, count = ctypes.c_void_p(graph.raw_cuda_graph()), ctypes.c_size_t()
    ask("cudaGraphGetNodes", raw, None, ctypes.byref(count))
    nodes = (ctypes.c_void_p * count.value)()
    ask("cudaGraphGetNodes", raw, nodes, ctypes.byref(count))
    found = []
    for node in map(ctypes.c_void_p, nodes):
        kind, params = ctypes.c_int(), _Params()
        ask("cudaGraphNodeGetType", node, ctypes.byref(kind))
        if kind.value == KERNEL_NODE:
            ask("cudaGraphKernelNodeGetParams", node, ctypes.byref(params))
            found.append(Launch(params.grid[0], (params.block[0], params.block[1]), params.shared))
    return found
