"""Link prediction: the split, the negatives, the EdgeBank baseline and the training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.graphs.events import Events, events_from_edges
from models.graphs.negatives import RECENT, STRATEGIES, EdgeBank, Negatives
from models.nets.link import LinkPredictor
from models.nets.temporal_graph import Sizes, preset
from models.training.errors import EmptyFoldError
from models.training.links import LinkConfig, Split, chronological, evaluate, fit_links, link_metrics
from models.training.losses import link_loss

CONFIG = LinkConfig(epochs=3, batch_events=50, lr=5e-3)


def make_messages(events: int = 1200, people: int = 40) -> Events:
    """One message a minute; a sender writes to one of two fixed friends in nine of ten messages."""
    rng = np.random.default_rng(0)
    src = rng.integers(0, people, events)
    friend = (src + np.where(rng.random(events) < 0.5, 7, 13)) % people
    anybody = (src + rng.integers(1, people, events)) % people
    dst = np.where(rng.random(events) < 0.9, friend, anybody)
    return events_from_edges(src, dst, 60 * np.arange(events))


def make_predictor() -> LinkPredictor:
    torch.manual_seed(0)
    return LinkPredictor(preset("tgn"), Sizes(16, 8, 16, longest=1e5))


def test_the_split_is_by_time_and_hides_new_nodes_from_training() -> None:
    split = chronological(make_messages(), CONFIG)
    assert (split.train_stop, split.validation_stop) == (840, 1020)
    assert not split.is_train[840:].any()
    trained = set(split.events.src[split.is_train]) | set(split.events.dst[split.is_train])
    ends = zip(split.events.src, split.events.dst, strict=True)
    assert split.is_new.tolist() == [not (u in trained and v in trained) for u, v in ends]
    assert 0 < split.is_new[840:].mean() < 0.5


def test_too_few_events_are_refused() -> None:
    with pytest.raises(EmptyFoldError, match="100 events do not split"):
        chronological(make_messages(100), CONFIG)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_negatives_are_no_events_of_their_batch_and_follow_their_strategy(strategy: str) -> None:
    """TGN-23, TGN-43."""
    events = make_messages()
    negatives = Negatives(events, 840)
    n = len(events.nodes)
    src, dst = negatives.sample(strategy, 900, 950, np.random.default_rng(0))
    event_pairs = events.src * n + events.dst
    negative_pairs = src * n + dst
    assert len(negative_pairs) == 50
    assert not np.isin(negative_pairs, event_pairs[900:950]).any()
    is_past = np.isin(negative_pairs, event_pairs[:900])
    is_trained = np.isin(negative_pairs, event_pairs[:840])
    if strategy == "historical":
        assert is_past.all()
        assert len(np.unique(negative_pairs)) == 50
    elif strategy == "inductive":
        since_training = np.setdiff1d(event_pairs[840:900], np.concatenate([event_pairs[:840], event_pairs[900:950]]))
        assert set(negative_pairs[is_past & ~is_trained]) == set(since_training)
    else:
        assert np.array_equal(src, events.src[900:950])


def test_temporal_negatives_are_recently_active_nodes() -> None:
    quiet, busy = np.arange(10, 20), np.arange(20, 25)
    dst = np.concatenate([np.repeat(quiet, 30), np.resize(busy, RECENT + 50)])
    events = events_from_edges(np.resize(np.arange(10), len(dst)), dst, np.arange(len(dst)))
    start = 300 + RECENT
    _, negative_dst = Negatives(events, 100).sample("temporal", start, start + 50, np.random.default_rng(0))
    assert {events.nodes[v] for v in negative_dst} == {str(v) for v in busy}


def test_edge_bank_remembers_pairs_and_forgets_outside_its_window() -> None:
    """TGN-43, TGN-44."""
    events = events_from_edges(np.array([0, 1, 0, 2]), np.array([1, 2, 2, 1]), np.array([0, 10, 20, 30]))
    src, dst = np.array([0, 1, 0, 2, 1]), np.array([1, 2, 2, 1, 0])
    assert EdgeBank(events).score(src, dst, 3).tolist() == [1, 1, 1, 0, 0]
    assert EdgeBank(events).score(src, dst, 1).tolist() == [1, 0, 0, 0, 0]
    assert EdgeBank(events, 20_000_000).score(src, dst, 3).tolist() == [0, 1, 1, 0, 0]


def test_a_perfect_scorer_gets_one_and_a_constant_scorer_one_half() -> None:
    split = chronological(make_messages(), CONFIG)
    span = (split.validation_stop, len(split.events))

    def perfect_score(src: np.ndarray, dst: np.ndarray, start: int, stop: int) -> np.ndarray:
        return ((src == split.events.src[start:stop]) & (dst == split.events.dst[start:stop])).astype(float)

    for strategy, metrics in link_metrics(perfect_score, split, span, CONFIG).items():
        assert metrics == {"ap": 1.0, "auc": 1.0, "new_ap": 1.0, "new_auc": 1.0}, strategy
    constant = link_metrics(lambda src, dst, start, stop: np.zeros(src.shape), split, span, CONFIG)
    assert constant["random"] == {"ap": 0.5, "auc": 0.5, "new_ap": 0.5, "new_auc": 0.5}


def test_friends_are_learned_and_the_same_seed_gives_the_same_metrics() -> None:
    """TGN-05, TGN-21: links are learned without labels."""
    split = chronological(make_messages(), CONFIG)
    results = []
    for _ in range(2):
        predictor = make_predictor()
        best = fit_links(predictor, split, CONFIG)
        span = (split.validation_stop, 1200)
        results.append((best, evaluate(predictor, split, span, CONFIG, ("random", "historical"))))
    assert results[0] == results[1]
    assert results[0][1]["random"]["ap"] > 0.85


def with_other_events_from(split: Split, start: int) -> Split:
    """The split with other partners and kinds from event ``start`` on; times and the training mask stay the same."""
    events = split.events
    rng = np.random.default_rng(4)
    is_changed = np.arange(len(events)) >= start
    dst = np.where(is_changed, (events.src + rng.integers(1, 39, len(events))) % 40, events.dst)
    kind = np.where(is_changed, 0, events.kind).astype(np.int8)
    return replace(split, events=replace(events, dst=dst, kind=kind))


def record_scores_of_fixed_pairs(predictor: LinkPredictor) -> list[torch.Tensor]:
    """A list that receives the scores of every later batch; the predictor then scores fixed pairs, whatever its batch
    contains."""
    scores: list[torch.Tensor] = []

    def use_fixed_pairs(_: object, arguments: tuple) -> tuple:
        state, u, v, t = arguments
        pairs = (torch.arange(end.numel()).view_as(end) * step % 40 for end, step in ((u, 1), (v, 3)))
        return (state, *pairs, t)

    predictor.register_forward_pre_hook(use_fixed_pairs)
    predictor.register_forward_hook(lambda _, __, output: scores.append(output.detach().clone()))
    return scores


def test_a_prediction_does_not_depend_on_the_events_of_its_batch() -> None:
    """Scores are identical when the events of their batch, and all later ones, are replaced."""
    split = chronological(make_messages(), CONFIG)
    results = []
    for events in (split, with_other_events_from(split, 1070)):
        predictor = make_predictor()
        scores = record_scores_of_fixed_pairs(predictor)
        evaluate(predictor, events, (1020, 1170), CONFIG, ("random",))
        results.append(scores)
    is_equal = [torch.equal(a, b) for a, b in zip(*results, strict=True)]
    assert is_equal == [True, True, False]  # the batches that begin at 1020, 1070 and 1120


def test_a_training_batch_is_predicted_before_its_events_are_inserted() -> None:
    """TGN-22: within an epoch the loss and the events of a batch affect the scores of the next batch first."""
    split = chronological(make_messages(), CONFIG)
    results = []
    first_changed = int(np.flatnonzero(split.is_train)[200])  # the first event of the fifth batch of 50
    for events in (split, with_other_events_from(split, first_changed)):
        predictor = make_predictor()
        scores = record_scores_of_fixed_pairs(predictor)
        fit_links(predictor, events, replace(CONFIG, epochs=1))
        results.append(scores[:6])
    is_equal = [torch.equal(a, b) for a, b in zip(*results, strict=True)]
    assert is_equal == [True] * 5 + [False]


def test_the_link_loss_of_zero_logits_is_log_two() -> None:
    assert float(link_loss(torch.zeros(2, 5))) == pytest.approx(np.log(2))
    assert float(link_loss(torch.tensor([[9.0], [-9.0]]))) < 1e-3
