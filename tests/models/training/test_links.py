"""Link prediction: the split, the negatives, the EdgeBank baseline and the training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.graphs.events import Events, events_from_edges
from models.graphs.negatives import N_RECENT_EVENTS, STRATEGIES, EdgeBank, Negatives
from models.nets.link import LinkPredictor
from models.nets.temporal_graph import Sizes, preset
from models.training.errors import EmptyFoldError
from models.training.links import (
    LinkConfig,
    LinkMetrics,
    Split,
    evaluate,
    fit_links,
    link_metrics,
    split_chronologically,
)
from models.training.losses import link_loss

CONFIG = LinkConfig(epochs=3, batch_events=50, lr=5e-3)


N_EVENTS = 1200
N_PEOPLE = 40
TRAIN_STOP = 840  # 70 % of the events
VALIDATION_STOP = 1020  # 85 % of the events


def make_messages(n_events: int = N_EVENTS) -> Events:
    """One message a minute; a sender writes to one of two fixed friends in nine of ten messages."""
    rng = np.random.default_rng(0)
    src = rng.integers(0, N_PEOPLE, n_events)
    friend = (src + np.where(rng.random(n_events) < 0.5, 7, 13)) % N_PEOPLE
    other_person = (src + rng.integers(1, N_PEOPLE, n_events)) % N_PEOPLE
    dst = np.where(rng.random(n_events) < 0.9, friend, other_person)
    return events_from_edges(src, dst, 60 * np.arange(n_events))


def make_predictor() -> LinkPredictor:
    """An unfitted predictor with the same weights in every call."""
    torch.manual_seed(0)
    return LinkPredictor(preset("tgn"), Sizes(16, 8, 16, longest=1e5))


def test_the_split_is_by_time_and_hides_new_nodes_from_training() -> None:
    split = split_chronologically(make_messages(), CONFIG)
    assert (split.train_stop, split.validation_stop) == (TRAIN_STOP, VALIDATION_STOP)
    assert not split.is_train[TRAIN_STOP:].any()
    train_nodes = set(split.events.src[split.is_train]) | set(split.events.dst[split.is_train])
    pairs = zip(split.events.src, split.events.dst, strict=True)
    assert split.is_new.tolist() == [not {src, dst} <= train_nodes for src, dst in pairs]
    assert 0 < split.is_new[TRAIN_STOP:].mean() < 0.5


def test_too_few_events_are_refused() -> None:
    with pytest.raises(EmptyFoldError, match="100 events do not split"):
        split_chronologically(make_messages(100), CONFIG)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_negatives_follow_their_strategy_and_are_never_events_of_their_batch(strategy: str) -> None:
    """TGN-23, TGN-43."""
    events = make_messages()
    negatives = Negatives(events, TRAIN_STOP)
    n_nodes = len(events.nodes)
    src, dst = negatives.sample(strategy, 900, 950, np.random.default_rng(0))
    event_pairs = events.src * n_nodes + events.dst
    negative_pairs = src * n_nodes + dst
    assert len(negative_pairs) == 50
    assert not np.isin(negative_pairs, event_pairs[900:950]).any()
    is_past = np.isin(negative_pairs, event_pairs[:900])
    is_trained = np.isin(negative_pairs, event_pairs[:TRAIN_STOP])
    if strategy == "historical":
        assert is_past.all()
        assert len(np.unique(negative_pairs)) == 50
    elif strategy == "inductive":
        since_training = np.setdiff1d(
            event_pairs[TRAIN_STOP:900], np.concatenate([event_pairs[:TRAIN_STOP], event_pairs[900:950]])
        )
        assert set(negative_pairs[is_past & ~is_trained]) == set(since_training)
    else:
        assert np.array_equal(src, events.src[900:950])


def test_temporal_negatives_are_recently_active_nodes() -> None:
    quiet = np.arange(10, 20)
    busy = np.arange(20, 25)
    dst = np.concatenate([np.repeat(quiet, 30), np.resize(busy, N_RECENT_EVENTS + 50)])
    events = events_from_edges(np.resize(np.arange(10), len(dst)), dst, np.arange(len(dst)))
    start = 300 + N_RECENT_EVENTS
    _, negative_dst = Negatives(events, 100).sample("temporal", start, start + 50, np.random.default_rng(0))
    assert {events.nodes[v] for v in negative_dst} == {str(v) for v in busy}


def test_edge_bank_remembers_pairs_and_forgets_outside_its_window() -> None:
    """TGN-43, TGN-44."""
    events = events_from_edges(np.array([0, 1, 0, 2]), np.array([1, 2, 2, 1]), np.array([0, 10, 20, 30]))
    src = np.array([0, 1, 0, 2, 1])
    dst = np.array([1, 2, 2, 1, 0])
    assert EdgeBank(events).score(src, dst, 3).tolist() == [1, 1, 1, 0, 0]
    assert EdgeBank(events).score(src, dst, 1).tolist() == [1, 0, 0, 0, 0]
    assert EdgeBank(events, 20_000_000).score(src, dst, 3).tolist() == [0, 1, 1, 0, 0]


def test_a_perfect_scorer_gets_one_and_a_constant_scorer_one_half() -> None:
    split = split_chronologically(make_messages(), CONFIG)
    test_range = (split.validation_stop, len(split.events))

    def perfect_score(src: np.ndarray, dst: np.ndarray, start: int, stop: int) -> np.ndarray:
        return ((src == split.events.src[start:stop]) & (dst == split.events.dst[start:stop])).astype(float)

    for strategy, metrics in link_metrics(perfect_score, split, test_range, CONFIG).items():
        assert metrics == {"ap": 1.0, "auc": 1.0, "new_ap": 1.0, "new_auc": 1.0}, strategy
    constant = link_metrics(lambda src, dst, start, stop: np.zeros(src.shape), split, test_range, CONFIG)
    assert constant["random"] == {"ap": 0.5, "auc": 0.5, "new_ap": 0.5, "new_auc": 0.5}


def test_friends_are_learned_and_the_same_seed_gives_the_same_metrics() -> None:
    """TGN-05, TGN-21: links are learned without labels."""
    split = split_chronologically(make_messages(), CONFIG)

    def fit_and_evaluate() -> tuple[float, LinkMetrics]:
        predictor = make_predictor()
        best_precision = fit_links(predictor, split, CONFIG)
        test_range = (VALIDATION_STOP, N_EVENTS)
        return best_precision, evaluate(predictor, split, test_range, CONFIG, ("random", "historical"))

    best_precision, metrics = fit_and_evaluate()
    assert fit_and_evaluate() == (best_precision, metrics)
    assert metrics["random"]["ap"] > 0.85  # a constant score has 0.5


def with_other_events_from(split: Split, start: int) -> Split:
    """The split with other receivers and kinds from event ``start`` on; times and the training mask stay the same."""
    events = split.events
    rng = np.random.default_rng(4)
    is_changed = np.arange(len(events)) >= start
    other_dst = (events.src + rng.integers(1, N_PEOPLE - 1, len(events))) % N_PEOPLE
    dst = np.where(is_changed, other_dst, events.dst)
    kind = np.where(is_changed, 0, events.kind).astype(np.int8)
    return replace(split, events=replace(events, dst=dst, kind=kind))


def record_scores_of_fixed_pairs(predictor: LinkPredictor) -> list[torch.Tensor]:
    """A list to which every later call of the predictor appends its scores.

    The predictor then scores fixed pairs, so its scores depend on its state and not on the pairs of its batch.
    """
    scores: list[torch.Tensor] = []

    def use_fixed_pairs(_: object, arguments: tuple) -> tuple:
        state, u, v, t = arguments
        fixed_u = torch.arange(u.numel()).view_as(u) % N_PEOPLE
        fixed_v = torch.arange(v.numel()).view_as(v) * 3 % N_PEOPLE
        return (state, fixed_u, fixed_v, t)

    predictor.register_forward_pre_hook(use_fixed_pairs)
    predictor.register_forward_hook(lambda _, __, output: scores.append(output.detach().clone()))
    return scores


def test_a_prediction_does_not_depend_on_the_events_of_its_batch() -> None:
    """Scores are identical when the events of their batch, and all later ones, are replaced."""
    split = split_chronologically(make_messages(), CONFIG)
    changed_split = with_other_events_from(split, VALIDATION_STOP + CONFIG.batch_events)

    def scores_of_three_batches(split: Split) -> list[torch.Tensor]:
        predictor = make_predictor()
        scores = record_scores_of_fixed_pairs(predictor)
        event_range = (VALIDATION_STOP, VALIDATION_STOP + 3 * CONFIG.batch_events)
        evaluate(predictor, split, event_range, CONFIG, ("random",))
        return scores

    pairs = zip(scores_of_three_batches(split), scores_of_three_batches(changed_split), strict=True)
    assert [torch.equal(original, changed) for original, changed in pairs] == [True, True, False]


def test_a_training_batch_is_predicted_before_its_events_are_inserted() -> None:
    """TGN-22: within an epoch the loss and the events of a batch affect the scores of the next batch first."""
    split = split_chronologically(make_messages(), CONFIG)
    first_event_of_fifth_batch = int(np.flatnonzero(split.is_train)[4 * CONFIG.batch_events])
    changed_split = with_other_events_from(split, first_event_of_fifth_batch)

    def scores_of_six_batches(split: Split) -> list[torch.Tensor]:
        predictor = make_predictor()
        scores = record_scores_of_fixed_pairs(predictor)
        fit_links(predictor, split, replace(CONFIG, epochs=1))
        return scores[:6]

    pairs = zip(scores_of_six_batches(split), scores_of_six_batches(changed_split), strict=True)
    assert [torch.equal(original, changed) for original, changed in pairs] == [True] * 5 + [False]


def test_the_link_loss_of_zero_logits_is_log_two() -> None:
    assert float(link_loss(torch.zeros(2, 5))) == pytest.approx(np.log(2))


def test_the_link_loss_of_confident_correct_logits_is_near_zero() -> None:
    assert float(link_loss(torch.tensor([[9.0], [-9.0]]))) < 1e-3  # log(1 + exp(−9)) is 1.2e-4
