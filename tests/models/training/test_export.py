"""ONNX files: they say what torch says, bar by bar and at once, or they are not there.

Glossary: b chunks · l bars · n assets · f features · h horizons.
"""

from __future__ import annotations

import importlib
import json
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from models.features.scaling import Scaler
from models.layers.bidirectional import Bidirectional
from models.layers.lstm import LSTM
from models.nets.forecast import Batch, Forecast
from models.nets.sequence import SequenceNetwork, flat
from models.nets.sequence_layers import sequence
from models.training import export
from models.training.artifact import KEY, Artifact, Header, Outcome, load_artifact, save_artifact
from models.training.config import TrainConfig
from models.training.errors import DamagedArtifactError, ExportError
from models.training.export import TOLERANCE, Graph, export_onnx
from models.zoo import ENTRIES, Network, Spec, build

B, L, N, F, H = 2, 9, 3, 4, 2
PARTS = ["returns", "log_volatility", "logits"]


def spec_of(name: str, **options: Any) -> Spec:
    return Spec(name, d_model=8, n_layers=1, d_state=4, options=options)


NETWORKS = {name: build(spec_of(name), F, H) for name, entry in ENTRIES.items() if isinstance(entry, Network)}
SEQUENCES = [name for name, network in NETWORKS.items() if isinstance(network, SequenceNetwork)]
OTHERS = [name for name in NETWORKS if name not in SEQUENCES]


def header_of(spec: Spec) -> Header:
    scaler = Scaler(("a", "b", "c", "d"), (0.5,) * F, (2.0,) * F)
    return Header(spec, TrainConfig(), scaler, (1, 5), 60_000_000, Outcome(1, 0.5, 10, 5, 1, "d", "c"))


def outspoken(network: nn.Module) -> nn.Module:
    """In evaluation mode, with heads that say something."""
    torch.manual_seed(0)
    for parameter in network.heads.parameters():
        nn.init.normal_(parameter)
    return network.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """exported(name): the artifact of a network, the folder of its ONNX files, and what export_onnx said."""

    @cache
    def make(name: str) -> tuple[Artifact, Path, tuple[Graph, Graph]]:
        folder = tmp_path_factory.mktemp(name)
        weights = outspoken(build(spec_of(name), F, H)).state_dict()
        save_artifact(folder / "model.safetensors", header_of(spec_of(name)), weights)
        artifact = load_artifact(folder / "model.safetensors")
        return artifact, folder, export_onnx(artifact, folder, bars=L, assets=N)

    return make


def batch_of(b: int = B, bars: int = L, assets: int = N) -> Batch:
    torch.manual_seed(5)
    return Batch(torch.randn(b, bars, assets, F), torch.rand(b, bars, assets) < 0.8, torch.ones(b, bars))


def run(path: Path, batch: Batch, state: list[Tensor] | None = None, **more: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(path)
    names = [i.name for i in session.get_inputs() if i.name.startswith("state")]
    given = {"x": batch.x, "mask": batch.mask, **dict(zip(names, state or [], strict=True)), **more}
    return [torch.from_numpy(v) for v in session.run(None, {k: v.numpy() for k, v in given.items()})]


def outputs(forecast: Forecast) -> list[Tensor]:
    return [forecast.returns, forecast.log_volatility, forecast.logits]


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    assert [v.shape for v in found] == [v.shape for v in expected]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=TOLERANCE)


SOON = ("s4d", "mamba", "gru")  # an export takes seconds: the others are run with the slow tests
every_sequence = pytest.mark.parametrize(
    "name", [name if name in SOON else pytest.param(name, marks=pytest.mark.slow) for name in SEQUENCES]
)


@every_sequence
@pytest.mark.parametrize("b", [1, 4])
def test_the_sequence_graph_says_what_torch_says_for_any_batch(exported, name: str, b: int) -> None:
    artifact, folder, _ = exported(name)
    with torch.no_grad():
        expected = outputs(artifact.network(batch_of(b)))
    assert expected[0].std() > 0.1  # it does say something
    assert_close(run(folder / "sequence.onnx", batch_of(b)), expected)


@every_sequence
def test_the_step_graph_goes_on_from_a_state_of_torch_and_torch_from_its_own(exported, name: str) -> None:
    artifact, folder, _ = exported(name)
    network: Any = artifact.network
    batch, state, found = batch_of(), network.initial_state(B, N), []
    sizes = [len(part) for part in state]
    with torch.no_grad():
        expected = outputs(network(batch))
        for t in range(L):
            bar = batch.bars(t, t + 1)
            if t % 3 == 2:  # every third bar is torch's
                forecast, state = network.step(bar, state)
                found.append(outputs(forecast))
                continue
            said = run(folder / "step.onnx", bar, flat(state))
            found.append(said[: len(PARTS)])
            rest = iter(said[len(PARTS) :])
            state = tuple(tuple(next(rest) for _ in range(size)) for size in sizes)
    assert_close([torch.cat(parts, dim=1) for parts in zip(*found, strict=True)], expected)


@every_sequence
def test_graphs_are_plain_real_arithmetic_under_names_that_say_what_they_are(exported, name: str) -> None:
    artifact, folder, graphs = exported(name)
    state = flat(artifact.network.initial_state(1, N))
    for graph in graphs:
        proto = onnx.load(graph.path)
        text = str(proto.graph)
        assert not any(word in text for word in ("COMPLEX", "DFT", "ATen"))
        assert {opset.domain for opset in proto.opset_import} <= {"", "ai.onnx"} or "domain" not in text
        assert b"models/" not in graph.path.read_bytes()  # no trace of the program that wrote it
        assert (graph.bytes, graph.error <= TOLERANCE) == (graph.path.stat().st_size, True)
        step = graph.path.name == "step.onnx"
        assert [v.name for v in proto.graph.input][:2] == ["x", "mask"]
        assert len(proto.graph.input) == 2 + step * len(state)
        assert [v.name for v in proto.graph.output][:3] == PARTS
        assert len(proto.graph.output) == 3 + step * len(state)
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "sequence.onnx", "step.onnx"]


def test_a_file_says_of_itself_what_is_needed_to_use_it(exported) -> None:
    artifact, folder, _ = exported("s4d")
    with safe_open(folder / "model.safetensors", "pt") as file:
        header = json.loads(file.metadata()[KEY])
    for name, bars in (("step", L), ("sequence", L)):
        said = {p.key: p.value for p in onnx.load(folder / f"{name}.onnx").metadata_props}
        assert said.pop("graph") == name
        read = {key: json.loads(value) for key, value in said.items()}
        assert read == {
            "format": 1,
            "weights_sha256": header["weights"],
            "spec": header["spec"],
            "scaler": header["scaler"],
            "horizons": [1, 5],
            "bar_us": 60_000_000,
            "bars": bars,
            "assets": N,
        }
    assert artifact.header.spec == Spec(**header["spec"])


def test_twice_the_bars_are_no_more_nodes(tmp_path: Path) -> None:
    counts = []
    for bars in (8, 16):
        network = outspoken(sequence(spec_of("mamba"), F, H))
        counts.append(export_onnx(network, tmp_path, bars=bars)[1].nodes)
    assert counts[0] == counts[1] < 150


def test_gaps_weights_and_regimes_are_in_the_graphs_of_networks_that_have_them(tmp_path: Path) -> None:
    options = {"irregular": True, "pooling": "mean", "weights": "long_only", "regimes": True, "assets": N}
    network: Any = outspoken(sequence(spec_of("s4d"), F, H, **options))
    export_onnx(network, tmp_path, bars=L, assets=N)
    for gaps in (torch.ones(B, L), torch.arange(B * L).reshape(B, L) % 3 + 1.0):
        batch = Batch(batch_of().x, batch_of().mask, gaps)
        with torch.no_grad():
            forecast = network(batch)
        found = run(tmp_path / "sequence.onnx", batch, gaps=gaps)
        assert_close(found, [*outputs(forecast), forecast.weights, forecast.regime])


@pytest.mark.parametrize("name", OTHERS)
def test_networks_of_another_kind_are_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    for model in (NETWORKS[name], Artifact(header_of(spec_of(name)), NETWORKS[name])):
        with pytest.raises(ExportError, match="load_artifact"):
            export_onnx(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_layer_that_reads_the_future_is_refused(tmp_path: Path) -> None:
    network: Any = sequence(spec_of("lstm"), F, H)
    network.encoder.blocks[0].layer = Bidirectional(8, lambda: LSTM(8))
    with pytest.raises(ExportError, match="Bidirectional layer reads the future"):
        export_onnx(network, tmp_path)


@pytest.mark.parametrize("sizes", [{"bars": 0}, {"assets": 0}])
def test_no_bars_and_no_assets_are_refused(sizes: dict, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="give 1 or more of each"):
        export_onnx(sequence(spec_of("gru"), F, H), tmp_path, **sizes)


@pytest.mark.parametrize("wrong", ["step", "sequence"])
def test_a_graph_that_says_something_else_leaves_what_was_there(wrong: str, tmp_path: Path, monkeypatch) -> None:
    for name in ("step", "sequence"):
        (tmp_path / f"{name}.onnx").write_text("before")
    true_run = export._run

    def off(session: Any, *given: Any) -> list[Tensor]:
        found = true_run(session, *given)
        bad = ("state_0_0" in [i.name for i in session.get_inputs()]) == (wrong == "step")
        return [v + 1e-2 if bad else v for v in found]

    monkeypatch.setattr(export, "_run", off)
    with pytest.raises(ExportError, match=rf"{wrong}\.onnx is off by 0\.\d+ in onnxruntime, 0\.0001 is allowed"):
        export_onnx(outspoken(sequence(spec_of("gru"), F, H)), tmp_path, bars=3)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"step.onnx": "before", "sequence.onnx": "before"}


def test_not_a_number_is_never_within_the_tolerance(tmp_path: Path) -> None:
    network = outspoken(sequence(spec_of("gru"), F, H))
    with torch.no_grad():
        network.heads.bias[0, 0] = torch.nan
    with pytest.raises(ExportError, match="is off by nan"):
        export_onnx(network, tmp_path, bars=3)
    assert list(tmp_path.iterdir()) == []


def test_what_the_exporter_cannot_write_is_one_error_of_ours(tmp_path: Path, monkeypatch) -> None:
    network: Any = outspoken(sequence(spec_of("gru"), F, H))
    monkeypatch.setattr(
        type(network.encoder.blocks[0].layer), "step", lambda self, x, state: (torch.fft.fft(x).real, state)
    )
    with pytest.raises(ExportError, match=r"step\.onnx .*load_artifact"):
        export_onnx(network, tmp_path, bars=3)
    assert list(tmp_path.iterdir()) == []


def test_without_its_packages_the_error_says_which_extra(tmp_path: Path, monkeypatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ExportError, match=r"pip install 'nightgraph\[export\]'"):
        export_onnx(sequence(spec_of("gru"), F, H), tmp_path)


def test_the_network_itself_is_left_as_it_was(tmp_path: Path) -> None:
    network = outspoken(sequence(spec_of("s4d"), F, H)).train().double()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    export_onnx(network, tmp_path, bars=3)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Bomb:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("exploded"),)


def test_loading_a_model_never_unpickles(exported, tmp_path: Path, monkeypatch) -> None:
    _, folder, _ = exported("gru")

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, refused)
    assert load_artifact(folder / "model.safetensors").header.spec.model == "gru"
    monkeypatch.chdir(tmp_path)
    Path("model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DamagedArtifactError):
        load_artifact(Path("model.safetensors"))
    assert not Path("exploded").exists()
