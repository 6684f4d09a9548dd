"""The figures that the source articles claim (S4-44 to 47, MAM-29, TRAP-11), and our aims."""

from __future__ import annotations

from dataclasses import dataclass, field

NO_MEMORY = "out of memory"
# milliseconds of inference by bars, on the machine of the source articles (S4-45)
LENGTHS: dict[int, dict[str, float | str]] = {
    256: {"LSTM": 50, "Transformer": 15, "S4": 8},
    1024: {"LSTM": 200, "Transformer": 80, "S4": 12},
    4096: {"LSTM": 800, "Transformer": 1200, "S4": 18},
    16384: {"LSTM": 3200, "Transformer": NO_MEMORY, "S4": 25},
}
# GB by bars (S4-46)
MEMORY: dict[int, dict[str, float]] = {
    1024: {"Transformer": 2.1, "S4": 0.3},
    4096: {"Transformer": 8.4, "S4": 0.3},
    16384: {"Transformer": 33.6, "S4": 0.3},
}
# Sharpe, Sortino, maximum drawdown %, minutes of training, milliseconds of inference, on BTC by the hour (S4-44)
MODELS: dict[str, tuple[float, float, float, float, float]] = {
    "lstm": (1.18, 1.65, -24.1, 30, 50),
    "gru": (1.22, 1.72, -22.8, 25, 45),
    "transformer": (1.35, 1.95, -21.2, 120, 200),
    "s4d": (1.48, 2.15, -19.1, 15, 15),
    "s4": (1.52, 2.21, -18.3, 20, 18),
    "mamba": (1.55, 2.28, -17.8, 25, 20),
}
# description and Sharpe ratio of S4 and of its variants (S4-47)
ABLATION = {
    "s4_full": ("S4, 64 states", 1.52),
    "s4_no_hippo": ("random initial values for HiPPO", 1.31),
    "s4_fixed_step": ("Δ fixed", 1.44),
    "s4_32_states": ("32 states", 1.41),
    "s4_128_states": ("128 states", 1.53),
    "s4d_64_states": ("S4D, 64 states", 1.48),
}
# yearly return %, Sharpe, maximum drawdown %, sessions won %, on S&P 500 constituents over two years (MAM-29)
STOCKS: dict[str, tuple[float, float, float, float]] = {
    "lstm": (12.3, 0.89, -18.4, 52.1),
    "transformer": (15.7, 1.12, -15.2, 54.3),
    "mamba": (18.2, 1.34, -12.8, 56.7),
}


@dataclass(frozen=True)
class Aim:
    """An aim for the case of one group and number of bars.

    ``times``: by allocator mode, the smallest ratio of the best peer's figure to ours. ``at_most``: the greatest figure
    of ours, in ms or MiB. ``note`` is printed with the aim.
    """

    group: str
    bars: int
    peers: tuple[str, ...] = ()
    times: dict[str, float] = field(default_factory=dict)
    at_most: float | None = None
    note: str = ""


# the groups of cases
SCAN = "selective scan, forward and backward"
SCAN_FORWARD = "selective scan, forward"
BLOCK = "Mamba block, forward and backward"
LAYER = "layer, forward and backward"
EVALUATION = "evaluation, 4 layers, batch 1"
STEP = "one step, one layer, one sample"
BLOCK_MEMORY = "memory of a Mamba block"
LAYER_MEMORY = "memory of a layer"
SSM_PEERS = ("s5-pytorch", "textbook S4D")
_SCAN_AIM = {"keep": 15.0, "default": 40.0}
_NO_COMPILER = "≥ 6× without a compiler (default allocator ≥ 15×)"
AIMS = (
    *(Aim(SCAN, bars, ("mambapy",), _SCAN_AIM, note=_NO_COMPILER) for bars in (1024, 4096)),
    *(Aim(SCAN_FORWARD, bars, ("mambapy",), {"keep": 25.0}, note="≥ 12× without a compiler") for bars in (1024, 4096)),
    Aim(BLOCK, 1024, ("mambapy",), {"keep": 8.0}),
    Aim(BLOCK, 4096, ("mambapy",), {"keep": 15.0}),
    *(Aim(BLOCK_MEMORY, bars, ("mambapy",), {"default": 8.0}) for bars in (1024, 4096)),
    Aim(LAYER, 256, ("LSTM",), note="none set; reported only"),
    Aim(LAYER, 256, SSM_PEERS, note="none set; reported only"),
    Aim(LAYER, 1024, ("LSTM",), {"keep": 1.0}),
    Aim(LAYER, 4096, ("LSTM",), {"keep": 1.5}),
    *(Aim(LAYER, bars, SSM_PEERS, {"keep": 3.0}) for bars in (1024, 4096)),
    *(
        Aim(EVALUATION, bars, SSM_PEERS, {"keep": 2.0}, ms)
        for bars, ms in ((256, 8), (1024, 12), (4096, 18), (16384, None))
    ),
    Aim(STEP, 1, ("LSTMCell", "s5-pytorch", "mambapy"), at_most=0.010),
    Aim(LAYER_MEMORY, 16384, SSM_PEERS, at_most=150.0),
)
