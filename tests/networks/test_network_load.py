"""Networks out of checkpoints, and encoder weights out of local files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adaptseg.classes import CAMVID, STREETS
from adaptseg.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from adaptseg.errors import AdaptSegError
from adaptseg.networks import Output, Segmenter, SmpSegmenter, build, describe, load
from adaptseg.networks.weights import load_encoder_weights

REAL_FILE = Path(__file__).parents[3] / "shared" / "data" / "weights" / "mobilenet_v2_imagenet_ptq_features_fp16.pth"


class Wrapper(Segmenter):
    """A network around a network, as a recipe would nest them."""

    def __init__(self, inner: Segmenter, scales: list[float]) -> None:
        super().__init__(inner.num_classes)
        self.encoder = inner
        self.scales = scales

    def forward(self, images: Tensor, *, crop: object = None, token_mask: object = None) -> Output:
        return self.encoder(images)

    def config(self) -> dict[str, Any]:
        inner = self.encoder.config()
        return {"class_path": f"{__name__}.Wrapper", "init_args": {"inner": inner, "scales": self.scales}}


@pytest.fixture(scope="module")
def student() -> SmpSegmenter:
    torch.manual_seed(0)
    network = SmpSegmenter(19, decoder="FPN", encoder="tu-mobilenetv3_small_100", decoder_channels=64)
    network(torch.randn(2, 3, 64, 64))  # moves the batch statistics off their initial values
    return network


@pytest.fixture(scope="module")
def run(student: SmpSegmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    wrapper = Wrapper(student, [0.5, 1.0])
    state = {f"student.{k}": v for k, v in student.state_dict().items()}
    state |= {f"teacher.network.{k}": v for k, v in wrapper.state_dict().items()}
    networks = {"student": ("student.", student), "teacher": ("teacher.network.", wrapper)}
    folder = tmp_path_factory.mktemp("run")
    (folder / "checkpoints").mkdir()
    checkpoint = {"state_dict": state, "adaptseg": describe(networks, STREETS, IMAGENET_MEAN, IMAGENET_STD)}
    torch.save(checkpoint, folder / "checkpoints" / "last.ckpt")
    return folder


def test_round_trip_through_a_run_directory(run: Path, student: SmpSegmenter) -> None:
    loaded = load(run, class_table=STREETS)
    assert not loaded.training
    assert loaded.class_table is not None
    assert loaded.class_table.fingerprint == STREETS.fingerprint
    assert loaded.normalization == (IMAGENET_MEAN, IMAGENET_STD)
    assert loaded.config() == student.config()
    images = torch.randn(1, 3, 33, 47)
    student.eval()
    assert torch.equal(loaded(images).logits, student(images).logits)


def test_nested_network_by_checkpoint_path(run: Path, student: SmpSegmenter) -> None:
    loaded = load(run / "checkpoints" / "last.ckpt", "teacher")
    assert isinstance(loaded, Wrapper)
    assert loaded.scales == [0.5, 1.0]
    wanted = student.state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in loaded.encoder.state_dict().items())


def test_load_refuses_what_does_not_fit(run: Path, tmp_path: Path) -> None:
    with pytest.raises(AdaptSegError, match=r"no network 'large'; it has student, teacher"):
        load(run, "large")
    with pytest.raises(AdaptSegError, match="differs from"):
        load(run, class_table=CAMVID)
    with pytest.raises(AdaptSegError, match="does not exist"):
        load(tmp_path)
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(AdaptSegError, match="not a checkpoint of adaptseg"):
        load(tmp_path / "other.ckpt")
    (tmp_path / "cut.ckpt").write_bytes((run / "checkpoints" / "last.ckpt").read_bytes()[:1000])
    with pytest.raises(AdaptSegError, match="cannot be read"):
        load(tmp_path / "cut.ckpt")
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    del checkpoint["state_dict"]["student.segmentation_head.0.bias"]
    torch.save(checkpoint, tmp_path / "short.ckpt")
    with pytest.raises(AdaptSegError, match=r"segmentation_head\.0\.bias"):
        load(tmp_path / "short.ckpt")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"class_path": "nowhere.Network"}, "cannot be imported"),
        ({"class_path": "adaptseg.networks.Nothing"}, "cannot be imported"),
        ({"class_path": "Network"}, "cannot be imported"),
        ({"class_path": "os.getcwd"}, "is not a network"),
        ({"class_path": "pathlib.Path"}, "is not a network"),
        ({"class_path": "torch.nn.Identity.forward"}, "cannot be imported"),
        ({"class_path": "torch.nn.Linear", "init_args": {"inn": 1}}, "init_args"),
    ],
)
def test_build_makes_networks_only(config: dict, message: str) -> None:
    with pytest.raises(AdaptSegError, match=message):
        build(config)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.stages_0 = nn.Linear(2, 2)


def same(encoder: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(v, state[k]) for k, v in encoder.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module.", "encoder.", "backbone.", "module.encoder."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_round_trip_under_every_prefix(tmp_path: Path, prefix: str, suffix: str) -> None:
    state = Encoder().state_dict()
    file = tmp_path / f"weights{suffix}"
    renamed = {prefix + k.replace("stages_0", "stages.0"): v for k, v in state.items()}
    renamed |= {f"{prefix}fc.weight": torch.zeros(10, 4), f"{prefix}head.fc.bias": torch.zeros(10)}
    save_file(renamed, file) if suffix == ".safetensors" else torch.save({"state_dict": renamed}, file)
    encoder = Encoder()
    assert not same(encoder, state)
    load_encoder_weights(encoder, file)
    assert same(encoder, state)


def test_weights_lacking_features_prefix_and_counters_are_cast(tmp_path: Path) -> None:
    source = Encoder().features.half()
    counterless = {k: v for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(counterless, tmp_path / "w.pt")
    encoder = nn.Module()
    encoder.features = Encoder().features
    load_encoder_weights(encoder, tmp_path / "w.pt")
    assert encoder.features[0].weight.dtype == torch.float32
    assert torch.equal(encoder.features[0].weight, source[0].weight.float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("features.0.bias"), r"lacks features\.0\.bias"),
        (lambda s: s.update({"layer9.weight": torch.zeros(1)}), r"has unknown layer9\.weight"),
        (
            lambda s: s.update({"features.0.bias": torch.zeros(5)}),
            r"features\.0\.bias \(float32\[5\] instead of",
        ),
        (lambda s: s.update({"features.0.bias": torch.zeros(4, dtype=torch.int8)}), r"int8\[4\]"),
        (lambda s: s.update({f"x{i}": torch.zeros(1) for i in range(9)}), "x0, x1, x2 and 6 more"),
        (lambda s: s.clear(), "does not hold"),
        (lambda s: s.update({"epoch": 3}), "does not hold"),
    ],
)
def test_weights_that_do_not_fit_name_file_and_keys(tmp_path: Path, change: Any, message: str) -> None:
    state: dict[str, Any] = dict(Encoder().state_dict())
    change(state)
    torch.save(state, tmp_path / "w.pth")
    encoder = Encoder()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    with pytest.raises(AdaptSegError, match=message) as raised:
        load_encoder_weights(encoder, tmp_path / "w.pth")
    assert "w.pth" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert same(encoder, before)


def test_weights_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name, content, message in (
        ("none.pth", None, "does not exist"),
        ("w.bin", b"", ".pth, .pt or .safetensors expected"),
        ("empty.pth", b"", "cannot be read"),
        ("noise.pth", b"noise" * 99, "cannot be read"),
        ("noise.safetensors", b"noise" * 99, "cannot be read"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(AdaptSegError, match=message):
            load_encoder_weights(Encoder(), tmp_path / name)
    torch.save({"weight": torch.zeros(1), "code": Encoder()}, tmp_path / "code.pth")
    with pytest.raises(AdaptSegError, match="cannot be read"):
        load_encoder_weights(Encoder(), tmp_path / "code.pth")


def test_group_norm_refuses_weights_made_with_batch_norm(student: SmpSegmenter, tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save(student.encoder.state_dict(), file)
    arguments = {"decoder": "FPN", "encoder": "tu-mobilenetv3_small_100", "decoder_channels": 64}
    with pytest.raises(AdaptSegError, match="norm: group with pre-trained weights"):
        SmpSegmenter(19, **arguments, weights=str(file), norm="group")
    network = SmpSegmenter(19, **arguments, weights=str(file), norm="frozen")
    assert network.config()["init_args"]["weights"] is False
    assert same(network.encoder, student.encoder.state_dict())


@pytest.mark.skipif(not REAL_FILE.is_file(), reason="needs ../shared/data/weights")
def test_real_mobilenet_weights() -> None:
    network = SmpSegmenter(19, decoder="FPN", encoder="mobilenet_v2", decoder_channels=64, weights=str(REAL_FILE))
    for key, value in torch.load(REAL_FILE, weights_only=True).items():
        assert torch.equal(network.encoder.state_dict()[f"features.{key}"].float(), value.float())
    assert {p.dtype for p in network.parameters()} == {torch.float32}
