"""convert and fold on models of published packages, small and with random weights; without a package, skipped."""

import copy
import fnmatch

import pytest
import tolerances
import torch

import srmsnorm

TINY = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def transformers(name, config, **options):
    package = pytest.importorskip("transformers")
    if not hasattr(package, name):
        pytest.skip(f"transformers {package.__version__} has no {name}")
    return getattr(package, name)(getattr(package, config)(**TINY | options))


def llama4():
    return transformers(
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        **HEADS,
        head_dim=16,
        intermediate_size_mlp=64,
        num_hidden_layers=4,
        num_local_experts=2,
        interleave_moe_layer_step=2,
        use_qk_norm=True,
    )


def gemma3n():
    return transformers(
        "Gemma3nForCausalLM",
        "Gemma3nTextConfig",
        **HEADS,
        head_dim=16,
        vocab_size_per_layer_input=128,
        hidden_size_per_layer_input=16,
        num_hidden_layers=2,
        num_kv_shared_layers=0,
        laurel_rank=8,
        activation_sparsity_pattern=None,
        layer_types=["full_attention"] * 2,
    )


def nanochat():
    return transformers(
        "NanoChatForCausalLM", "NanoChatConfig", **HEADS, num_hidden_layers=2, bos_token_id=0, eos_token_id=1
    )


def deepseek_v4():
    return transformers(
        "DeepseekV4ForCausalLM",
        "DeepseekV4Config",
        moe_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        head_dim=32,
        q_lora_rank=32,
        o_lora_rank=32,
        o_groups=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
    )


def minimax():
    return transformers("MiniMaxForCausalLM", "MiniMaxConfig", **HEADS, num_hidden_layers=2, num_local_experts=2)


def x_transformers():
    package = pytest.importorskip("x_transformers")
    layers = package.Decoder(dim=64, depth=2, heads=2, use_simple_rmsnorm=True)
    return package.TransformerWrapper(num_tokens=128, max_seq_len=64, attn_layers=layers)


def ids():
    return torch.randint(0, 128, (2, 16), generator=torch.Generator().manual_seed(0))


def logits(model):
    output = model(ids())
    return output if isinstance(output, torch.Tensor) else output.logits


# (the model, names of what is swapped, how many, with roundings allowed)
SWAPPED = [
    (llama4, "model.layers.*.self_attn.qk_norm", 3, False),
    (gemma3n, "model.layers.*.self_attn.v_norm", 2, False),
    (nanochat, "model*norm", 9, False),
    (deepseek_v4, "model.*_norm", 7, True),
    (deepseek_v4, "-", 0, False),
    (minimax, "-", 0, True),
    (x_transformers, "-", 0, True),
]


@pytest.mark.parametrize("make, pattern, count, allow_rounding", SWAPPED)
def test_swapped(plain_memory, make, pattern, count, allow_rounding):
    """The logits of float32 models within roundings of float32; the state_dict, and what revert leaves, as before."""
    torch.manual_seed(0)
    model = make().eval()
    before, state = logits(model).detach(), copy.deepcopy(model.state_dict())
    report = srmsnorm.convert(model, allow_rounding=allow_rounding)
    assert len(report.replaced) == count == len(fnmatch.filter(report.replaced, pattern)), report
    after = logits(model).detach()
    off, size = (float(t.abs().max()) for t in (after - before, before))
    print(f"{make.__name__}: {count} swapped; logits up to {size:.3g} differ by {off:.3g}")
    torch.testing.assert_close(after, before, rtol=0, atol=64 * torch.finfo().eps * size)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    report.revert()
    assert torch.equal(logits(model), before)


def test_torchtitan():
    """Its subclass of nn.RMSNorm, beside one with a weight."""
    norm = pytest.importorskip("torchtitan.models.common.nn_modules", exc_type=ImportError).RMSNorm
    configs = [norm.Config(normalized_shape=48, elementwise_affine=affine) for affine in (False, True)]
    model = torch.nn.Sequential(*(config.build() for config in configs))
    assert srmsnorm.convert(model).replaced == ["0"] and repr(model[0]) == "SRMSNorm(48, eps=1e-05)"


@pytest.mark.parametrize("make", [llama4, gemma3n, nanochat, deepseek_v4])
def test_trained(plain_memory, make):
    """A step of gradient descent moves all parameters as before."""
    torch.manual_seed(0)
    model = make().eval()
    ours = copy.deepcopy(model)
    assert srmsnorm.convert(ours, allow_rounding=True).replaced
    for one in (model, ours):
        torch.nn.functional.cross_entropy(logits(one).flatten(0, 1), ids().flatten()).backward()
    for (name, theirs), mine in zip(model.named_parameters(), ours.parameters(), strict=True):
        assert (theirs.grad is None) == (mine.grad is None), name
        if theirs.grad is not None:
            scale = float(theirs.grad.abs().max())
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=1e-4 * scale + 1e-8, msg=name)


@pytest.mark.parametrize("make", [llama4, nanochat])
def test_compiled(plain_memory, make):
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = make().eval()
    srmsnorm.convert(model)
    with torch.no_grad():
        tolerances.assert_compiled([torch.compile(model, backend="aot_eager")(ids()).logits], [logits(model)])


# ---- folding

LAYER = {
    "input_layernorm": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "post_attention_layernorm": ["mlp.gate_proj", "mlp.up_proj"],
}


def llama():
    return transformers("LlamaForCausalLM", "LlamaConfig", **HEADS, num_hidden_layers=2, tie_word_embeddings=False)


def gemma():
    return transformers("GemmaForCausalLM", "GemmaConfig", **HEADS, head_dim=16, num_hidden_layers=2)


def with_random_norms(make):
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) / 2)
    return model


def folded_linears(model):
    return {f"model.layers.{i}.{norm}": [f"model.layers.{i}.{name}" for name in names]
            for i in range(len(model.model.layers)) for norm, names in LAYER.items()}  # fmt: skip


def moved_by_a_rounding(model, linears):
    """How far logits move where each weight of these linears does, by a roundoff up or down: fold's error, drawn."""
    moved, before = [], logits(model)
    for seed in range(3):
        other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
        for name in linears:
            weight = other.get_submodule(name).weight
            signs = torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1
            weight.mul_(1 + signs * torch.finfo(weight.dtype).eps / 2)
        moved.append(float((logits(other) - before).abs().max()))
    return max(moved)


@pytest.mark.parametrize("make, offset", [(llama, 0.0), (gemma, 1.0)])
@torch.no_grad()
def test_folded(plain_memory, make, offset):
    """Every norm of a model: logits move no further than by a few roundings of the linears' weights."""
    model = with_random_norms(make)
    before, places = logits(model), folded_linears(model)
    if make is llama:
        places["model.norm"] = ["lm_head"]
    allowed = moved_by_a_rounding(model, [name for names in places.values() for name in names])
    for norm, linears in places.items():
        srmsnorm.fold(model, norm, linears, weight_offset=offset, example_inputs={"input_ids": ids()})
    off, size = float((logits(model) - before).abs().max()), float(before.abs().max())
    print(f"{make.__name__}: {len(places)} folded; logits up to {size:.3g} differ by {off:.3g}, allowed {allowed:.3g}")
    # A rounding of each product and of the norm, where there were two of the norm; the sums' order.
    assert 0 < off <= 6 * allowed
    assert sum(isinstance(module, srmsnorm.SRMSNorm) for module in model.modules()) == len(places)


def test_not_folded(plain_memory):
    """A tied head; a reader that is not named; the wrong offset."""
    model, given = with_random_norms(gemma), {"example_inputs": {"input_ids": ids()}}
    state = copy.deepcopy(model.state_dict())
    layer = "model.layers.0."
    for norm, linears, message in (
        ("model.norm", ["lm_head"], "'lm_head' is tied"),
        (layer + "input_layernorm", [layer + "self_attn.q_proj"], "the norm is also read by aten"),
        (
            layer + "post_attention_layernorm",
            [layer + "mlp.gate_proj", layer + "mlp.up_proj"],
            "weight_offset=1.0 fits",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            offset = 0.0 if "offset" in message else 1.0
            srmsnorm.fold(model, norm, linears, weight_offset=offset, **given)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
