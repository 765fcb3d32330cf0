"""Activations computed twice: the same gradients, running statistics and random draws, and far less that is kept."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import TinySegmenter
from torch import Tensor, nn

from adaptseg.errors import AdaptSegError
from adaptseg.methods import Acceleration
from adaptseg.networks import HRDA, DAFormer, DeepLabV2, Segmenter, SmpSegmenter
from adaptseg.networks.activations import checkpoint_blocks
from adaptseg.networks.encoders import make_encoder
from adaptseg.networks.teacher import EMATeacher

CLASSES = 5


def spared(plain: nn.Module) -> nn.Module:
    """A copy that computes its blocks twice."""
    network = copy.deepcopy(plain)
    if isinstance(network, Segmenter):
        Acceleration(checkpoint_encoder=True).arrange(network)
    else:
        checkpoint_blocks(network)
    return network


def kept_and_gradients(network: nn.Module, images: Tensor, **settings: object) -> tuple[int, list[Tensor | None]]:
    """Bytes that the forward pass keeps beside the weights, and the gradients."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(3)  # dropout and drop path
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = network(images, **settings)
        maps = [output.logits] if isinstance(network, Segmenter) else output[1:]
    torch.stack([m.square().mean() for m in maps]).sum().backward()
    return sum(kept.values()), [p.grad for p in network.parameters()]


def assert_same(plain: nn.Module, other: nn.Module, images: Tensor, *, share: float, **settings: object) -> None:
    """Two steps: gradients, the random state afterwards, and every running statistic."""
    for _ in range(2):
        found = []
        for network in (plain, other):
            network.zero_grad()
            found.append((*kept_and_gradients(network, images, **settings), torch.get_rng_state()))
        (kept, gradients, state), (kept_of_other, gradients_of_other, state_of_other) = found
        torch.testing.assert_close(gradients_of_other, gradients, rtol=1e-9, atol=1e-12)
        assert torch.equal(state, state_of_other)
        assert kept_of_other < share * kept
    buffers = dict(plain.named_buffers())
    assert buffers.keys() == dict(other.named_buffers()).keys()
    for name, buffer in other.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


@pytest.mark.parametrize(
    ("encoder", "share"),
    [
        ("resnet18", 0.8),
        ("mit_b0", 0.2),
        ("tu-mobilenetv3_small_100", 0.4),  # blocks inside stages
        ("efficientnet-b0", 0.2),  # blocks that are told their drop-path rate
        ("tu-hrnet_w18_small", 0.5),  # blocks that write into the list that they are given
    ],
)
def test_encoders_of_smp_and_timm(encoder: str, share: float) -> None:
    torch.manual_seed(0)
    plain = make_encoder(encoder, from_hub=False).double().train()
    assert_same(plain, spared(plain), torch.randn(2, 3, 64, 64, dtype=torch.double), share=share)


def test_every_pass_of_hrda() -> None:
    """Context and detail go through the same batch norms one after the other, under dropout."""
    torch.manual_seed(0)
    inner = SmpSegmenter(CLASSES, decoder="FPN", encoder="tu-mobilenetv3_small_050", decoder_channels=64, dropout=0.2)
    plain = HRDA(CLASSES, segmenter=inner, detail=(64, 64), attention_channels=8).double().train()
    images = torch.randn(2, 3, 128, 128, dtype=torch.double)
    assert_same(plain, spared(plain), images, share=0.8, crop=(0, 64))


def test_copies_have_their_own_weights_and_names_stay() -> None:
    plain = DAFormer(CLASSES, encoder="mit_b0", channels=16, dilations=(1,)).train()
    network = spared(plain)
    assert isinstance(network, Segmenter)
    assert network.state_dict().keys() == plain.state_dict().keys()
    teacher, images = EMATeacher(network), torch.randn(2, 3, 64, 64)
    before = teacher.logits(images)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert torch.equal(teacher.logits(images), before)


def test_statistics_also_stand_where_the_step_fails() -> None:
    """The backward pass ends inside a block: its batch norms still hold the buffers that belong to them."""
    network = spared(DeepLabV2(CLASSES, encoder="resnet18").train())
    assert isinstance(network, Segmenter)
    before = dict(network.named_buffers())
    logits = network(torch.randn(2, 3, 64, 64)).logits
    after = {name: buffer.clone() for name, buffer in before.items()}

    def fail(gradient: Tensor) -> Tensor:
        raise RuntimeError("enough")

    next(iter(network.encoder_parameters())).register_hook(fail)
    with pytest.raises(RuntimeError, match="enough"):
        logits.square().mean().backward()
    for name, buffer in network.named_buffers():
        assert buffer is before[name]
        assert torch.equal(buffer, after[name])


def test_a_block_that_writes_into_its_input_is_noticed() -> None:
    """What is kept is gone: an error, no other gradient."""
    blocks = [nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1)) for _ in range(2)]
    encoder = nn.ModuleDict({"blocks": nn.Sequential(nn.Conv2d(3, 3, 1), *blocks)})
    checkpoint_blocks(encoder)
    loss = encoder["blocks"](torch.randn(1, 3, 4, 4)).square().mean()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("encoder", ["vgg11_bn", "tu-regnety_002"])
def test_refuses_encoders_without_blocks(encoder: str) -> None:
    with pytest.raises(AdaptSegError, match=r"checkpoint_encoder finds no sequence of blocks"):
        checkpoint_blocks(make_encoder(encoder, from_hub=False))
    with pytest.raises(AdaptSegError, match=r"checkpoint_encoder finds no sequence of blocks"):
        Acceleration(checkpoint_encoder=True).arrange(TinySegmenter(CLASSES))
