"""Networks as two ONNX files, which are compared with torch in onnxruntime before they are saved.

    step.onnx      x (b, 1, n, f), mask (b, 1, n), state_i_j → forecast, next_state_i_j
    sequence.onnx  x (b, l, n, f), mask (b, l, n) → forecast, computed from the initial state

Glossary: b chunks, l bars, n assets, f features. The caller of a file chooses b; n and l are fixed in the file.

The forecast is several outputs with the shapes and units of models.nets.forecast.Forecast: returns, log_volatility and
logits, then weights (the portfolio weights) and regime if the network has them. A network that reads time gaps also has
the input gaps (b, l). A network's state is a tuple of parts, and a part is a tuple of tensors: state_i_j is tensor j of
part i; its first axis is b · n. The mask is True where an asset has a bar. x contains scaled features.

Metadata of a file, each value as JSON except graph: format, weights_sha256 (of the network's parameters), bars (l),
assets (n), graph ("step" or "sequence"). The files of an Artifact also contain spec, scaler, horizons and bar_us.

Values that depend on the network's parameters alone are computed by torch and stored as constants. The operators in a
file are real arithmetic in float32. Each recurrence is one Scan operator. Required packages: the extra ``export``.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter, getitem
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.nets.estimators import Estimator
from models.nets.forecast import Batch, Forecast
from models.nets.sequence import SequenceNetwork
from models.training.artifact import Artifact, weights_hash
from models.training.errors import ExportError
from models.zoo import ENTRIES, graph_of

MAX_ERROR = 1e-4  # largest allowed value of _error
CHECKED_BATCH_SIZES = (1, 3)
N_CHECKED_STEPS = 4  # steps of the check, each from the state of the step before
FORECAST_OUTPUTS = ("returns", "log_volatility", "logits", "weights", "regime")
USE_MODEL_FILE = "use model.safetensors with models.training.artifact.load_artifact instead"
FORBIDDEN_OPERATORS = ("DFT", "STFT")  # complex arithmetic


@dataclass(frozen=True)
class OnnxFile:
    """A saved ONNX file.

    ``n_nodes`` includes the nodes inside operators such as Scan. ``n_bytes`` is the size of the file. ``max_error`` is
    the largest result of ``_error`` in the check against torch.
    """

    path: Path
    n_nodes: int
    n_bytes: int
    max_error: float


def export_onnx(
    model: Artifact | nn.Module, folder: Path, *, n_bars: int = 64, n_assets: int = 1, tolerance: float = MAX_ERROR
) -> tuple[OnnxFile, OnnxFile]:
    """Writes step.onnx and sequence.onnx of a network to ``folder``; returns the two in this order.

    ``n_bars`` is l of the sequence, ``n_assets`` is n of both. If a check fails, the previous files remain. Raises
    ExportError for a size below 1, for a network that cannot be written as ONNX, for a missing package, and if the
    error of onnxruntime's results (see ``_error``) exceeds ``tolerance`` or is NaN.
    """
    network = _exportable(model)
    if n_bars < 1 or n_assets < 1:
        raise ExportError(f"{n_bars} bars of {n_assets} assets; give 1 or more of each")
    folder.mkdir(parents=True, exist_ok=True)
    metadata = _metadata(model, network) | {"bars": json.dumps(n_bars), "assets": json.dumps(n_assets)}
    functions = {"step": _Step(network), "sequence": _Sequence(network)}
    partials = {name: folder / f"{name}.onnx.{os.getpid()}.partial" for name in functions}
    files = {}
    try:
        for name, function in functions.items():
            partial = partials[name]
            n_nodes = _write(function, partial, 1 if name == "step" else n_bars, n_assets, metadata | {"graph": name})
            if name == "step":
                error = _check_step(network, partial, n_assets)
            else:
                error = _check_sequence(network, partial, n_bars, n_assets)
            if not error <= tolerance:
                raise ExportError(
                    f"{name}.onnx differs from torch by {error:.2g} in onnxruntime, {tolerance:g} is allowed; "
                    f"{USE_MODEL_FILE}"
                )
            files[name] = OnnxFile(folder / f"{name}.onnx", n_nodes, partial.stat().st_size, error)
        for name, partial in partials.items():
            partial.replace(files[name].path)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
    return files["step"], files["sequence"]


class _TensorFunction(nn.Module):
    """A network as a function of tensors: (x, mask, gaps or None, state tensors) → a tuple of tensors.

    The result begins with the tensors of the forecast, in the order of ``forecast_names``.
    """

    def __init__(self, network: SequenceNetwork) -> None:
        super().__init__()
        self.network = network
        self.part_sizes = [len(part) for part in network.initial_state(1, 1)]  # tensors in each part of the state
        heads = network.heads
        has_optional = {"weights": heads.weights_kind is not None, "regime": heads.regimes is not None}
        self.forecast_names = [name for name in FORECAST_OUTPUTS if has_optional.get(name, True)]

    @property
    def state_names(self) -> list[str]:
        """The names of the inputs state_i_j."""
        return [f"state_{i}_{j}" for i, size in enumerate(self.part_sizes) for j in range(size)]

    def _batch(self, x: Tensor, mask: Tensor, gaps: Tensor | None) -> Batch:
        return Batch(x, mask, x.new_ones(x.shape[:2]) if gaps is None else gaps)

    def _forecast_tensors(self, forecast: Forecast) -> tuple[Tensor, ...]:
        return tuple(getattr(forecast, name) for name in self.forecast_names)


class _Sequence(_TensorFunction):
    """The forecast of all bars, computed from the initial state; the argument ``state`` is an empty tuple."""

    @property
    def state_names(self) -> list[str]:
        return []

    def forward(self, x: Tensor, mask: Tensor, gaps: Tensor | None, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self._forecast_tensors(self.network(self._batch(x, mask, gaps)))


class _Step(_TensorFunction):
    """The tensors of the forecast of one bar, then the tensors of the state after the bar.

    ``state`` are the tensors of the state before the bar, part by part.
    """

    def forward(self, x: Tensor, mask: Tensor, gaps: Tensor | None, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tensors = iter(state)
        nested_state = tuple(tuple(next(tensors) for _ in range(size)) for size in self.part_sizes)
        forecast, next_state = self.network.step(self._batch(x, mask, gaps), nested_state)
        return (*self._forecast_tensors(forecast), *(tensor for part in next_state for tensor in part))


def _exportable(model: Artifact | nn.Module) -> SequenceNetwork:
    """A copy of the network on the CPU, in float32 and evaluation mode.

    Raises ExportError for a network that is not a SequenceNetwork, and for one that reads a graph or the future.
    """
    network: Any = model.network if isinstance(model, Artifact) else model
    class_name = type(network).__name__
    if isinstance(network, Estimator):
        raise ExportError(f"{class_name} is fitted in one go and has no layers to write as ONNX; {USE_MODEL_FILE}")
    if isinstance(model, Artifact):
        spec = model.header.spec
        if spec.model in ENTRIES and (asset_graph := graph_of(spec)) is not None:
            raise ExportError(f"the {spec.model} network reads the {asset_graph} graph of every bar; {USE_MODEL_FILE}")
    if not isinstance(network, SequenceNetwork):
        raise ExportError(
            f"{class_name} is not a sequence network (models.nets.sequence), only those have an ONNX form; "
            f"{USE_MODEL_FILE}"
        )
    for block in network.encoder.blocks:
        layer = block.layer
        if not getattr(layer, "causal", True) or not hasattr(layer, "step"):
            raise ExportError(f"a {type(layer).__name__} layer reads the future and has no step; fit one that does not")
    return copy.deepcopy(network).cpu().float().eval()


def _metadata(model: Artifact | nn.Module, network: SequenceNetwork) -> dict[str, str]:
    """The metadata that both files share: name → JSON text."""
    metadata: dict[str, Any] = {"format": 1, "weights_sha256": weights_hash(network.state_dict())}
    if isinstance(model, Artifact):
        header = model.header
        metadata |= {"spec": header.spec.to_json(), "scaler": header.scaler.to_dict()}
        metadata |= {"horizons": list(header.horizons), "bar_us": header.bar_us}
    return {name: json.dumps(value, sort_keys=True) for name, value in metadata.items()}


def _write(function: _TensorFunction, path: Path, n_bars: int, n_assets: int, metadata: dict[str, str]) -> int:
    """Writes the function as an ONNX file to ``path`` and returns its number of nodes.

    Raises ExportError if torch's exporter fails, and if the file would need complex or custom operators.
    """
    onnx = _import_package("onnx")
    network = function.network
    # the example inputs have b = 2, because torch's exporter would treat a size of 1 as fixed
    state = [t.clone() for part in network.initial_state(2, n_assets) for t in part] if function.state_names else []
    x, mask, gaps = _random_bars(network, 2, n_bars, n_assets)
    input_names = ["x", "mask", *(["gaps"] if network.encoder.irregular else []), *function.state_names]
    output_names = [*function.forecast_names, *(f"next_{name}" for name in function.state_names)]
    try:
        with torch.no_grad(), _silence_exporter():
            program = _traced_program(function, (x, mask, gaps, tuple(state)), n_assets)
            exported = torch.onnx.export(
                program, input_names=input_names, output_names=output_names, dynamo=True, verbose=False
            )
        proto = exported.model_proto  # type: ignore[union-attr]
    except Exception as exc:  # the exporter documents no error type
        reason = str(exc).strip().partition("\n")[0]
        raise ExportError(
            f"{metadata['graph']}.onnx cannot be made of this network ({reason}); {USE_MODEL_FILE}"
        ) from exc
    nodes = list(_iterate_nodes(proto.graph))
    invalid = {n.op_type for n in nodes if n.op_type in FORBIDDEN_OPERATORS or n.domain}
    invalid |= set(_complex_types(proto.graph))
    if invalid:
        names = ", ".join(sorted(invalid))
        raise ExportError(f"{metadata['graph']}.onnx would need {names}, not plain real arithmetic; {USE_MODEL_FILE}")
    for element in (proto, proto.graph, *nodes, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del element.metadata_props[:]  # source locations, with paths of this machine
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    return len(nodes)


def _traced_program(function: _TensorFunction, inputs: tuple[Any, ...], n_assets: int) -> torch.export.ExportedProgram:
    """The function as traced by torch, with constants in place of all values that depend on the parameters alone.

    ``inputs`` are x, mask, gaps (or None) and the tuple of the state's tensors.
    """
    b = torch.export.Dim("b", min=1)
    b_axis = {0: b}  # the first axis of an input, whose size the caller of the file chooses
    state_axis = {0: n_assets * b if n_assets > 1 else b}
    _, _, gaps, state = inputs
    shapes = (b_axis, b_axis, None if gaps is None else b_axis, tuple(state_axis for _ in state))
    traced = torch.export.export(function, inputs, dynamic_shapes=shapes, strict=True).module()
    _inline_autocast_blocks(traced)
    _fold_constants(traced)
    return torch.export.export(traced, inputs, dynamic_shapes=shapes, strict=False)


def _inline_autocast_blocks(traced: Any) -> None:
    """Replaces every block that switches autocast off by its contents; in float32 the block has no effect."""
    fx_graph = traced.graph
    for node in fx_graph.find_nodes(op="call_function", target=torch.ops.higher_order.wrap_with_autocast):
        block = node.args[4].target
        inner = getattr(traced, block)
        for attribute in inner.graph.find_nodes(op="get_attr"):
            setattr(traced, f"{block}_{attribute.target}", attrgetter(attribute.target)(inner))
            attribute.target = f"{block}_{attribute.target}"
        arguments = dict(zip(inner.graph.find_nodes(op="placeholder"), node.args[5:], strict=True))
        with fx_graph.inserting_before(node):
            results = fx_graph.graph_copy(inner.graph, arguments)
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])


def _fold_constants(traced: Any) -> None:
    """Replaces every tensor that does not depend on an input by a constant, in the graph of ``traced``."""
    constants: dict[Any, Any] = {}
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            value = attrgetter(node.target)(traced)
            if isinstance(value, Tensor):
                constants[node] = value.detach()
        elif all(n in constants for n in node.all_input_nodes) and _can_compute_now(node):
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), constants.__getitem__)
            constants[node] = node.target(*args, **kwargs)
    for k, (node, value) in enumerate(constants.items()):
        if node.op == "call_function" and isinstance(value, Tensor) and any(n not in constants for n in node.users):
            traced.register_buffer(f"worked_out_{k}", value.clone())
            with traced.graph.inserting_before(node):
                node.replace_all_uses_with(traced.graph.get_attr(f"worked_out_{k}"))
    traced.graph.eliminate_dead_code()
    traced.recompile()


def _can_compute_now(node: Any) -> bool:
    """True if the node calls an operator or getitem, and neither it nor a user of its result changes a tensor."""
    calls = [n.target for n in (node, *node.users) if isinstance(n.target, torch._ops.OpOverload)]
    return (node.target is getitem or node.target in calls) and not any(c._schema.is_mutable for c in calls)


def _check_step(network: SequenceNetwork, path: Path, n_assets: int) -> float:
    """The largest ``_error`` over N_CHECKED_STEPS successive steps, for each of CHECKED_BATCH_SIZES; NaN if one is NaN.

    The states differ from step to step; the bar is the same in all steps of a batch size. onnxruntime and torch each
    continue from their own state.
    """
    function = _Step(network)
    runtime = _load_in_onnxruntime(path)
    errors = []
    for b in CHECKED_BATCH_SIZES:
        onnx_state = torch_state = [tensor for part in network.initial_state(b, n_assets) for tensor in part]
        for _ in range(N_CHECKED_STEPS):
            x, mask, gaps = _random_bars(network, b, 1, n_assets)
            with torch.no_grad():
                expected = function(x, mask, gaps, tuple(torch_state))
            actual = _run(runtime, x, mask, gaps, dict(zip(function.state_names, onnx_state, strict=True)))
            errors.append(_error(actual, expected))
            onnx_state = actual[len(function.forecast_names) :]
            torch_state = list(expected[len(function.forecast_names) :])
    return float(np.max(errors))


def _check_sequence(network: SequenceNetwork, path: Path, n_bars: int, n_assets: int) -> float:
    """The largest ``_error`` of a sequence of ``n_bars`` random bars over CHECKED_BATCH_SIZES; NaN if one is NaN."""
    function = _Sequence(network)
    runtime = _load_in_onnxruntime(path)
    errors = []
    for b in CHECKED_BATCH_SIZES:
        x, mask, gaps = _random_bars(network, b, n_bars, n_assets)
        with torch.no_grad():
            expected = function(x, mask, gaps, ())
        errors.append(_error(_run(runtime, x, mask, gaps, {}), expected))
    return float(np.max(errors))


def _random_bars(network: SequenceNetwork, b: int, n_bars: int, n_assets: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Random x (b, n_bars, n_assets, f), mask (b, n_bars, n_assets) bool, and gaps (b, n_bars).

    x is NaN where the mask is False. gaps is None if the network reads no gaps. The generator is seeded with b in every
    call, so two calls with the same arguments return the same values.
    """
    generator = torch.Generator().manual_seed(b)
    mask = torch.rand(b, n_bars, n_assets, generator=generator) < 0.9
    x = torch.randn(b, n_bars, n_assets, network.encoder.embedding.n_features, generator=generator)
    gaps = torch.randint(1, 4, (b, n_bars), generator=generator).float() if network.encoder.irregular else None
    return torch.where(mask[..., None], x, torch.nan), mask, gaps


def _load_in_onnxruntime(path: Path) -> Any:
    """An onnxruntime.InferenceSession of the file on the CPU."""
    onnxruntime = _import_package("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: it warns about every constant that it folds
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _run(runtime: Any, x: Tensor, mask: Tensor, gaps: Tensor | None, state: dict[str, Tensor]) -> list[Tensor]:
    """The outputs of a file that ``_load_in_onnxruntime`` has loaded; ``state``: input name → tensor."""
    inputs = {"x": x, "mask": mask, **state}
    if gaps is not None:
        inputs["gaps"] = gaps
    outputs = runtime.run(None, {name: value.numpy() for name, value in inputs.items()})
    return [torch.from_numpy(output) for output in outputs]


def _error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest over the tensors of max |actual − expected| ÷ max(1, max |expected|).

    NaN if a value is NaN. Empty tensors are ignored.
    """
    errors = [
        float((a - e).abs().max() / e.abs().max().clamp(min=1))
        for a, e in zip(actual, expected, strict=True)
        if e.numel()
    ]
    return float(np.max(errors))


def _iterate_nodes(onnx_graph: Any) -> Iterator[Any]:
    """The nodes of an ONNX graph, including the nodes of the graphs inside its operators."""
    for node in onnx_graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _iterate_nodes(attribute.g)


def _complex_types(onnx_graph: Any) -> list[str]:
    """The names of the complex number types of the values in an ONNX graph; empty if all values are real."""
    types = _import_package("onnx").TensorProto
    used = {v.type.tensor_type.elem_type for v in (*onnx_graph.input, *onnx_graph.output, *onnx_graph.value_info)}
    used |= {v.data_type for v in onnx_graph.initializer}
    return [types.DataType.Name(code) for code in used & {types.COMPLEX64, types.COMPLEX128}]


def _import_package(name: str) -> Any:
    """Imports and returns the package ``name``. Raises ExportError if a package of the extra ``export`` is missing."""
    import importlib

    try:
        importlib.import_module("onnxscript")
        return importlib.import_module(name)
    except ImportError as exc:
        raise ExportError("ONNX needs packages that are not installed; pip install 'nightgraph[export]'") from exc


@contextlib.contextmanager
def _silence_exporter() -> Iterator[None]:
    """Suppresses the log messages and warnings of torch's exporter."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
