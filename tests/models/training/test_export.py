"""ONNX files: they compute what torch computes, bar by bar and as a sequence, or they are not written.

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
from models.nets.sequence import SequenceNetwork, flatten_state
from models.nets.sequence_layers import build_sequence_network
from models.training import export
from models.training.artifact import METADATA_KEY, Artifact, FitResult, Header, load_artifact, save_artifact
from models.training.config import TrainConfig
from models.training.errors import DamagedArtifactError, ExportError
from models.training.export import MAX_ERROR, OnnxFile, export_onnx
from models.zoo import ENTRIES, Network, Spec, build

B, L, N, F, H = 2, 9, 3, 4, 2
HORIZONS = (1, 5)  # H of them
MINUTE_US = 60_000_000
OUTPUT_NAMES = ["returns", "log_volatility", "logits"]


def make_spec(name: str, **options: Any) -> Spec:
    return Spec(name, d_model=8, n_layers=1, d_state=4, options=options)


NETWORKS = {name: build(make_spec(name), F, H) for name, entry in ENTRIES.items() if isinstance(entry, Network)}
SEQUENCE_NETWORKS = [name for name, network in NETWORKS.items() if isinstance(network, SequenceNetwork)]
OTHER_NETWORKS = [name for name in NETWORKS if name not in SEQUENCE_NETWORKS]


def make_header(spec: Spec) -> Header:
    fit_result = FitResult(
        epochs=1,
        validation_loss=0.5,
        train_rows=10,
        validation_rows=5,
        parameters=1,
        data_hash="d",
        code_version="c",
    )
    return Header(
        spec=spec,
        config=TrainConfig(),
        scaler=Scaler(("a", "b", "c", "d"), centre=(0.5,) * F, scale=(2.0,) * F),
        horizons=HORIZONS,
        bar_us=MINUTE_US,
        fit_result=fit_result,
    )


def with_random_heads(network: nn.Module) -> nn.Module:
    """The network in evaluation mode with random parameters in its heads; the heads of an unfitted network are 0."""
    torch.manual_seed(0)
    for parameter in network.heads.parameters():
        nn.init.normal_(parameter)
    return network.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """exported(name): the artifact of a network, the folder of its ONNX files, and the result of export_onnx."""

    @cache
    def export_network(name: str) -> tuple[Artifact, Path, tuple[OnnxFile, OnnxFile]]:
        folder = tmp_path_factory.mktemp(name)
        parameters = with_random_heads(build(make_spec(name), F, H)).state_dict()
        save_artifact(folder / "model.safetensors", make_header(make_spec(name)), parameters)
        artifact = load_artifact(folder / "model.safetensors")
        return artifact, folder, export_onnx(artifact, folder, n_bars=L, n_assets=N)

    return export_network


def make_batch(b: int = B) -> Batch:
    """A batch of b chunks of random features, the same in every call; about a fifth of the bars is missing."""
    torch.manual_seed(5)
    return Batch(torch.randn(b, L, N, F), torch.rand(b, L, N) < 0.8, torch.ones(b, L))


def run_onnx(path: Path, batch: Batch, state: list[Tensor] | None = None, **extra_inputs: Tensor) -> list[Tensor]:
    """The outputs of the file in onnxruntime; ``state`` are the tensors of the inputs state_i_j."""
    runtime = onnxruntime.InferenceSession(path)
    names = [i.name for i in runtime.get_inputs() if i.name.startswith("state")]
    inputs = {"x": batch.x, "mask": batch.mask, **dict(zip(names, state or [], strict=True)), **extra_inputs}
    return [torch.from_numpy(v) for v in runtime.run(None, {k: v.numpy() for k, v in inputs.items()})]


def forecast_tensors(forecast: Forecast) -> list[Tensor]:
    return [forecast.returns, forecast.log_volatility, forecast.logits]


def assert_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    """The tensors have the same shapes and differ by at most MAX_ERROR."""
    assert [tensor.shape for tensor in actual] == [tensor.shape for tensor in expected]
    for actual_tensor, expected_tensor in zip(actual, expected, strict=True):
        torch.testing.assert_close(actual_tensor, expected_tensor, rtol=MAX_ERROR, atol=MAX_ERROR)


FAST_TO_TEST = ("s4d", "mamba", "gru")  # an export takes seconds, so the tests of the other networks are marked slow
for_every_sequence_network = pytest.mark.parametrize(
    "name", [name if name in FAST_TO_TEST else pytest.param(name, marks=pytest.mark.slow) for name in SEQUENCE_NETWORKS]
)


@for_every_sequence_network
@pytest.mark.parametrize("b", [1, 4])
def test_the_sequence_file_computes_what_torch_computes_for_any_batch(exported, name: str, b: int) -> None:
    """SSF-11."""
    artifact, folder, _ = exported(name)
    with torch.no_grad():
        expected = forecast_tensors(artifact.network(make_batch(b)))
    assert expected[0].std() > 0.1  # the forecasts are not all equal
    assert_close(run_onnx(folder / "sequence.onnx", make_batch(b)), expected)


@for_every_sequence_network
def test_torch_and_the_step_file_continue_from_each_others_states(exported, name: str) -> None:
    """MAM-32, S4-49: the step is a file that onnxruntime runs."""
    artifact, folder, _ = exported(name)
    network: Any = artifact.network
    batch = make_batch()
    state = network.initial_state(B, N)
    forecasts = []
    part_sizes = [len(part) for part in state]
    with torch.no_grad():
        expected = forecast_tensors(network(batch))
        for t in range(L):
            bar = batch.bars(t, t + 1)
            if t % 3 == 2:  # torch computes every third bar, onnxruntime the others
                forecast, state = network.step(bar, state)
                forecasts.append(forecast_tensors(forecast))
                continue
            results = run_onnx(folder / "step.onnx", bar, flatten_state(state))
            forecasts.append(results[: len(OUTPUT_NAMES)])
            tensors = iter(results[len(OUTPUT_NAMES) :])
            state = tuple(tuple(next(tensors) for _ in range(size)) for size in part_sizes)
    assert_close([torch.cat(parts, dim=1) for parts in zip(*forecasts, strict=True)], expected)


@for_every_sequence_network
def test_the_files_contain_real_arithmetic_with_named_inputs_and_outputs_and_no_source_paths(
    exported, name: str
) -> None:
    artifact, folder, files = exported(name)
    state = flatten_state(artifact.network.initial_state(1, N))
    for file in files:
        proto = onnx.load(file.path)
        text = str(proto.graph)
        assert not any(word in text for word in ("COMPLEX", "DFT", "ATen"))
        assert {opset.domain for opset in proto.opset_import} <= {"", "ai.onnx"} or "domain" not in text
        assert b"models/" not in file.path.read_bytes()  # no paths of source files
        assert file.n_bytes == file.path.stat().st_size
        assert file.max_error <= MAX_ERROR
        n_state_tensors = len(state) if file.path.name == "step.onnx" else 0
        input_names = [value.name for value in proto.graph.input]
        assert input_names[:2] == ["x", "mask"]
        assert len(input_names) == 2 + n_state_tensors
        output_names = [value.name for value in proto.graph.output]
        assert output_names[: len(OUTPUT_NAMES)] == OUTPUT_NAMES
        assert len(output_names) == len(OUTPUT_NAMES) + n_state_tensors
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "sequence.onnx", "step.onnx"]


def test_the_metadata_of_a_file_contains_what_is_needed_to_use_it(exported) -> None:
    artifact, folder, _ = exported("s4d")
    with safe_open(folder / "model.safetensors", "pt") as file:
        header = json.loads(file.metadata()[METADATA_KEY])
    for name in ("step", "sequence"):
        metadata = {p.key: p.value for p in onnx.load(folder / f"{name}.onnx").metadata_props}
        assert metadata.pop("graph") == name
        parsed = {key: json.loads(value) for key, value in metadata.items()}
        assert parsed == {
            "format": 1,
            "weights_sha256": header["weights"],
            "spec": header["spec"],
            "scaler": header["scaler"],
            "horizons": list(HORIZONS),
            "bar_us": MINUTE_US,
            "bars": L,
            "assets": N,
        }
    assert artifact.header.spec == Spec(**header["spec"])


def test_the_number_of_nodes_does_not_depend_on_the_number_of_bars(tmp_path: Path) -> None:
    """A recurrence is one operator. Mamba has about 100 nodes; an unrolled recurrence would have several per bar."""
    node_counts = []
    for n_bars in (8, 16):
        network = with_random_heads(build_sequence_network(make_spec("mamba"), F, H))
        _, sequence = export_onnx(network, tmp_path, n_bars=n_bars)
        node_counts.append(sequence.n_nodes)
    assert node_counts[0] == node_counts[1] < 150


def test_the_gaps_input_and_the_outputs_weights_and_regime_compute_what_torch_computes(tmp_path: Path) -> None:
    options = {"irregular": True, "pooling": "mean", "weights": "long_only", "regimes": True, "assets": N}
    network: Any = with_random_heads(build_sequence_network(make_spec("s4d"), F, H, **options))
    export_onnx(network, tmp_path, n_bars=L, n_assets=N)
    for gaps in (torch.ones(B, L), torch.arange(B * L).reshape(B, L) % 3 + 1.0):
        batch = Batch(make_batch().x, make_batch().mask, gaps)
        with torch.no_grad():
            forecast = network(batch)
        actual = run_onnx(tmp_path / "sequence.onnx", batch, gaps=gaps)
        assert_close(actual, [*forecast_tensors(forecast), forecast.weights, forecast.regime])


@pytest.mark.parametrize("name", OTHER_NETWORKS)
def test_the_error_for_a_network_that_is_no_sequence_network_names_an_alternative(name: str, tmp_path: Path) -> None:
    for model in (NETWORKS[name], Artifact(make_header(make_spec(name)), NETWORKS[name])):
        with pytest.raises(ExportError, match="load_artifact"):
            export_onnx(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_layer_that_reads_the_future_is_refused(tmp_path: Path) -> None:
    network: Any = build_sequence_network(make_spec("lstm"), F, H)
    network.encoder.blocks[0].layer = Bidirectional(8, lambda: LSTM(8))
    with pytest.raises(ExportError, match="Bidirectional layer reads the future"):
        export_onnx(network, tmp_path)


@pytest.mark.parametrize("sizes", [{"n_bars": 0}, {"n_assets": 0}])
def test_zero_bars_and_zero_assets_are_refused(sizes: dict, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="give 1 or more of each"):
        export_onnx(build_sequence_network(make_spec("gru"), F, H), tmp_path, **sizes)


@pytest.mark.parametrize("wrong_file", ["step", "sequence"])
def test_a_file_whose_results_differ_from_torch_is_refused_and_the_previous_files_remain(
    wrong_file: str, tmp_path: Path, monkeypatch
) -> None:
    for name in ("step", "sequence"):
        (tmp_path / f"{name}.onnx").write_text("before")
    original_run = export._run

    def run_with_error(runtime: Any, *inputs: Any) -> list[Tensor]:
        results = original_run(runtime, *inputs)
        is_step = "state_0_0" in [value.name for value in runtime.get_inputs()]
        is_wrong_file = is_step == (wrong_file == "step")
        return [result + 1e-2 if is_wrong_file else result for result in results]

    monkeypatch.setattr(export, "_run", run_with_error)
    with pytest.raises(
        ExportError, match=rf"{wrong_file}\.onnx differs from torch by 0\.\d+ in onnxruntime, 0\.0001 is allowed"
    ):
        export_onnx(with_random_heads(build_sequence_network(make_spec("gru"), F, H)), tmp_path, n_bars=3)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"step.onnx": "before", "sequence.onnx": "before"}


def test_a_forecast_of_nan_is_refused(tmp_path: Path) -> None:
    network = with_random_heads(build_sequence_network(make_spec("gru"), F, H))
    with torch.no_grad():
        network.heads.bias[0, 0] = torch.nan
    with pytest.raises(ExportError, match="differs from torch by nan"):
        export_onnx(network, tmp_path, n_bars=3)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_of_the_exporter_is_raised_as_an_export_error(tmp_path: Path, monkeypatch) -> None:
    network: Any = with_random_heads(build_sequence_network(make_spec("gru"), F, H))
    monkeypatch.setattr(
        type(network.encoder.blocks[0].layer), "step", lambda self, x, state: (torch.fft.fft(x).real, state)
    )
    with pytest.raises(ExportError, match=r"step\.onnx .*load_artifact"):
        export_onnx(network, tmp_path, n_bars=3)
    assert list(tmp_path.iterdir()) == []


def test_the_error_without_the_onnx_packages_names_the_extra_to_install(tmp_path: Path, monkeypatch) -> None:
    def raise_import_error(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", raise_import_error)
    with pytest.raises(ExportError, match=r"pip install 'nightgraph\[export\]'"):
        export_onnx(build_sequence_network(make_spec("gru"), F, H), tmp_path)


def test_an_export_does_not_modify_the_network(tmp_path: Path) -> None:
    network = with_random_heads(build_sequence_network(make_spec("s4d"), F, H)).train().double()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    export_onnx(network, tmp_path, n_bars=3)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Bomb:
    """An object that creates a file when it is unpickled."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path("exploded"),)


def test_loading_a_model_never_unpickles(exported, tmp_path: Path, monkeypatch) -> None:
    _, folder, _ = exported("gru")

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, fail)
    assert load_artifact(folder / "model.safetensors").header.spec.model == "gru"
    monkeypatch.chdir(tmp_path)
    Path("model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DamagedArtifactError):
        load_artifact(Path("model.safetensors"))
    assert not Path("exploded").exists()
