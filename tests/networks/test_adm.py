"""guided-diffusion's files: each decoder block against a forward pass written out in float64, which makes the file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional

from adaptseg import networks
from adaptseg.errors import AdaptSegError
from adaptseg.networks import AdmFlags, DiffusionFeatures
from adaptseg.networks.adm import AdmUNet, load_adm
from adaptseg.networks.denoiser import centred, noised
from adaptseg.networks.feature_maps import _noise

OVERLAYS = Path(__file__).parents[2] / "configs" / "features"
SMALL = AdmFlags(
    image_size=16,
    num_channels=32,
    num_res_blocks=1,
    channel_mult=(1, 2),
    attention_resolutions=(8,),
    num_head_channels=16,
    resblock_updown=True,
    learn_sigma=True,
)
ADDED = replace(
    SMALL, num_head_channels=-1, num_heads_upsample=2, use_scale_shift_norm=False, resblock_updown=False,
    learn_sigma=False, use_new_attention_order=True,
)  # fmt: skip
PUBLISHED = AdmFlags(
    image_size=256, num_channels=32, attention_resolutions=(32, 16, 8), num_head_channels=8, resblock_updown=True,
    learn_sigma=True,
)  # fmt: skip
FLAGS = {
    "published, an eighth as wide": PUBLISHED,
    "time added, convolutions between levels, two numbers of heads, new order": ADDED,
    "the same, old order": replace(ADDED, use_new_attention_order=False, num_heads_upsample=-1),
    "classes, new order": replace(SMALL, class_cond=True, use_new_attention_order=True),
    "first level narrower than the timestep's, everything attends": replace(
        ADDED, num_channels=64, channel_mult=(0.5, 1, 1.5), attention_resolutions=(16, 8, 4), use_scale_shift_norm=True
    ),
    "one level": replace(SMALL, channel_mult=(2,), attention_resolutions=(), num_res_blocks=2),
}
IMAGES = torch.randn(2, 3, 16, 32, generator=torch.Generator().manual_seed(3))


# ---- the architecture written out


class WrittenOut:
    """One forward pass, from the paper's appendix and the format of the files, a tensor at a time.

    Tensors are drawn when they are first used, so the pass says which names and shapes a file has.
    """

    def __init__(self, flags: AdmFlags, *, seed: int = 0, half: bool = False) -> None:
        self.flags, self.file, self.half = flags, dict[str, Tensor](), half
        self.random = torch.Generator().manual_seed(seed)

    def tensor(self, name: str, *shape: int) -> Tensor:
        if name not in self.file:
            fan_in = math.prod(shape[1:]) if len(shape) > 1 else 4
            drawn = torch.randn(shape, generator=self.random) / math.sqrt(fan_in)
            self.file[name] = drawn.half() if self.half else drawn
        assert self.file[name].shape == shape
        return self.file[name].double()

    def convolved(self, x: Tensor, name: str, channels: int, size: int = 3, stride: int = 1) -> Tensor:
        weight = self.tensor(f"{name}.weight", channels, x.shape[1], size, size)
        return functional.conv2d(x, weight, self.tensor(f"{name}.bias", channels), stride, size // 2)

    def linear(self, x: Tensor, name: str, channels: int) -> Tensor:
        weight = self.tensor(f"{name}.weight", channels, x.shape[1])
        return x @ weight.T + self.tensor(f"{name}.bias", channels)

    def normalised(self, x: Tensor, name: str) -> Tensor:
        groups = x.reshape(len(x), 32, -1)
        centre = groups - groups.mean(2, keepdim=True)
        unit = (centre / (centre.square().mean(2, keepdim=True) + 1e-5).sqrt()).view_as(x)
        weight, bias = (self.tensor(f"{name}.{part}", x.shape[1])[:, None, None] for part in ("weight", "bias"))
        return unit * weight + bias

    def residual(self, x: Tensor, time: Tensor, name: str, channels: int, resize: str = "") -> Tensor:
        def resized(y: Tensor) -> Tensor:
            if resize == "up":
                return y.repeat_interleave(2, 2).repeat_interleave(2, 3)
            if resize == "down":
                return (y[..., ::2, ::2] + y[..., 1::2, ::2] + y[..., ::2, 1::2] + y[..., 1::2, 1::2]) / 4
            return y

        h = self.convolved(resized(swish(self.normalised(x, f"{name}.in_layers.0"))), f"{name}.in_layers.2", channels)
        width = 2 * channels if self.flags.use_scale_shift_norm else channels
        told = self.linear(swish(time), f"{name}.emb_layers.1", width)[:, :, None, None]
        if self.flags.use_scale_shift_norm:
            h = self.normalised(h, f"{name}.out_layers.0") * (1 + told[:, :channels]) + told[:, channels:]
        else:
            h = self.normalised(h + told, f"{name}.out_layers.0")
        h = self.convolved(swish(h), f"{name}.out_layers.3", channels)
        x = resized(x)
        return h + (x if x.shape[1] == channels else self.convolved(x, f"{name}.skip_connection", channels, 1))

    def attended(self, x: Tensor, name: str, *, up: bool) -> Tensor:
        batch, channels, height, width = x.shape
        flags = self.flags
        heads = flags.num_heads_upsample if up and flags.num_heads_upsample > 0 else flags.num_heads
        if flags.num_head_channels > 0:
            heads = channels // flags.num_head_channels
        each = channels // heads
        flat = self.normalised(x, f"{name}.norm").reshape(batch, channels, -1)
        weight = self.tensor(f"{name}.qkv.weight", 3 * channels, channels, 1)[:, :, 0]
        mixed = weight @ flat + self.tensor(f"{name}.qkv.bias", 3 * channels)[:, None]
        found = torch.zeros_like(flat)
        for head in range(heads):
            if flags.use_new_attention_order:  # all queries, all keys, all values
                starts = [kind * channels + head * each for kind in range(3)]
            else:  # head after head, with query, key and value of each
                starts = [(3 * head + kind) * each for kind in range(3)]
            query, key, value = (mixed[:, start : start + each] for start in starts)
            share = torch.softmax(query.mT @ key / math.sqrt(each), 2)
            found[:, head * each : (head + 1) * each] = (share @ value.mT).mT
        weight = self.tensor(f"{name}.proj_out.weight", channels, channels, 1)[:, :, 0]
        projected = weight @ found + self.tensor(f"{name}.proj_out.bias", channels)[:, None]
        return x + projected.reshape(batch, channels, height, width)

    def embedded(self, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        half, width = self.flags.num_channels // 2, 4 * self.flags.num_channels
        angles = [[int(t) * 10000 ** (-i / half) for i in range(half)] for t in timesteps]
        waves = torch.tensor([[*map(math.cos, row), *map(math.sin, row)] for row in angles], dtype=torch.float64)
        time = self.linear(swish(self.linear(waves, "time_embed.0", width)), "time_embed.2", width)
        return time if labels is None else time + self.tensor("label_emb.weight", 1000, width)[labels]

    def run(self, noisy: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Outputs of all decoder blocks, and of the network."""
        flags = self.flags
        multipliers = flags.channel_mult or (1, 1, 2, 2, 4, 4)
        widths = [int(flags.num_channels * m) for m in multipliers]
        attends = [flags.image_size // 2**level in flags.attention_resolutions for level in range(len(widths))]
        time = self.embedded(timesteps, labels)
        x = self.convolved(noisy.double(), "input_blocks.0.0", widths[0])
        kept = [x]
        for level, width in enumerate(widths):
            for _ in range(flags.num_res_blocks):
                x = self.residual(x, time, f"input_blocks.{len(kept)}.0", width)
                x = self.attended(x, f"input_blocks.{len(kept)}.1", up=False) if attends[level] else x
                kept.append(x)
            if level + 1 < len(widths):
                name = f"input_blocks.{len(kept)}.0"
                if flags.resblock_updown:
                    x = self.residual(x, time, name, width, "down")
                else:
                    x = self.convolved(x, f"{name}.op", width, stride=2)
                kept.append(x)
        x = self.residual(x, time, "middle_block.0", widths[-1])
        x = self.attended(x, "middle_block.1", up=False)
        x = self.residual(x, time, "middle_block.2", widths[-1])
        decoded: list[Tensor] = []
        for level in range(len(widths) - 1, -1, -1):
            for number in range(flags.num_res_blocks + 1):
                name, part = f"output_blocks.{len(decoded)}", 1
                x = self.residual(torch.cat([x, kept.pop()], 1), time, f"{name}.0", widths[level])
                if attends[level]:
                    x, part = self.attended(x, f"{name}.1", up=True), 2
                if level > 0 and number == flags.num_res_blocks:
                    if flags.resblock_updown:
                        x = self.residual(x, time, f"{name}.{part}", widths[level], "up")
                    else:
                        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
                        x = self.convolved(x, f"{name}.{part}.conv", widths[level])
                decoded.append(x)
        assert not kept
        return decoded, self.convolved(swish(self.normalised(x, "out.0")), "out.2", 6 if flags.learn_sigma else 3)


def swish(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def images_for(flags: AdmFlags) -> Tensor:
    """Images of the coarsest grid of one row of two cells, at least."""
    return IMAGES if len(flags.widths) < 4 else functional.interpolate(IMAGES[:1], (32, 64))


def outputs(blocks: Iterable[nn.Module]) -> list[Tensor]:
    """What the blocks return, once they run."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        found.append(output)

    for block in blocks:
        block.register_forward_hook(keep)
    return found


def near(found: Tensor, wanted: Tensor) -> None:
    scale = float(wanted.square().mean().sqrt())
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4 * scale)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A file of the small flags."""
    return written(tmp_path / "small.pt", SMALL)


def written(path: Path, flags: AdmFlags, **settings: Any) -> Path:
    reference = WrittenOut(flags, **settings)
    labels = torch.zeros(2, dtype=torch.int64) if flags.class_cond else None
    reference.run(IMAGES, torch.tensor([1, 1]), labels)
    torch.save(reference.file, path)
    return path


# ---- the same numbers


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS.keys())
def test_network_and_every_decoder_block(flags: AdmFlags, tmp_path: Path) -> None:
    reference = WrittenOut(flags)
    noisy = images_for(flags)
    timesteps = torch.tensor([3, 871][: len(noisy)])
    labels = torch.tensor([7, 999]) if flags.class_cond else None
    with torch.no_grad():
        decoded, output = reference.run(noisy, timesteps, labels)
    torch.save(reference.file, tmp_path / "made.pt")
    network = load_adm(tmp_path / "made.pt", flags)
    assert not network.training
    found = outputs(network.output_blocks)
    with torch.no_grad():
        said = network(noisy, timesteps, labels)
    assert [cells.shape[1] for cells in found] == network.decoded
    for cells, wanted in zip(found, decoded, strict=True):
        near(cells, wanted)
    near(said, output)


@pytest.mark.parametrize("flags", [PUBLISHED, ADDED], ids=["published", "added"])
def test_features_are_the_decoder_blocks(flags: AdmFlags, tmp_path: Path) -> None:
    reference = WrittenOut(flags, seed=1)
    images = images_for(flags)
    size, timesteps = (images.shape[-2], images.shape[-1]), (50, 150, 250)
    clean, noise = centred(images), _noise(4, 0, *size)
    wanted: list[Tensor] = []
    for timestep in timesteps:
        steps = torch.full((len(images),), timestep)
        with torch.no_grad():
            wanted += reference.run(noised(clean, noise, steps), steps)[0]
    torch.save(reference.file, tmp_path / "made.pt")
    every = range(len(wanted) // 3)
    features = DiffusionFeatures(str(tmp_path / "made.pt"), timesteps, list(every), seed=4, adm=flags)
    found = features.maps(images)
    assert features.level_channels == tuple(m.shape[1] for m in wanted)
    assert features.forwards == 3 * len(images)
    for cells, expected in zip(found, wanted, strict=True):
        assert cells.dtype == torch.float32
        near(cells, expected)
    if flags is PUBLISHED:
        chosen = DiffusionFeatures(str(tmp_path / "made.pt"), seed=4, adm=flags)
        assert (chosen.timesteps, chosen.blocks) == ((50, 150, 250), (5, 8, 12, 17))
        for cells, number in zip(
            chosen.maps(images), [18 * t + b for t in range(3) for b in chosen.blocks], strict=True
        ):
            assert torch.equal(cells, found[number])


def test_published_flags_give_the_published_blocks() -> None:
    """Specification 2.2: channels and grid of the 18 decoder blocks of both published networks, and 6144 in all."""
    table = [(1024, 8)] * 2 + [(1024, 16)] * 3 + [(1024, 32)] + [(512, 32)] * 2 + [(512, 64)] * 3 + [(512, 128)]
    table += [(256, 128)] * 2 + [(256, 256)] * 4
    for name, dropout in (("adm_256", 0.0), ("adm_lsun_bedroom", 0.1)):
        features = yaml.safe_load((OVERLAYS / f"{name}.yaml").read_text())
        settings = features["model"]["init_args"]["network"]["init_args"]["features"]["init_args"]
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings["adm"].items()}
        flags = AdmFlags(**given)
        assert flags.dropout == dropout
        assert (flags.use_fp16, flags.class_cond) == (True, False)
        with torch.device("meta"):
            network = AdmUNet(flags)
            found = outputs(network.output_blocks)
            said = network(torch.zeros(1, 3, 256, 256), torch.zeros(1, dtype=torch.int64))
        assert [tuple(cells.shape[1:3]) for cells in found] == table
        assert said.shape == (1, 6, 256, 256)
        assert (settings["timesteps"], settings["blocks"]) == ([50, 150, 250], [5, 8, 12, 17])
        assert 3 * sum(found[block].shape[1] for block in settings["blocks"]) == 6144
        assert network.get_submodule("output_blocks.0.1").heads == 16  # 64 channels each


# ---- precision


def test_files_of_float16(tmp_path: Path) -> None:
    """Loaded in either precision, they say on a CPU what their weights say in float64."""
    reference = WrittenOut(SMALL, half=True)
    timesteps = torch.tensor([3, 871])
    with torch.no_grad():
        _, output = reference.run(IMAGES, timesteps)
    torch.save(reference.file, tmp_path / "half.pt")
    for flags in (SMALL, replace(SMALL, use_fp16=True)):
        network = load_adm(tmp_path / "half.pt", flags)
        with torch.no_grad():
            near(network(IMAGES, timesteps), output)
        features = DiffusionFeatures(str(tmp_path / "half.pt"), adm=flags)
        assert all(m.dtype == torch.float32 for m in features.maps(IMAGES))


def test_float16_keeps_norms_timesteps_and_output_in_float32(small: Path) -> None:
    network = load_adm(small, replace(SMALL, use_fp16=True))
    for name, parameter in network.named_parameters():
        torso = "_block" in name and parameter.ndim > 2
        torso |= "_block" in name and name.endswith(".bias") and network.get_parameter(name[:-4] + "weight").ndim > 2
        assert parameter.dtype == (torch.float16 if torso else torch.float32), name
    half, whole = network.output_blocks[1], load_adm(small, SMALL).output_blocks[1]
    cells = torch.randn(1, 96, 8, 8, generator=torch.Generator().manual_seed(1))
    embedding = network.time_embed(torch.zeros(1, 32))
    with torch.no_grad():
        found, wanted = half(cells.half(), embedding), whole(cells, embedding)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), wanted, rtol=0.02, atol=0.02)


def test_float16_elsewhere_than_on_a_cpu(small: Path) -> None:
    """The types of another device, where nothing is computed: the torso in float16 between ends of float32."""
    network = load_adm(small, replace(SMALL, use_fp16=True)).to("meta")
    found = outputs([*network.input_blocks, network.middle_block, *network.output_blocks])
    said = network(torch.zeros(1, 3, 16, 16, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta"))
    assert {cells.dtype for cells in found} == {torch.float16}
    assert (said.dtype, said.shape) == (torch.float32, (1, 6, 16, 16))


# ---- what features say about themselves


def test_features_are_made_again_from_their_config(small: Path) -> None:
    flags = replace(SMALL, use_fp16=True)
    features = DiffusionFeatures(str(small), timesteps=(50,), blocks=(3, 0), seed=2, adm=flags)
    again = networks.build(features.config())
    assert isinstance(again, DiffusionFeatures)
    assert again.identity() == features.identity()
    assert again.adm == flags
    for found, wanted in zip(again.maps(IMAGES), features.maps(IMAGES), strict=True):
        assert torch.equal(found, wanted)
    assert not any(parameter.requires_grad for parameter in features.parameters())


def test_identity_follows_content_flags_and_precision(small: Path, tmp_path: Path) -> None:
    """Flags that no tensor shows count as well; dropout, which features never have, does not."""
    other = written(tmp_path / "other.pt", SMALL, seed=1)
    made = [
        DiffusionFeatures(str(file), adm=flags).identity()
        for file, flags in [
            (small, SMALL),
            (other, SMALL),
            (small, replace(SMALL, use_fp16=True)),
            (small, replace(SMALL, num_head_channels=8)),
            (small, replace(SMALL, use_new_attention_order=True)),
        ]
    ]
    assert len({str(identity) for identity in made}) == len(made)
    assert DiffusionFeatures(str(small), adm=replace(SMALL, dropout=0.1)).identity() == made[0]


def test_dropout_is_off(small: Path) -> None:
    """Trap T7."""
    flags = replace(SMALL, dropout=0.5)
    features = DiffusionFeatures(str(small), adm=flags)
    features.train()
    assert torch.equal(features.maps(IMAGES)[0], DiffusionFeatures(str(small), adm=SMALL).maps(IMAGES)[0])


def test_images_of_another_size(small: Path) -> None:
    features = DiffusionFeatures(str(small), adm=SMALL)
    features.check((18, 20))
    with pytest.raises(AdaptSegError, match="multiples of 2"):
        features.check((18, 21))


# ---- refusals


def test_faults_of_a_file_are_listed(small: Path, tmp_path: Path) -> None:
    tensors = torch.load(small, weights_only=True)
    del tensors["middle_block.1.qkv.bias"]
    tensors["output_blocks.9.0.in_layers.0.weight"] = torch.zeros(3)
    tensors["out.0.weight"] = torch.zeros(7)
    tensors["out.0.bias"] = torch.zeros(32, dtype=torch.int64)
    torch.save(tensors, tmp_path / "faulty.pt")
    with pytest.raises(AdaptSegError) as error:
        load_adm(tmp_path / "faulty.pt", SMALL)
    said = str(error.value)
    assert "lacks middle_block.1.qkv.bias;" in said
    assert "has unknown output_blocks.9.0.in_layers.0.weight;" in said
    assert "out.0.weight (float32[7] instead of float32[32])" in said
    assert "out.0.bias (int64[32] instead of float32[32])" in said
    assert "look like" not in said


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_channels": 64},
        {"learn_sigma": False},
        {"class_cond": True},
        {"resblock_updown": False},
        {"use_scale_shift_norm": False},
        {"channel_mult": (1, 3)},
        {"num_res_blocks": 2},
        {"attention_resolutions": (16,)},
    ],
    ids=str,
)
def test_flags_that_the_tensors_contradict(small: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(AdaptSegError, match=r"does not fit the flags of adm: it (lacks|has)") as error:
        load_adm(small, replace(SMALL, **wrong))
    (name,) = wrong
    if name in ("num_channels", "learn_sigma", "class_cond", "resblock_updown", "use_scale_shift_norm"):
        assert str(error.value).endswith(f"its tensors look like {name} {getattr(SMALL, name)}")


def test_convolutions_between_levels_are_recognised(tmp_path: Path) -> None:
    file = written(tmp_path / "added.pt", ADDED)
    with pytest.raises(AdaptSegError, match=r"look like resblock_updown False$"):
        load_adm(file, replace(ADDED, resblock_updown=True))


def test_refused_files(small: Path, tmp_path: Path) -> None:
    with pytest.raises(AdaptSegError, match=r"nothing\.pt does not exist"):
        DiffusionFeatures(str(tmp_path / "nothing.pt"), adm=SMALL)
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(AdaptSegError, match=r"broken\.pt cannot be read"):
        DiffusionFeatures(str(tmp_path / "broken.pt"), adm=SMALL)
    torch.save({"a": 1}, tmp_path / "other.pt")
    with pytest.raises(AdaptSegError, match="mapping of names to tensors"):
        DiffusionFeatures(str(tmp_path / "other.pt"), adm=SMALL)
    with pytest.raises(AdaptSegError, match="needs the flags of its network as well: set adm"):
        DiffusionFeatures(str(small))
    with pytest.raises(AdaptSegError, match=r"adm\.class_cond is true"):
        DiffusionFeatures(str(small), adm=replace(SMALL, class_cond=True))
    with pytest.raises(AdaptSegError, match="has 4 decoder blocks, 0 to 3"):
        DiffusionFeatures(str(small), blocks=[4], adm=SMALL)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_channels": 33}, "num_channels 33"),
        ({"num_res_blocks": 0}, "num_res_blocks 0"),
        ({"num_channels": 48}, "make 48 channels; multiples of 32"),
        ({"channel_mult": None}, "image_size 16 has no released ones (64, 128, 256, 512 have)"),
        ({"channel_mult": ()}, "one multiplier a level"),
        ({"image_size": 17}, "17 cannot be halved 1 times"),
        ({"attention_resolutions": (4,)}, "4 given; levels are [16, 8] cells wide"),
        ({"num_head_channels": 24}, "24 does not divide 64 channels"),
        ({"num_head_channels": 0}, "0 does not divide"),
        ({"num_head_channels": -1, "num_heads": 5}, "adm.num_heads: 64 channels cannot be shared by 5 heads"),
        ({"num_head_channels": -1, "num_heads_upsample": 0}, "adm.num_heads_upsample: 64 channels"),
        ({"dropout": 1.0}, "adm.dropout: 1.0"),
    ],
    ids=str,
)
def test_refused_flags(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(AdaptSegError) as error:
        AdmFlags(**{**asdict(SMALL), **wrong})
    assert said in str(error.value)
