"""Networks as two ONNX files, which are compared with torch in onnxruntime before they are saved.

    step.onnx      x (b, 1, n, f), mask (b, 1, n), state_i_j → forecast, next_state_i_j
    sequence.onnx  x (b, l, n, f), mask (b, l, n) → forecast, computed from the initial state

Glossary: b chunks, l bars, n assets, f features. The caller of a file chooses b; n and l are fixed in the file.

The outputs of a forecast are returns, log_volatility and logits, and weights and regime if the network has them, with
the shapes and units of a Forecast. A network that reads time gaps also has the input gaps (b, l). state_i_j is the j-th
tensor of the i-th part of the network's state; its first axis is b · n. Inputs are scaled features: the file's metadata
contains the scaler, spec, horizons, bar_us and the sha256 of the weights, each as JSON.

Values that depend on the weights alone are computed by torch and stored as constants; the other operators are real
arithmetic in float32. Each recurrence is one Scan operator. Required packages: the extra ``export``.
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

MAX_ERROR = 1e-4  # difference from torch, divided by torch's largest value where that is above 1
CHECKED_BATCH_SIZES = (1, 3)
N_CHECKED_STEPS = 4  # successive bars
FORECAST_OUTPUTS = ("returns", "log_volatility", "logits", "weights", "regime")
USE_MODEL_FILE = "use model.safetensors with models.training.artifact.load_artifact instead"
FORBIDDEN_OPERATORS = ("DFT", "STFT")  # complex arithmetic


@dataclass(frozen=True)
class OnnxFile:
    """A saved ONNX file.

    ``n_nodes`` includes the nodes inside of operators such as Scan. ``n_bytes`` is the size of the file. ``max_error``
    is the largest difference from torch in the check, in the unit of MAX_ERROR.
    """

    path: Path
    n_nodes: int
    n_bytes: int
    max_error: float


def export_onnx(
    model: Artifact | nn.Module, folder: Path, *, bars: int = 64, assets: int = 1, tolerance: float = MAX_ERROR
) -> tuple[OnnxFile, OnnxFile]:
    """Writes step.onnx and sequence.onnx of a network to ``folder``; returns the two in this order.

    ``bars`` is l of the sequence, ``assets`` is n of both. After a failure the previous files remain. Raises
    ExportError for a network that has no ONNX form, and when onnxruntime's results differ from torch's by more than
    ``tolerance``.
    """
    network = _exportable(model)
    if bars < 1 or assets < 1:
        raise ExportError(f"{bars} bars of {assets} assets; give 1 or more of each")
    folder.mkdir(parents=True, exist_ok=True)
    metadata = _metadata(model, network) | {"bars": json.dumps(bars), "assets": json.dumps(assets)}
    forms = {"step": _Step(network), "sequence": _Sequence(network)}
    partials = {name: folder / f"{name}.onnx.{os.getpid()}.partial" for name in forms}
    files = {}
    try:
        for name, form in forms.items():
            partial = partials[name]
            n_nodes = _write(form, partial, 1 if name == "step" else bars, assets, metadata | {"graph": name})
            if name == "step":
                error = _check_step(network, partial, assets)
            else:
                error = _check_sequence(network, partial, bars, assets)
            if not error <= tolerance:
                raise ExportError(
                    f"{name}.onnx is off by {error:.2g} in onnxruntime, {tolerance:g} is allowed; {USE_MODEL_FILE}"
                )
            files[name] = OnnxFile(folder / f"{name}.onnx", n_nodes, partial.stat().st_size, error)
        for name, partial in partials.items():
            partial.replace(files[name].path)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
    return files["step"], files["sequence"]


class _Form(nn.Module):
    """A network as a function of tensors: (x, mask, gaps or None, state) → a tuple of tensors named in ``outputs``."""

    def __init__(self, network: SequenceNetwork) -> None:
        super().__init__()
        self.network = network
        self.part_sizes = [len(part) for part in network.initial_state(1, 1)]  # tensors in each part of the state
        heads = network.heads
        has_output = {"weights": heads.weights_kind is not None, "regime": heads.regimes is not None}
        self.outputs = [name for name in FORECAST_OUTPUTS if has_output.get(name, True)]

    @property
    def state_names(self) -> list[str]:
        return [f"state_{i}_{j}" for i, size in enumerate(self.part_sizes) for j in range(size)]

    def _batch(self, x: Tensor, mask: Tensor, gaps: Tensor | None) -> Batch:
        return Batch(x, mask, x.new_ones(x.shape[:2]) if gaps is None else gaps)

    def _output_tensors(self, forecast: Forecast) -> tuple[Tensor, ...]:
        return tuple(getattr(forecast, name) for name in self.outputs)


class _Sequence(_Form):
    """The forecast of all bars from the initial state; ``state`` is empty."""

    @property
    def state_names(self) -> list[str]:
        return []

    def forward(self, x: Tensor, mask: Tensor, gaps: Tensor | None, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self._output_tensors(self.network(self._batch(x, mask, gaps)))


class _Step(_Form):
    """The forecast of one bar and the next state; ``state`` are the tensors of the network's state, part by part."""

    def forward(self, x: Tensor, mask: Tensor, gaps: Tensor | None, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tensors = iter(state)
        nested_state = tuple(tuple(next(tensors) for _ in range(size)) for size in self.part_sizes)
        forecast, next_state = self.network.step(self._batch(x, mask, gaps), nested_state)
        return (*self._output_tensors(forecast), *(tensor for part in next_state for tensor in part))


def _exportable(model: Artifact | nn.Module) -> SequenceNetwork:
    """A copy of the network on the CPU, in float32 and evaluation mode. Raises ExportError if it has no ONNX form."""
    network: Any = model.network if isinstance(model, Artifact) else model
    kind = type(network).__name__
    if isinstance(network, Estimator):
        raise ExportError(f"{kind} is fitted in one go and has no layers to write as ONNX; {USE_MODEL_FILE}")
    if isinstance(model, Artifact):
        spec = model.header.spec
        if spec.model in ENTRIES and (graph := graph_of(spec)) is not None:
            raise ExportError(f"the {spec.model} network reads the {graph} graph of every bar; {USE_MODEL_FILE}")
    if not isinstance(network, SequenceNetwork):
        raise ExportError(
            f"{kind} is not a sequence network (models.nets.sequence), only those have an ONNX form; {USE_MODEL_FILE}"
        )
    for block in network.encoder.blocks:
        layer = block.layer
        if not getattr(layer, "causal", True) or not hasattr(layer, "step"):
            raise ExportError(f"a {type(layer).__name__} layer reads the future and has no step; fit one that does not")
    return copy.deepcopy(network).cpu().float().eval()


def _metadata(model: Artifact | nn.Module, network: SequenceNetwork) -> dict[str, str]:
    """The metadata of both files: name → JSON text."""
    metadata: dict[str, Any] = {"format": 1, "weights_sha256": weights_hash(network.state_dict())}
    if isinstance(model, Artifact):
        header = model.header
        metadata |= {"spec": header.spec.to_json(), "scaler": header.scaler.to_dict()}
        metadata |= {"horizons": list(header.horizons), "bar_us": header.bar_us}
    return {name: json.dumps(value, sort_keys=True) for name, value in metadata.items()}


def _write(form: _Form, path: Path, bars: int, assets: int, metadata: dict[str, str]) -> int:
    """Writes the form as an ONNX file to ``path`` and returns its number of nodes.

    Raises ExportError if torch's exporter fails and if the file would need complex or custom operators.
    """
    onnx = _package("onnx")
    network = form.network
    # the example inputs have b = 2, because torch's exporter would treat a size of 1 as fixed
    state = [t.clone() for part in network.initial_state(2, assets) for t in part] if form.state_names else []
    x, mask, gaps = _random_bars(network, 2, bars, assets)
    input_names = ["x", "mask", *(["gaps"] if network.encoder.irregular else []), *form.state_names]
    output_names = [*form.outputs, *(f"next_{name}" for name in form.state_names)]
    try:
        with torch.no_grad(), _silence_exporter():
            program = _traced_program(form, (x, mask, gaps, tuple(state)), assets)
            exported = torch.onnx.export(
                program, input_names=input_names, output_names=output_names, dynamo=True, verbose=False
            )
        proto = exported.model_proto  # type: ignore[union-attr]
    except Exception as exc:  # the exporter raises whatever its parts raise
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
    for part in (proto, proto.graph, *nodes, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]  # source locations, with paths of this machine
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    return len(nodes)


def _traced_program(form: _Form, inputs: tuple[Any, ...], assets: int) -> torch.export.ExportedProgram:
    """The form as traced by torch, with constants in place of all values that depend on the weights alone.

    ``inputs`` are x, mask, gaps (or None) and the tuple of the state's tensors.
    """
    b = torch.export.Dim("b", min=1)
    by_chunk = {0: b}
    by_asset = {0: assets * b if assets > 1 else b}
    _, _, gaps, state = inputs
    shapes = (by_chunk, by_chunk, None if gaps is None else by_chunk, tuple(by_asset for _ in state))
    traced = torch.export.export(form, inputs, dynamic_shapes=shapes, strict=True).module()
    _inline_autocast_blocks(traced)
    _fold_constants(traced)
    return torch.export.export(traced, inputs, dynamic_shapes=shapes, strict=False)


def _inline_autocast_blocks(traced: Any) -> None:
    """Replaces every block that switches autocast off by its contents; in float32 the block has no effect."""
    graph = traced.graph
    for node in graph.find_nodes(op="call_function", target=torch.ops.higher_order.wrap_with_autocast):
        block = node.args[4].target
        inner = getattr(traced, block)
        for attribute in inner.graph.find_nodes(op="get_attr"):
            setattr(traced, f"{block}_{attribute.target}", attrgetter(attribute.target)(inner))
            attribute.target = f"{block}_{attribute.target}"
        arguments = dict(zip(inner.graph.find_nodes(op="placeholder"), node.args[5:], strict=True))
        with graph.inserting_before(node):
            results = graph.graph_copy(inner.graph, arguments)
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])


def _fold_constants(traced: Any) -> None:
    """Replaces every value that does not depend on an input by a constant."""
    constants: dict[Any, Any] = {}
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            value = attrgetter(node.target)(traced)
            if isinstance(value, Tensor):
                constants[node] = value.detach()
        elif all(n in constants for n in node.all_input_nodes) and _is_pure(node):
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), constants.__getitem__)
            constants[node] = node.target(*args, **kwargs)
    for k, (node, value) in enumerate(constants.items()):
        if node.op == "call_function" and isinstance(value, Tensor) and any(n not in constants for n in node.users):
            traced.register_buffer(f"worked_out_{k}", value.clone())
            with traced.graph.inserting_before(node):
                node.replace_all_uses_with(traced.graph.get_attr(f"worked_out_{k}"))
    traced.graph.eliminate_dead_code()
    traced.recompile()


def _is_pure(node: Any) -> bool:
    """True if neither the node's call nor a call that uses its result changes a tensor in place."""
    calls = [n.target for n in (node, *node.users) if isinstance(n.target, torch._ops.OpOverload)]
    return (node.target is getitem or node.target in calls) and not any(c._schema.is_mutable for c in calls)


def _check_step(network: SequenceNetwork, path: Path, assets: int) -> float:
    """The largest error over N_CHECKED_STEPS successive bars; onnxruntime and torch each continue their own state."""
    form = _Step(network)
    session = _session(path)
    errors = []
    for b in CHECKED_BATCH_SIZES:
        onnx_state = torch_state = [tensor for part in network.initial_state(b, assets) for tensor in part]
        for _ in range(N_CHECKED_STEPS):
            x, mask, gaps = _random_bars(network, b, 1, assets)
            with torch.no_grad():
                expected = form(x, mask, gaps, tuple(torch_state))
            actual = _run(session, x, mask, gaps, dict(zip(form.state_names, onnx_state, strict=True)))
            errors.append(_error(actual, expected))
            onnx_state = actual[len(form.outputs) :]
            torch_state = list(expected[len(form.outputs) :])
    return float(np.max(errors))


def _check_sequence(network: SequenceNetwork, path: Path, bars: int, assets: int) -> float:
    """The largest error over ``bars`` bars from the initial state."""
    form = _Sequence(network)
    session = _session(path)
    errors = []
    for b in CHECKED_BATCH_SIZES:
        x, mask, gaps = _random_bars(network, b, bars, assets)
        with torch.no_grad():
            expected = form(x, mask, gaps, ())
        errors.append(_error(_run(session, x, mask, gaps, {}), expected))
    return float(np.max(errors))


def _random_bars(network: SequenceNetwork, b: int, bars: int, n: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """x (b, bars, n, f), NaN where the mask is False; mask (b, bars, n); gaps (b, bars), None if it reads no gaps.

    The random numbers depend on b alone.
    """
    generator = torch.Generator().manual_seed(b)
    mask = torch.rand(b, bars, n, generator=generator) < 0.9
    x = torch.randn(b, bars, n, network.encoder.embedding.n_features, generator=generator)
    gaps = torch.randint(1, 4, (b, bars), generator=generator).float() if network.encoder.irregular else None
    return torch.where(mask[..., None], x, torch.nan), mask, gaps


def _session(path: Path) -> Any:
    """An onnxruntime session of the file on the CPU."""
    onnxruntime = _package("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: it warns about every constant that it folds
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _run(session: Any, x: Tensor, mask: Tensor, gaps: Tensor | None, state: dict[str, Tensor]) -> list[Tensor]:
    """The outputs of the file in onnxruntime; ``state`` by input name."""
    inputs = {"x": x, "mask": mask, **state}
    if gaps is not None:
        inputs["gaps"] = gaps
    outputs = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return [torch.from_numpy(output) for output in outputs]


def _error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest error of a tensor: its largest absolute difference ÷ max(1, its largest expected absolute value).

    NaN if a value is NaN. Empty tensors are ignored.
    """
    errors = [
        float((a - e).abs().max() / e.abs().max().clamp(min=1))
        for a, e in zip(actual, expected, strict=True)
        if e.numel()
    ]
    return float(np.max(errors))


def _iterate_nodes(graph: Any) -> Iterator[Any]:
    """The nodes of an ONNX graph, including the nodes of the graphs inside its operators."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _iterate_nodes(attribute.g)


def _complex_types(graph: Any) -> list[str]:
    """The names of the complex types of the values in an ONNX graph."""
    types = _package("onnx").TensorProto
    used = {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
    used |= {v.data_type for v in graph.initializer}
    return [types.DataType.Name(kind) for kind in used & {types.COMPLEX64, types.COMPLEX128}]


def _package(name: str) -> Any:
    """The module ``name``, which needs the extra ``export``. Raises ExportError if a package is missing."""
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
