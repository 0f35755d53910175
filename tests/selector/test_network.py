import numpy as np
import pytest
import torch
from helpers.reference_selector import numpy_logits

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.selector.network import PointerSelector


def make_selector(**choices):
    torch.manual_seed(0)
    selector = PointerSelector(feature_dim=24, hidden_dim=16, **choices)
    with torch.no_grad():
        for parameter in selector.parameters():  # biases and norms start trivial; make every term count
            parameter.add_(0.1 * torch.randn_like(parameter))
    return selector.eval()


def make_moving(**choices):
    """A selector in which each pick moves the query."""
    return make_selector(**(choices or {"state_update": True}))


def make_inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 24, generator=generator), torch.randn(2, 7, 24, generator=generator)


@pytest.fixture
def selector():
    return make_selector()


@pytest.fixture
def moving(request):
    return make_moving(**getattr(request, "param", {}))


@pytest.fixture
def inputs():
    return make_inputs()


def test_parameter_counts():
    selector = PointerSelector()
    assert sum(p.numel() for p in selector.parameters()) == 525_824
    selector.freeze_backbone()
    assert sum(p.numel() for p in selector.parameters() if p.requires_grad) == 263_680


def test_logprobs_agree_with_numpy(selector, inputs):
    query_BD, candidates_BND = inputs
    pointers = [[[3, 0, 5], [0, 3, 5]], [[6, 2, 1], [1, 6, 2]]]
    logprobs_BG = selector.logprobs(query_BD, candidates_BND, torch.tensor(pointers)).detach().numpy()
    for b in range(2):
        logits_N = numpy_logits(selector, query_BD[b].double().numpy(), candidates_BND[b].double().numpy())
        for g in range(2):
            masked, expected = logits_N.copy(), 0.0
            for pick in pointers[b][g]:
                expected += masked[pick] - np.log(np.exp(masked).sum())
                masked[pick] = -100.0
            assert logprobs_BG[b, g] == pytest.approx(expected, abs=1e-5)


def test_a_gate_moves_the_query_with_each_pick_as_in_lever_plus(inputs):
    selector = make_selector(query_update_gate=True)
    candidates_ND = inputs[1][0].double().numpy()
    weights = {name: tensor.double().numpy() for name, tensor in selector.state_dict().items()}
    unit_NH = candidates_ND @ weights["input_proj.weight"].T @ weights["cand_proj.weight"].T
    unit_NH /= np.linalg.norm(unit_NH, axis=1, keepdims=True)
    hidden_H = selector.encode(*inputs).hidden_BH[0].detach().double().numpy()
    state_H = weights["query_proj.weight"] @ hidden_H
    state_H /= np.linalg.norm(state_H)
    picked, expected = [], 0.0
    for pick in (3, 0, 5):
        logits_N = unit_NH @ state_H / 0.1
        logits_N[picked] = -100.0
        expected += logits_N[pick] - np.log(np.exp(logits_N).sum())
        both = np.concatenate([state_H, unit_NH[pick]])
        gate_H = 1 / (1 + np.exp(-(weights["query_update_gate.weight"] @ both + weights["query_update_gate.bias"])))
        state_H = gate_H * state_H + (1 - gate_H) * unit_NH[pick]
        state_H /= np.linalg.norm(state_H)
        picked.append(pick)
    pointers_BGK = torch.tensor([[[3, 0, 5]], [[6, 2, 1]]])
    assert selector.logprobs(*inputs, pointers_BGK)[0, 0].item() == pytest.approx(expected, abs=1e-5)


def test_greedy_takes_the_largest_logit_not_yet_picked(selector, inputs):
    query_BD, candidates_BND = inputs
    picks = selector.greedy(query_BD, candidates_BND, 4).tolist()
    for b in range(2):
        logits_N = numpy_logits(selector, query_BD[b].double().numpy(), candidates_BND[b].double().numpy())
        assert picks[b] == np.argsort(-logits_N)[:4].tolist()


def test_untrained_selector_is_near_similarity_search():
    torch.manual_seed(0)
    selector = PointerSelector().eval()
    features = torch.nn.functional.normalize(torch.randn(101, 512), dim=-1)
    query, pool = features[:1], features[1:][None]
    pool = torch.cat([torch.nn.functional.normalize(query + 0.02 * torch.randn(1, 512), dim=-1)[None], pool], dim=1)
    assert selector.greedy(query, pool, 1).item() == 0


def test_padding_changes_nothing(selector, inputs):
    query_BD, candidates_BND = inputs
    padded_BND = torch.cat([candidates_BND, torch.full((2, 3, 24), 9.0)], dim=1)
    mask_BN = torch.tensor([[True] * 7 + [False] * 3] * 2)
    pointers_BGK = torch.tensor([[[3, 0]], [[6, 2]]])
    plain = selector.logprobs(query_BD, candidates_BND, pointers_BGK)
    torch.testing.assert_close(selector.logprobs(query_BD, padded_BND, pointers_BGK, mask_BN), plain, atol=1e-5, rtol=0)
    assert torch.equal(selector.greedy(query_BD, padded_BND, 7, mask_BN), selector.greedy(query_BD, candidates_BND, 7))


def test_beam_wide_enough_finds_the_best_ordered_pairs(selector, inputs):
    query_BD, candidates_BND = inputs
    beam = selector.beam(query_BD, candidates_BND, 2, 42)
    every = torch.tensor([[[i, j] for i in range(7) for j in range(7) if i != j]] * 2)
    logprobs_BG = selector.logprobs(query_BD, candidates_BND, every)
    best = logprobs_BG.argsort(dim=1, descending=True)[:, :5]
    assert torch.equal(beam.pointers_BWK[:, :5], every.gather(1, best[..., None].expand(-1, -1, 2)))
    torch.testing.assert_close(beam.logprobs_BW.exp().sum(1), torch.ones(2), atol=1e-5, rtol=0)
    assert selector.beam(query_BD, candidates_BND, 2, 100).pointers_BWK.shape == (2, 42, 2)  # no position twice


def test_sampling_follows_the_policy(selector, inputs):
    query_BD, candidates_BND = inputs
    generator = torch.Generator().manual_seed(0)
    draws = selector.sample(query_BD, candidates_BND, 2, 20_000, 1.0, [generator, generator])
    assert (draws[:, :, 0] != draws[:, :, 1]).all()
    pointer = draws[0].mode(0).values[None, None].expand(2, 1, 2)
    expected = selector.logprobs(query_BD, candidates_BND, pointer)[0, 0].exp().item()
    share = (draws[0] == pointer[0, 0]).all(1).double().mean().item()
    assert share == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 20_000) ** 0.5)


def test_one_candidate_left_has_probability_one(selector, inputs):
    query_BD, candidates_BND = inputs
    steps = selector.step_logprobs(query_BD, candidates_BND[:, :2], torch.tensor([[[0, 1]], [[1, 0]]]))
    torch.testing.assert_close(steps[:, 0, 1].max(-1).values, torch.zeros(2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shots", [0, 8])
def test_shots_that_the_pool_cannot_give(selector, inputs, shots):
    with pytest.raises(ParameterError, match=f"shots={shots} with a pool of 7"):
        selector.greedy(*inputs, shots)


def test_pointer_outside_the_pool(selector, inputs):
    with pytest.raises(ParameterError, match="outside the pool of 7"):
        selector.logprobs(*inputs, torch.tensor([[[7, 0]], [[1, 2]]]))


def test_heads_must_divide_the_hidden_size():
    with pytest.raises(ParameterError, match="n_heads=3"):
        PointerSelector(hidden_dim=16, n_heads=3)


def test_state_update_agrees_with_numpy(moving, inputs):
    """z_q = normalise(W_q (h_q + W_s sum of the picked h)), with h_q read back from the plain selector's own formula."""
    query_BD, candidates_BND = inputs
    pointers = [[[3, 0, 5], [0, 3, 5]], [[6, 2, 1], [1, 6, 2]]]
    logprobs_BG = moving.logprobs(query_BD, candidates_BND, torch.tensor(pointers)).detach().numpy()
    w = {name: tensor.detach().double().numpy() for name, tensor in moving.state_dict().items()}
    for b in range(2):
        hidden_NH = candidates_BND[b].double().numpy() @ w["input_proj.weight"].T
        z_NH = hidden_NH @ w["cand_proj.weight"].T
        z_NH /= np.linalg.norm(z_NH, axis=1, keepdims=True)
        hidden_H = moving.encode(query_BD, candidates_BND).hidden_BH[b].detach().double().numpy()
        for g in range(2):
            picked, expected, state_H = [], 0.0, hidden_H.copy()
            for pick in pointers[b][g]:
                z_H = w["query_proj.weight"] @ state_H
                logits_N = z_NH @ (z_H / np.linalg.norm(z_H)) / 0.1
                logits_N[picked] = -100.0
                expected += logits_N[pick] - np.log(np.exp(logits_N).sum())
                picked.append(pick)
                state_H = state_H + w["state_proj.weight"] @ hidden_NH[pick]
            assert logprobs_BG[b, g] == pytest.approx(expected, abs=1e-5)


def test_state_update_starts_where_it_changes_nothing(inputs):
    torch.manual_seed(0)
    plain = PointerSelector(feature_dim=24, hidden_dim=16).eval()
    torch.manual_seed(0)
    moving = PointerSelector(feature_dim=24, hidden_dim=16, state_update=True).eval()
    pointers_BGK = torch.tensor([[[3, 0]], [[6, 2]]])
    torch.testing.assert_close(moving.logprobs(*inputs, pointers_BGK), plain.logprobs(*inputs, pointers_BGK), atol=1e-6, rtol=0)
    assert torch.equal(moving.greedy(*inputs, 4), plain.greedy(*inputs, 4))


@pytest.mark.parametrize("moving", [{"state_update": True}, {"query_update_gate": True}], indirect=True)
def test_where_picks_move_the_query_search_and_sampling_follow_the_policy(moving, inputs):
    every = torch.tensor([[[i, j] for i in range(7) for j in range(7) if i != j]] * 2)
    logprobs_BG = moving.logprobs(*inputs, every)
    best = logprobs_BG.argsort(dim=1, descending=True)[:, :5]
    beam = moving.beam(*inputs, 2, 42)
    assert torch.equal(beam.pointers_BWK[:, :5], every.gather(1, best[..., None].expand(-1, -1, 2)))
    firsts = moving.greedy(*inputs, 1)
    after = moving.pick_logits(moving.encode(*inputs), firsts[:, None])[:, 0].argmax(1)
    assert torch.equal(moving.greedy(*inputs, 2)[:, 1], after)
    draws = moving.sample(*inputs, 2, 20_000, 1.0, [torch.Generator().manual_seed(0)] * 2)
    pointer = draws[0].mode(0).values
    expected = moving.logprobs(*inputs, pointer[None, None].expand(2, 1, 2))[0, 0].exp().item()
    share = (draws[0] == pointer).all(1).double().mean().item()
    assert share == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 20_000) ** 0.5)
