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
    print(
        make.__name__, count, "swapped; logits differ by", float((after - before).abs().max()), "of", before.abs().max()
    )
    torch.testing.assert_close(after, before, rtol=0, atol=64 * torch.finfo().eps * size)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    report.revert()
    assert torch.equal(logits(model), before)


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
