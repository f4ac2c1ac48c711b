"""What test_distributed reports: named checks that all processes of a gloo group run together, on the CPU.

One launcher imports torch once and forks the processes of each world, each of which runs every check of that world; so
a world costs seconds, not minutes. ``python distributed_checks.py 2 outcomes.json`` runs one by hand.
"""

import contextlib
import datetime
import importlib
import json
import multiprocessing
import os
import pathlib
import sys
import tempfile
import traceback

import torch
import torch.distributed as dist
from distributed_model import PLAN, Stack
from samples import KINDS, WITH_RESIDUAL, Kind
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import PrepareModuleInput, SequenceParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

import srmsnorm

DIM = 48  # rows of all dtypes begin at multiples of 16 bytes, in a shard as in the whole: same rows, same bits
GATHER, REDUCE, SCATTER = "all_gather_into_tensor", "all_reduce", "reduce_scatter_tensor"
ops = torch.ops.srmsnorm

LIMIT = 120  # seconds for all checks of a world; they take about ten

CHECKS = {}


def check(*worlds):
    def register(function):
        CHECKS[function.__name__] = (function, worlds)
        return function

    return register


def names(world):
    return [name for name, (_, worlds) in CHECKS.items() if world in worlds]


# ---- what the checks share


@contextlib.contextmanager
def collectives(*expected):
    """Exactly these run inside."""
    with CommDebugMode() as mode:
        yield
    counted = [packet.__name__ for packet, count in mode.get_comm_counts().items() for _ in range(count)]
    assert sorted(counted) == sorted(expected), f"expected the collectives {sorted(expected)}, got {sorted(counted)}"


def flat_mesh():
    return init_device_mesh("cpu", (dist.get_world_size(),))


def tensor(*shape, dtype=torch.float64, seed=0):
    """The same on every process."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def pieces(mesh, *shape, reduce_op="sum", dtype=torch.float64, seed=0):
    """A partial DTensor, another tensor on each process."""
    return DTensor.from_local(
        tensor(*shape, dtype=dtype, seed=1000 * seed + dist.get_rank()), mesh, [Partial(reduce_op)] * mesh.ndim
    )


def operands(shape, kind):
    """input, residual (or None), gradient of y, gradient of the sum (or None)."""
    dtypes = [kind.dtype, kind.residual, kind.dtype, kind.residual]
    return [dtype and tensor(*shape, dtype=dtype, seed=seed) for seed, dtype in enumerate(dtypes)]


def results(input, residual, grad_output, grad_sum):
    """By name, everything that one norm with these operands computes: forward, backward, without a gradient."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in (input, residual)]
    named = {}
    if residual is None:
        named["y"] = srmsnorm.srms_norm(leaves[0])
        named["y"].backward(grad_output)
    else:
        named["y"], named["sum"] = srmsnorm.add_srms_norm(*leaves)
        torch.autograd.backward((named["y"], named["sum"]), (grad_output, grad_sum))
        with torch.no_grad():
            named["inference y"], named["inference sum"] = srmsnorm.add_srms_norm(*leaves)
        named["residual.grad"] = leaves[1].grad
    with torch.no_grad():
        named["unwritten sum's y"] = srmsnorm.srms_norm(*leaves)
    return {**named, "input.grad": leaves[0].grad}


def assert_is(actual, placements, whole, what="result"):
    """A DTensor of these placements whose whole has these bits; of this dtype also for the operators that follow."""
    assert actual.placements == tuple(placements), f"{what}: {actual.placements}, expected {tuple(placements)}"
    dtypes = {actual.dtype, actual.to_local().dtype, actual._spec.tensor_meta.dtype}
    assert dtypes == {whole.dtype}, f"{what}: {dtypes}, expected {whole.dtype}"
    assert torch.equal(actual.full_tensor(), whole), f"{what}: not what one process computes"


def assert_runs_locally(mesh, placements, shape, kind):
    whole = operands(shape, kind)
    distributed = [None if t is None else distribute_tensor(t, mesh, placements) for t in whole]
    expected = results(*whole)
    with collectives():
        actual = results(*distributed)
    for name, value in expected.items():
        assert_is(actual[name], placements, value, f"{kind} {shape} {placements}: {name}")


def assert_close(actual, expected, what):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12, msg=lambda text: f"{what}: {text}")


# ---- one norm


@check(2, 4)
def nothing_registered_before_the_import():
    """First of all: the processes have imported srmsnorm alone."""
    x = distribute_tensor(tensor(4, DIM), flat_mesh(), [Shard(0)])
    try:
        srmsnorm.srms_norm(x)
    except NotImplementedError as error:
        assert "sharding strategy" in str(error)
    else:
        raise AssertionError("DTensor knew the operator")
    importlib.import_module("srmsnorm.distributed")
    assert srmsnorm.srms_norm(x).placements == (Shard(0),)


@check(2)
def compiled():
    """Early: in torch 2.15, some eager calls on DTensors make a later compilation fail, also of native operators."""

    def step(x, residual):
        y, total = srmsnorm.add_srms_norm(x, residual)
        return y * 2, total

    mesh = flat_mesh()
    x, residual, g, gs = operands((4, DIM), Kind(torch.bfloat16, torch.float32))
    found = []
    for place, run in (
        (lambda t: t, step),
        (lambda t: distribute_tensor(t, mesh, [Shard(0)]), torch.compile(step, backend="aot_eager", fullgraph=True)),
    ):
        leaves = [place(t.clone()).requires_grad_() for t in (x, residual)]
        outputs = run(*leaves)
        torch.autograd.backward(outputs, (place(g), place(gs)))
        found.append([*outputs, *(leaf.grad for leaf in leaves)])
    for whole, actual in zip(*found, strict=True):
        assert_is(actual, [Shard(0)], whole)


@check(2, 4)
def leading_shards_run_locally():
    for kind in KINDS:
        assert_runs_locally(flat_mesh(), [Shard(0)], (8, 4, DIM), kind)
        assert_runs_locally(flat_mesh(), [Shard(1)], (8, 4, DIM), kind)


@check(2, 4)
def uneven_shards_run_locally():
    """Rows that the processes do not divide, and fewer rows than processes."""
    for rows in (7, 5, 1):
        for kind in (Kind(torch.float32), Kind(torch.bfloat16, torch.float32)):
            assert_runs_locally(flat_mesh(), [Shard(0)], (rows, DIM), kind)
            assert_runs_locally(flat_mesh(), [Shard(1)], (2, rows, DIM), kind)


@check(2, 4)
def replicas_stay_replicas():
    for kind in KINDS:
        assert_runs_locally(flat_mesh(), [Replicate()], (6, DIM), kind)


@check(4)
def two_mesh_dimensions():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    for placements in (
        [Shard(0), Shard(1)],
        [Shard(1), Shard(0)],
        [Shard(0), Shard(0)],
        [Shard(0), Replicate()],
        [Replicate(), Shard(1)],
    ):
        assert_runs_locally(mesh, placements, (6, 5, DIM), Kind(torch.bfloat16, torch.float32))


@check(4)
def two_mesh_dimensions_flattened():
    """Batch and sequence, both sharded and then viewed as one dimension: a strided shard."""
    mesh = init_device_mesh("cpu", (2, 2))
    placements = [Shard(0), _StridedShard(0, split_factor=2)]
    local = tensor(6, DIM, seed=dist.get_rank())
    flat = DTensor.from_local(local, mesh, placements, shape=(24, DIM), stride=(DIM, 1))
    with collectives():
        y, total = srmsnorm.add_srms_norm(flat, flat)
    for actual, expected in zip((y, total), srmsnorm.add_srms_norm(local, local), strict=True):
        assert actual.placements == tuple(placements)
        assert actual.shape == (24, DIM)
        assert torch.equal(actual.to_local(), expected)


@check(4)
def two_mesh_dimensions_with_the_last_sharded():
    """Gathered along its own mesh dimension only."""
    mesh = init_device_mesh("cpu", (2, 2))
    x = tensor(4, 6, DIM)
    sharded = distribute_tensor(x, mesh, [Shard(0), Shard(2)])
    with collectives(GATHER):
        y = srmsnorm.srms_norm(sharded)
    assert_is(y, [Shard(0), Replicate()], srmsnorm.srms_norm(x))


@check(2, 4)
def a_shard_of_the_last_dimension_is_gathered_once():
    mesh = flat_mesh()
    for dim in (DIM, DIM + 1):
        whole = operands((6, dim), Kind(torch.bfloat16, torch.float32))
        x, residual, grad_output, grad_sum = (distribute_tensor(t, mesh, [Shard(1)]) for t in whole)
        expected = results(*whole)
        x.requires_grad_()
        with collectives(GATHER):
            y = srmsnorm.srms_norm(x)
        with collectives(GATHER):
            y.backward(grad_output)
        assert_is(x.grad, [Replicate()], results(whole[0], None, whole[2], None)["input.grad"])
        with collectives(GATHER, GATHER), torch.no_grad():
            y, total = srmsnorm.add_srms_norm(x, residual)
        assert_is(y, [Replicate()], expected["y"])
        assert_is(total, [Replicate()], expected["sum"])


@check(2, 4)
def a_partial_input_is_reduced():
    """The norm is not linear. Beside a sharded residual, the reduced input is sharded like it."""
    mesh = flat_mesh()
    x, residual = pieces(mesh, 8, DIM), tensor(8, DIM, seed=7)
    expected_y, expected_total = srmsnorm.add_srms_norm(x.full_tensor(), residual)
    for placement, collective in ((Replicate(), REDUCE), (Shard(0), SCATTER)):
        stream = distribute_tensor(residual, mesh, [placement])
        with collectives(collective):
            y, total = srmsnorm.add_srms_norm(x, stream)
        assert y.placements == total.placements == (placement,)
        assert_close(y.full_tensor(), expected_y, f"y beside {placement}")
        assert_close(total.full_tensor(), expected_total, f"the sum beside {placement}")


@check(2, 4)
def a_replica_beside_a_shard_is_cut():
    mesh = flat_mesh()
    x, residual = tensor(7, DIM), tensor(7, DIM, seed=1)
    expected = srmsnorm.srms_norm(x, residual)
    for placements in ((Replicate(), Shard(0)), (Shard(0), Replicate())):
        pair = [distribute_tensor(t, mesh, [p]) for t, p in zip((x, residual), placements, strict=True)]
        with collectives():
            y = srmsnorm.srms_norm(*pair)
        assert_is(y, [Shard(0)], expected)


# ---- backward


@check(2, 4)
def placements_of_gradients():
    """(grad_output, output and rstd, grad_sum) -> (gradient, collectives)."""
    mesh, shape = flat_mesh(), (8, 4, DIM)
    R, P, A, M = Replicate(), Partial(), Partial("avg"), Partial("max")
    S, T, LAST = Shard(0), Shard(1), Shard(2)
    y, rstd = ops._srms_norm(tensor(*shape, seed=9), None, 1e-6)
    for (g, kept, gs), gradient, expected in (
        ((P, R, None), P, []),
        ((P, R, P), P, []),
        ((P, R, R), P, []),
        ((R, R, P), P, []),
        ((A, R, A), A, []),
        ((P, R, A), R, [REDUCE, REDUCE]),
        ((R, R, R), R, []),
        ((S, R, None), S, []),
        ((R, S, R), S, []),
        ((S, S, R), S, []),
        ((P, S, None), S, [SCATTER]),
        ((P, S, P), S, [SCATTER, SCATTER]),
        ((P, R, S), S, [SCATTER]),
        ((T, S, T), S, [GATHER, GATHER]),
        ((M, R, None), R, [REDUCE]),
        ((M, R, P), R, [REDUCE, REDUCE]),
        ((LAST, R, None), R, [GATHER]),
    ):
        what = f"grad_output {g}, output {kept}, grad_sum {gs}"
        placed = []
        for seed, p in enumerate((g, gs), 1):
            if p in (P, A, M):
                placed.append(pieces(mesh, *shape, reduce_op=p.reduce_op, seed=seed))
            else:
                placed.append(p and distribute_tensor(tensor(*shape, seed=seed), mesh, [p]))
        whole = [t if t is None else t.full_tensor() for t in placed]
        saved = [distribute_tensor(t, mesh, [kept]) for t in (y, rstd)]
        with collectives(*expected):
            actual = ops._srms_norm_backward(placed[0], *saved, placed[1])
        assert actual.placements == (gradient,), f"{what}: {actual.placements}, expected {gradient}"
        assert_close(actual.full_tensor(), ops._srms_norm_backward(whole[0], y, rstd, whole[1]), what)


@check(2, 4)
def partial_gradients_of_two_dtypes():
    mesh, shape = flat_mesh(), (4, DIM)
    y, rstd = ops._srms_norm(tensor(*shape, dtype=torch.bfloat16), None, 1e-6)
    g = pieces(mesh, *shape, dtype=torch.bfloat16, seed=1)
    gs = pieces(mesh, *shape, dtype=torch.float32, seed=2)
    saved = [distribute_tensor(t, mesh, [Replicate()]) for t in (y, rstd)]
    with collectives():
        gradients = ops._srms_norm_backward_pair(g, *saved, gs)
    for actual, local in zip(
        gradients, ops._srms_norm_backward_pair(g.to_local(), y, rstd, gs.to_local()), strict=True
    ):
        assert actual.placements == (Partial(),)
        assert actual.dtype == local.dtype
        assert torch.equal(actual.to_local(), local)


@check(2, 4)
def a_partial_gradient_through_autograd():
    """A column-sharded product leaves its input a partial gradient, which passes the norm as it is."""
    mesh = flat_mesh()
    x, weight = tensor(5, DIM), tensor(DIM, 8, seed=1)
    whole = x.clone().requires_grad_()
    (srmsnorm.srms_norm(whole) @ weight).square().sum().backward()
    X = distribute_tensor(x, mesh, [Replicate()]).requires_grad_()
    W = distribute_tensor(weight, mesh, [Shard(1)])
    with collectives():
        (srmsnorm.srms_norm(X) @ W).square().sum().backward()
    assert X.grad.placements == (Partial(),)
    assert_close(X.grad.full_tensor(), whole.grad, "input.grad")


@check(2, 4)
def only_some_operands_need_a_gradient():
    """Each asks for another backward operator or dtype; placements and shapes are the same."""
    mesh = flat_mesh()
    for kind in WITH_RESIDUAL:
        x, residual, g, gs = operands((4, DIM), kind)
        for grad_sum in (gs, None, gs):
            for wants in ((True, False), (False, True), (True, True), (True, False)):
                grads = []
                for place in (lambda t: t, lambda t: distribute_tensor(t, mesh, [Shard(0)])):
                    leaves = [
                        place(t.clone()).requires_grad_(want) for t, want in zip((x, residual), wants, strict=True)
                    ]
                    y, total = srmsnorm.add_srms_norm(*leaves)
                    pairs = [(y, place(g))] if grad_sum is None else [(y, place(g)), (total, place(grad_sum))]
                    torch.autograd.backward(*zip(*pairs, strict=True))
                    grads.append([leaf.grad for leaf in leaves])
                for whole, actual, want in zip(*grads, wants, strict=True):
                    assert (actual is not None) == want
                    if want:
                        assert_is(actual, [Shard(0)], whole, f"{kind}, gradients of {wants}")


@check(2, 4)
def the_dtype_of_a_gradient_is_not_cached():
    """DTensor keeps an operator's result types by its operands' types alone. In inference mode there is no autograd key
    at which the operator with a dtype would become the one for it."""
    shape = (4, DIM)
    y, rstd = ops._srms_norm(tensor(*shape, dtype=torch.bfloat16), None, 1e-6)
    g, gs = tensor(*shape, dtype=torch.bfloat16, seed=1), tensor(*shape, dtype=torch.float32, seed=2)
    mesh = flat_mesh()
    G, Y, RSTD, GS = (distribute_tensor(t, mesh, [Shard(0)]) for t in (g, y, rstd, gs))
    for inference in (False, True, False):
        for dtype in (torch.bfloat16, torch.float32, None, torch.float32, torch.bfloat16):
            for whole, distributed in ((None, None), (gs, GS), (None, None)):
                expected = ops._srms_norm_backward(g, y, rstd, whole, dtype=dtype)
                with torch.inference_mode(inference):
                    actual = ops._srms_norm_backward(G, Y, RSTD, distributed, dtype=dtype)
                assert_is(actual, [Shard(0)], expected)


@check(2, 4)
def eps_is_not_cached():
    x = tensor(4, DIM) / 100
    X = distribute_tensor(x, flat_mesh(), [Shard(0)])
    for eps in (1e-6, 1.0, None, 0.0):
        assert_is(srmsnorm.srms_norm(X, eps=eps), [Shard(0)], srmsnorm.srms_norm(x, eps=eps))


@check(2, 4)
def double_backward():
    mesh = flat_mesh()
    wholes = [tensor(5, DIM, seed=seed) for seed in range(3)]
    found = []
    for place in (lambda t: t, lambda t: distribute_tensor(t, mesh, [Shard(0)])):
        x, g, v = (place(t) for t in wholes)
        x.requires_grad_()
        g.requires_grad_()
        with collectives():
            (first,) = torch.autograd.grad(srmsnorm.srms_norm(x, eps=1e-3), x, g, create_graph=True)
            found.append(torch.autograd.grad(first, (x, g), v))
    for whole, actual, what in zip(*found, ("x", "g"), strict=True):
        assert actual.placements == (Shard(0),)
        assert_close(actual.full_tensor(), whole, f"second derivative by {what}")


# ---- in place, errors


@check(2, 4)
def in_place_writes_the_shards():
    mesh = flat_mesh()
    for kind in WITH_RESIDUAL:
        for rows in (8, 5, 1):
            for placement in (Shard(0), Replicate()):
                x, residual = operands((rows, DIM), kind)[:2]
                y, total = srmsnorm.add_srms_norm(x, residual)
                X, stream = (distribute_tensor(t, mesh, [placement]) for t in (x, residual))
                memory = X.to_local().data_ptr(), stream.to_local().data_ptr()
                with collectives():
                    srmsnorm.add_srms_norm_(X, stream)
                assert memory == (X.to_local().data_ptr(), stream.to_local().data_ptr())
                assert_is(X, [placement], y)
                assert_is(stream, [placement], total)


@check(2, 4)
def in_place_refuses_what_it_would_redistribute():
    mesh, shape = flat_mesh(), (8, 4, DIM)
    for placements in (
        (Shard(0), Replicate()),
        (Replicate(), Shard(0)),
        (Shard(0), Shard(1)),
        (Shard(2), Shard(2)),
        (Partial(), Partial()),
        (Replicate(), Partial()),
    ):
        pair = [
            pieces(mesh, *shape, seed=seed) if p == Partial() else distribute_tensor(tensor(*shape), mesh, [p])
            for seed, p in enumerate(placements)
        ]
        before = [t.to_local().clone() for t in pair]
        with collectives():
            try:
                srmsnorm.add_srms_norm_(*pair)
            except RuntimeError as error:
                assert "redistributed copy" in str(error), error
            else:
                raise AssertionError(f"{placements}: no error")
        assert all(torch.equal(t.to_local(), b) for t, b in zip(pair, before, strict=True)), f"{placements}: written"


@check(2, 4)
def errors_are_the_operators_own():
    mesh = flat_mesh()
    x = distribute_tensor(tensor(4, DIM), mesh, [Shard(0)])
    for residual, message in (
        (tensor(1, DIM), "must have the shape of input"),
        (tensor(4, DIM, dtype=torch.bfloat16), "must have the dtype of input"),
    ):
        try:
            srmsnorm.srms_norm(x, distribute_tensor(residual, mesh, [Shard(0)]))
        except RuntimeError as error:
            assert message in str(error), error
        else:
            raise AssertionError(f"no error: {message}")


# ---- models


def train(model, batches, place=lambda batch: batch):
    """The parameters after a step for each batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for batch in batches:
        model(place(batch)).sub(1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: getattr(p, "full_tensor", lambda p=p: p)() for name, p in model.named_parameters()}


def assert_trains_alike(parallel, place):
    model, batches = model_and_batches()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    alone, together = train(model, batches), train(parallel, batches, place)
    for name, value in alone.items():
        assert (value - start[name]).abs().max() > 1e-4, f"{name} has not moved"
        assert_close(together[name], value, name)


def model_and_batches():
    torch.manual_seed(0)
    return Stack(DIM, heads=4, depth=2).double(), [tensor(4, 8, DIM, seed=seed) for seed in range(3)]


@check(2, 4)
def module_styles():
    """SequenceParallel for norm(x); PrepareModuleInput where there is a residual, which that style would drop."""
    mesh = flat_mesh()
    x, residual = tensor(2, 8, DIM), tensor(2, 8, DIM, seed=1)
    shard_x, shard_residual = (distribute_tensor(t, mesh, [Shard(1)]).to_local() for t in (x, residual))
    alone = parallelize_module(srmsnorm.SRMSNorm(DIM), mesh, SequenceParallel())
    layouts = (Shard(1), Shard(1))
    paired = parallelize_module(
        srmsnorm.SRMSNorm(DIM), mesh, PrepareModuleInput(input_layouts=layouts, desired_input_layouts=layouts)
    )
    with collectives():
        y, (z, total) = alone(shard_x), paired(shard_x, shard_residual, return_sum=True)
    assert_is(y, [Shard(1)], srmsnorm.srms_norm(x, eps=1e-6))
    expected_z, expected_total = srmsnorm.add_srms_norm(x, residual, eps=1e-6)
    assert_is(z, [Shard(1)], expected_z)
    assert_is(total, [Shard(1)], expected_total)


@check(2, 4)
def tensor_and_sequence_parallel_block():
    """Each half of a block gathers once and scatters once; the norms between them add nothing."""
    (model, batches), (parallel, _) = model_and_batches(), model_and_batches()
    mesh = flat_mesh()
    for block in parallel.blocks:
        parallelize_module(block, mesh, PLAN)

    def place(batch):
        return distribute_tensor(batch, mesh, [Shard(1)])

    sharded = place(batches[0])
    with collectives(*[GATHER, SCATTER] * 2 * len(parallel.blocks)):
        output = parallel(sharded)
    assert output.placements == (Shard(1),)
    assert_close(output.full_tensor(), model(batches[0]), "output")
    assert_trains_alike(parallel, place)


@check(2, 4)
def fsdp():
    """Data parallel, parameters sharded by fully_shard: each process has its part of the batch."""
    sharded, _ = model_and_batches()
    mesh = flat_mesh()
    for block in sharded.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    assert_trains_alike(sharded, lambda batch: batch.chunk(mesh.size())[mesh.get_rank()])


@check(4)
def fsdp_and_tensor_parallel():
    sharded, _ = model_and_batches()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    for block in sharded.blocks:
        parallelize_module(block, mesh["tensor"], PLAN)
        fully_shard(block, mesh=mesh["data"])
    fully_shard(sharded, mesh=mesh["data"])

    def place(batch):
        part = batch.chunk(2)[mesh.get_local_rank("data")]
        return distribute_tensor(part, mesh["tensor"], [Shard(1)])

    assert_trains_alike(sharded, place)


# ---- running them


def run_checks(rank, world, folder):
    torch.set_num_threads(1)
    store, seconds = f"file://{folder}/store", datetime.timedelta(seconds=1)
    dist.init_process_group("gloo", store, rank=rank, world_size=world, timeout=20 * seconds)
    # Of its own, and patient: a process whose check has failed waits here for those that wait for it there.
    reports = dist.new_group(timeout=100 * seconds)
    outcomes = {}
    for name in names(world):
        try:
            CHECKS[name][0]()
            error = None
        except BaseException:
            error = traceback.format_exc()
        errors = [None] * world
        dist.all_gather_object(errors, error, group=reports)
        outcomes[name] = "\n".join(f"process {i} of {world}: {e}" for i, e in enumerate(errors) if e)
        if rank == 0:
            pathlib.Path(folder, "outcomes.json").write_text(json.dumps(outcomes))
    dist.barrier(group=reports)
    os._exit(0)  # gloo's threads may abort the process while the interpreter shuts down


def run_world(world):
    """{name of a check: what went wrong, empty if nothing}; a check that is missing was not reached."""
    fork = multiprocessing.get_context("fork")  # torch is imported once, in the launcher
    with tempfile.TemporaryDirectory() as folder:
        processes = [fork.Process(target=run_checks, args=(rank, world, folder)) for rank in range(world)]
        for process in processes:
            process.start()
        processes[0].join(LIMIT)
        for process in processes:
            process.kill()
            process.join()
        outcomes = pathlib.Path(folder, "outcomes.json")
        return json.loads(outcomes.read_text()) if outcomes.exists() else {}


if __name__ == "__main__":
    pathlib.Path(sys.argv[2]).write_text(json.dumps(run_world(int(sys.argv[1])), indent=2))
