"""Link prediction: the split, the negatives, the baseline and the learning."""

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
from models.training.links import LinkConfig, Split, chronological, evaluate, figures, fit_links
from models.training.losses import link_loss

CONFIG = LinkConfig(epochs=3, batch_events=50, lr=5e-3)


def habits(events: int = 1200, people: int = 40) -> Events:
    """Everybody writes to one of two friends nine times out of ten, once a minute."""
    draw = np.random.default_rng(0)
    src = draw.integers(0, people, events)
    friend = (src + np.where(draw.random(events) < 0.5, 7, 13)) % people
    anybody = (src + draw.integers(1, people, events)) % people
    dst = np.where(draw.random(events) < 0.9, friend, anybody)
    return events_from_edges(src, dst, 60 * np.arange(events))


def predictor() -> LinkPredictor:
    torch.manual_seed(0)
    return LinkPredictor(preset("tgn"), Sizes(16, 8, 16, longest=1e5))


def test_the_split_is_by_time_and_hides_new_nodes_from_learning() -> None:
    split = chronological(habits(), CONFIG)
    assert (split.train_stop, split.validation_stop) == (840, 1020)
    assert not split.learned[840:].any()
    known = set(split.events.src[split.learned]) | set(split.events.dst[split.learned])
    ends = zip(split.events.src, split.events.dst, strict=True)
    assert split.new.tolist() == [not (u in known and v in known) for u, v in ends]
    assert 0 < split.new[840:].mean() < 0.5


def test_too_few_events_are_refused() -> None:
    with pytest.raises(EmptyFoldError, match="100 events do not split"):
        chronological(habits(100), CONFIG)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_negatives_do_not_happen_in_their_batch_and_keep_their_rule(strategy: str) -> None:
    events = habits()
    negatives, n = Negatives(events, 840), len(events.nodes)
    src, dst = negatives.sample(strategy, 900, 950, np.random.default_rng(0))
    keys, chosen = events.src * n + events.dst, src * n + dst
    assert len(chosen) == 50
    assert not np.isin(chosen, keys[900:950]).any()
    met, trained = np.isin(chosen, keys[:900]), np.isin(chosen, keys[:840])
    if strategy == "historical":
        assert met.all()
        assert len(np.unique(chosen)) == 50
    elif strategy == "inductive":
        fresh = np.setdiff1d(keys[840:900], np.concatenate([keys[:840], keys[900:950]]))
        assert set(chosen[met & ~trained]) == set(fresh)
    else:
        assert np.array_equal(src, events.src[900:950])


def test_temporal_negatives_are_of_those_who_are_about() -> None:
    quiet, busy = np.arange(10, 20), np.arange(20, 25)
    dst = np.concatenate([np.repeat(quiet, 30), np.resize(busy, RECENT + 50)])
    events = events_from_edges(np.resize(np.arange(10), len(dst)), dst, np.arange(len(dst)))
    start = 300 + RECENT
    _, chosen = Negatives(events, 100).sample("temporal", start, start + 50, np.random.default_rng(0))
    assert {events.nodes[v] for v in chosen} == {str(v) for v in busy}


def test_edge_bank_remembers_pairs_and_forgets_outside_its_window() -> None:
    events = events_from_edges(np.array([0, 1, 0, 2]), np.array([1, 2, 2, 1]), np.array([0, 10, 20, 30]))
    src, dst = np.array([0, 1, 0, 2, 1]), np.array([1, 2, 2, 1, 0])
    assert EdgeBank(events).score(src, dst, 3).tolist() == [1, 1, 1, 0, 0]
    assert EdgeBank(events).score(src, dst, 1).tolist() == [1, 0, 0, 0, 0]
    assert EdgeBank(events, 20_000_000).score(src, dst, 3).tolist() == [0, 1, 1, 0, 0]


def test_a_perfect_and_a_blind_scorer_get_one_and_a_half() -> None:
    split = chronological(habits(), CONFIG)
    span = (split.validation_stop, len(split.events))

    def knowing(src: np.ndarray, dst: np.ndarray, start: int, stop: int) -> np.ndarray:
        return ((src == split.events.src[start:stop]) & (dst == split.events.dst[start:stop])).astype(float)

    for strategy, found in figures(knowing, split, span, CONFIG).items():
        assert found == {"ap": 1.0, "auc": 1.0, "new_ap": 1.0, "new_auc": 1.0}, strategy
    blind = figures(lambda src, dst, start, stop: np.zeros(src.shape), split, span, CONFIG)
    assert blind["random"] == {"ap": 0.5, "auc": 0.5, "new_ap": 0.5, "new_auc": 0.5}


def test_habits_are_learned_and_found_again_with_the_same_seed() -> None:
    split, found = chronological(habits(), CONFIG), []
    for _ in range(2):
        model = predictor()
        best = fit_links(model, split, CONFIG)
        found.append((best, evaluate(model, split, (split.validation_stop, 1200), CONFIG, ("random", "historical"))))
    assert found[0] == found[1]
    assert found[0][1]["random"]["ap"] > 0.85


def from_then_on_others(split: Split, start: int) -> Split:
    """The split with other partners and kinds from event ``start`` on; times and what is learned from stay."""
    events, draw = split.events, np.random.default_rng(4)
    late = np.arange(len(events)) >= start
    dst = np.where(late, (events.src + draw.integers(1, 39, len(events))) % 40, events.dst)
    kind = np.where(late, 0, events.kind).astype(np.int8)
    return replace(split, events=replace(events, dst=dst, kind=kind))


def asked_for_the_same(model: LinkPredictor) -> list[torch.Tensor]:
    """Scores of every batch to come, in which the model is asked for the same pairs whatever the events are."""
    scores: list[torch.Tensor] = []

    def fixed(_: object, asked: tuple) -> tuple:
        state, u, v, t = asked
        pairs = (torch.arange(end.numel()).view_as(end) * step % 40 for end, step in ((u, 1), (v, 3)))
        return (state, *pairs, t)

    model.register_forward_pre_hook(fixed)
    model.register_forward_hook(lambda _, __, found: scores.append(found.detach().clone()))
    return scores


def test_a_prediction_knows_nothing_of_its_own_batch() -> None:
    """Scores stay to the bit when the events of their batch, and all after them, are others."""
    split, found = chronological(habits(), CONFIG), []
    for told in (split, from_then_on_others(split, 1070)):
        model = predictor()
        scores = asked_for_the_same(model)
        evaluate(model, told, (1020, 1170), CONFIG, ("random",))
        found.append(scores)
    same = [torch.equal(one, other) for one, other in zip(*found, strict=True)]
    assert same == [True, True, False]  # of 1020, 1070 and 1120 on


def test_what_is_learned_from_a_batch_is_predicted_before_it_is_taken_in() -> None:
    """The same of the batches of an epoch: losses of one batch show in the next one's scores, its events too."""
    split, found = chronological(habits(), CONFIG), []
    changed = int(np.flatnonzero(split.learned)[200])  # with which the fifth batch of 50 begins
    for told in (split, from_then_on_others(split, changed)):
        model = predictor()
        scores = asked_for_the_same(model)
        fit_links(model, told, replace(CONFIG, epochs=1))
        found.append(scores[:6])
    same = [torch.equal(one, other) for one, other in zip(*found, strict=True)]
    assert same == [True] * 5 + [False]


def test_the_loss_of_no_opinion_is_log_two() -> None:
    assert float(link_loss(torch.zeros(2, 5))) == pytest.approx(np.log(2))
    assert float(link_loss(torch.tensor([[9.0], [-9.0]]))) < 1e-3
