"""The layers for Hugging Face's kernels package, put into models by that package itself, offline."""

import copy

import pytest
import torch

import srmsnorm
from srmsnorm import layers

kernels = pytest.importorskip("kernels")
MODES = kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE
NORMS = {name: {device: layers.Installed(name) for device in ("cpu", "cuda")} for name in ("RMSNorm", "SRMSNorm")}
TINY = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "pad_token_id": 0}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def kernelized(model, mode=MODES, mapping=NORMS):
    model = copy.deepcopy(model)
    with kernels.use_kernel_mapping(mapping, inherit_mapping=False):
        return kernels.kernelize(model, mode=mode, use_fallback=False)


@pytest.fixture(autouse=True)
def names(monkeypatch):
    """transformers names the layers only for the versions of kernels that it was released with."""
    modeling = pytest.importorskip("transformers.models.llama.modeling_llama")
    monkeypatch.setattr(modeling.LlamaRMSNorm, "kernel_layer_name", "RMSNorm", raising=False)


def llama(device, dtype):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(**TINY, **HEADS)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).to(device, dtype)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def ours(model):
    return [module for module in model.modules() if module.forward.__func__.__module__ == "srmsnorm.layers"]


def step(model, tokens):
    """The loss and every gradient."""
    loss = model(input_ids=tokens, labels=tokens).loss
    return loss, torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_llama(device, dtype):
    model = llama(device, dtype)
    with_ours = kernelized(model)
    assert len(ours(with_ours)) == 5 and not ours(model)
    assert list(with_ours.state_dict()) == list(model.state_dict())
    tokens = torch.arange(2 * 16, device=device).view(2, 16)
    with torch.no_grad():
        want, got = (each(input_ids=tokens).logits for each in (model, with_ours))
    # The same rounding: in 16 bits the float32 mean of either may be on the other side of a rounding boundary.
    torch.testing.assert_close(got, want, rtol=1e-5 if dtype == torch.float32 else 0.03, atol=1e-5)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.03}
    torch.testing.assert_close(step(with_ours, tokens), step(model, tokens), **tolerance)


def test_compiled(device):
    model = llama(device, torch.float32)
    with_ours = kernelized(model)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(with_ours, backend=backend, fullgraph=True)
    tokens = torch.arange(16, device=device).view(1, 16)
    torch.testing.assert_close(compiled(input_ids=tokens).logits, model(input_ids=tokens).logits)
    called = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert sum("srms_norm" in name for name in called) == 5


def test_norm_without_a_weight(device):
    """A class that does not name a layer is told one by kernels' own function."""
    from transformers.models.llama4.modeling_llama4 import Llama4TextL2Norm

    class Norm(Llama4TextL2Norm):
        pass

    kernels.replace_kernel_forward_from_hub(Norm, "SRMSNorm")
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), Norm(eps=1e-3)).to(device)
    with_ours = kernelized(model)
    assert ours(with_ours) == [with_ours[1]]
    x = torch.randn(8, 64, device=device)
    torch.testing.assert_close(with_ours(x), model(x))
    assert torch.equal(with_ours(x), srmsnorm.srms_norm(model[0](x), eps=1e-3))


def test_unknown_layer():
    with pytest.raises(ValueError, match="srmsnorm: no layer 'LayerNorm', there are RMSNorm, SRMSNorm"):
        layers.Installed("LayerNorm").load()
