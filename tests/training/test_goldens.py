"""The golden tests notice mistakes: each fails when a sign, a mask or a bound of its formula is changed on purpose."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TESTS, PACKAGE = Path(__file__).parents[1], Path(__file__).parents[2] / "lever_mlflow"
GRADIENTS = "test_loss_and_gradient_of_every_parameter"
FILES = {"training.objectives": "training/test_objectives", "selector.network": "selector/test_network"}

# what the module's source says, what it says instead, and the tests that must fail then
OBJECTIVES = [
    (
        "-(weights_BG * logprobs_BG",
        "(weights_BG * logprobs_BG",
        {
            "test_rce_weights_follow_z_scored_rewards",
            "test_rce_on_raw_rewards",
            "test_rce_equal_rewards_weigh_all_trials_equally",
            "test_rce_gradient_pulls_towards_the_better_trial",
            GRADIENTS,
        },
    ),
    ("rewards_BG / temperature", "rewards_BG * temperature", {"test_rce_weights_follow_z_scored_rewards"}),
    (
        "(count_B1 - 1).clamp_min(1)",
        "count_B1.clamp_min(1)",
        {"test_rce_weights_follow_z_scored_rewards", "test_advantages_by_hand"},
    ),
    (".clamp(-3.0, 3.0)", "", {"test_rce_clamps_z_scores_at_three"}),
    (".where(std_B1 > _EQUAL, 0.0)", "", {"test_rce_rounding_errors_are_no_spread"}),
    ("start + (end - start)", "start - (end - start)", {"test_rce_temperature_is_linear"}),
    ("pair_BGG).sum(2) - (", "pair_BGG).sum(2) + (", {"test_rce_on_ranks"}),
    ("mask_BG[:, None, :] & mask_BG[:, :, None]", "torch.ones_like(mask_BG)[:, None]", {"test_rce_on_ranks"}),
    (".sum(1).mean()\n    return RceLoss", ".sum(1).sum()\n    return RceLoss", {"test_batch_is_the_mean_over_queries"}),
    (
        "(rewards_BG - mean_B1) / divisor",
        "(mean_B1 - rewards_BG) / divisor",
        {"test_advantages_by_hand", "test_advantages_by_scale"},
    ),
    ("clamp_min(0.1)", "clamp_min(0.01)", {"test_advantages_divide_by_at_least_a_tenth_and_stop_at_five"}),
    (".clamp(-5.0, 5.0)", "", {"test_advantages_divide_by_at_least_a_tenth_and_stop_at_five"}),
    (
        "_moments(rewards_BG.reshape(1, -1), mask_BG.reshape(1, -1))",
        "_moments(rewards_BG, mask_BG)",
        {"test_advantages_by_scale"},
    ),
    ('torch.ones_like(std_B1) if scale == "none" else ', "", {"test_advantages_by_scale"}),
    (
        ".clamp(-5.0, 5.0).where(mask_BG, 0.0)",
        ".clamp(-5.0, 5.0)",
        {"test_advantages_by_scale", "test_empty_group_gives_zero_and_no_nan"},
    ),
    ("<= _EQUAL", "< 0", {"test_degenerate_groups_have_no_advantage"}),
    ("(rewards_BG - mean_B1) / divisor", "rewards_BG / divisor", {"test_degenerate_groups_have_no_advantage"}),
    (
        "values_BG.where(mask_BG, 0.0).sum(1, keepdim=True)",
        "values_BG.sum(1, keepdim=True)",
        {"test_padding_is_ignored_everywhere"},
    ),
    ("(values_BG - mean_B1).where(mask_BG, 0.0)", "(values_BG - mean_B1)", {"test_padding_is_ignored_everywhere"}),
    (".masked_fill(~mask_BG, -torch.inf).softmax", ".softmax", {"test_padding_is_ignored_everywhere", GRADIENTS}),
    ("_masked_mean(surrogate_BG, mask_BG)", "surrogate_BG.mean()", {"test_padding_is_ignored_everywhere", GRADIENTS}),
    (
        "_masked_mean(distance_BG.exp() - 1.0 - distance_BG, mask_BG)",
        "(distance_BG.exp() - 1.0 - distance_BG).mean()",
        {"test_padding_is_ignored_everywhere"},
    ),
    (".masked_fill(~mask_BG, -torch.inf).amax", ".amax", {"test_padding_is_ignored_everywhere"}),
    (".masked_fill(~mask_BG, torch.inf).amin", ".amin", {"test_padding_is_ignored_everywhere"}),
    ("mask_BG.any(1).sum().clamp_min(1)", "mask_BG.any(1).sum()", {"test_empty_group_gives_zero_and_no_nan"}),
    ("mask_BG.any(1).sum().clamp_min(1)", "len(mask_BG)", {"test_groups_without_trials_leave_the_mean"}),
    ("(logprobs_BG - reference_BG)", "(logprobs_BG - old_logprobs_BG)", {"test_kl_is_measured_from_the_reference"}),
    ("(logprobs_BG - old_logprobs_BG)", "(old_logprobs_BG - logprobs_BG)", {"test_grpo_loss_by_hand", GRADIENTS}),
    (
        "policy_loss = -_masked_mean",
        "policy_loss = _masked_mean",
        {"test_grpo_loss_by_hand", "test_at_step_zero_ratio_is_one_and_kl_zero"},
    ),
    ("torch.minimum(ratio_BG", "torch.maximum(ratio_BG", {"test_grpo_loss_by_hand", "test_grpo_gradient_by_hand", GRADIENTS}),
    ("policy_loss + beta * kl", "policy_loss - beta * kl", {"test_grpo_loss_by_hand", "test_grpo_gradient_by_hand", GRADIENTS}),
    ("exp() - 1.0 - distance_BG", "exp() - 1.0 + distance_BG", {"test_grpo_loss_by_hand"}),
    (
        "clipped_BG = ratio_BG.clamp(low, high)",
        "clipped_BG = ratio_BG",
        {"test_grpo_loss_by_hand", "test_grpo_gradient_by_hand"},
    ),
    ("(advantages_BG < 0)", "(advantages_BG > 0)", {"test_grpo_loss_by_hand"}),
    ("(advantages_BG > 0)", "(advantages_BG < 0)", {"test_grpo_loss_by_hand"}),
    ("epsilon if epsilon_high is None else epsilon_high", "epsilon", {"test_a_higher_upper_bound_clips_later"}),
    ("log_ratio_BG = (", "log_ratio_BG = 0.001 + (", {"test_at_step_zero_ratio_is_one_and_kl_zero"}),
    (
        "(old_step_logprobs_BGKN - step_logprobs_BGKN)",
        "(step_logprobs_BGKN - old_step_logprobs_BGKN)",
        {"test_exact_kl_by_hand"},
    ),
    ("old_step_logprobs_BGKN.exp() * difference", "step_logprobs_BGKN.exp() * difference", {"test_exact_kl_by_hand"}),
    ("step_logprobs_BGKN).where(support_BGKN, 0.0)", "step_logprobs_BGKN)", {"test_exact_kl_with_padded_candidates_is_finite"}),
    ("entropy_BG = -terms", "entropy_BG = terms", {"test_entropy_by_hand"}),
    ("step_logprobs_BGKN.where(support_BGKN, 0.0)).where", "step_logprobs_BGKN).where", {"test_entropy_by_hand"}),
    ("_masked_mean(entropy_BG, _full(mask_BG, entropy_BG))", "entropy_BG.mean()", {"test_entropy_by_hand"}),
    ("if kl > high", "if kl >= high", {"test_adapted_beta"}),
    ("if kl < low", "if kl <= low", {"test_adapted_beta"}),
    ("else beta / _BETA", "else beta * _BETA", {"test_adapted_beta"}),
    ("weights_BG = (rewards_BG", "weights_BG = (-rewards_BG", {GRADIENTS}),
]
SELECTOR = [
    (
        "PICKED_LOGIT = -100.0",
        "PICKED_LOGIT = 0.0",
        {"test_logprobs_agree_with_numpy", "test_one_candidate_left_has_probability_one", GRADIENTS},
    ),
    ("LOGIT_TEMPERATURE = 0.1", "LOGIT_TEMPERATURE = 0.2", {"test_logprobs_agree_with_numpy"}),
    (
        "hidden_B1H + attended_B1H",
        "hidden_B1H - attended_B1H",
        {"test_logprobs_agree_with_numpy", "test_greedy_takes_the_largest_logit_not_yet_picked", GRADIENTS},
    ),
    (
        "z_BNH = F.normalize(self.cand_proj(hidden_BNH), dim=-1)",
        "z_BNH = self.cand_proj(hidden_BNH)",
        {"test_logprobs_agree_with_numpy"},
    ),
    (
        "F.normalize(self.query_proj(hidden_B1H), dim=-1)",
        "F.normalize(self.cand_proj(hidden_B1H), dim=-1)",
        {"test_logprobs_agree_with_numpy"},
    ),
    (".squeeze(3).sum(2)", ".squeeze(3).mean(2)", {"test_logprobs_agree_with_numpy", GRADIENTS}),
    ("descending=True, stable", "descending=False, stable", {"test_greedy_takes_the_largest_logit_not_yet_picked"}),
    ("key_padding_mask=padding_BN", "key_padding_mask=None", {"test_padding_changes_nothing"}),
    (
        "masked_fill(encoding.padding_BN[:, None], -torch.inf)",
        "masked_fill(encoding.padding_BN[:, None], 0.0)",
        {"test_padding_changes_nothing"},
    ),
    ("torch.eye(hidden_dim) + 0.01", "0.01", {"test_untrained_selector_is_near_similarity_search"}),
    ("hidden_B1H + chosen_BNP", "hidden_B1H - chosen_BNP", {"test_state_update_agrees_with_numpy"}),
    ("nn.init.zeros_(self.state_proj", "nn.init.ones_(self.state_proj", {"test_state_update_starts_where_it_changes_nothing"}),
]


def changed_module(name, old, new):
    """Returns a module of the package, made from its source with one place changed."""
    source = (PACKAGE / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{name}.py holds {source.count(old)} times {old!r}"
    module = ModuleType(f"lever_mlflow.{name}")
    exec(compile(source.replace(old, new), f"{name}.py", "exec"), module.__dict__)
    return module


def read_tests(name):
    """Reads a test module anew, so that it imports what it tests from the modules as they are now."""
    module = importlib.util.module_from_spec(
        spec := importlib.util.spec_from_file_location(Path(name).stem, TESTS / f"{name}.py")
    )
    spec.loader.exec_module(module)
    return module


def fails(module, name):
    """Tells whether a golden test fails with any of its parameters; a fixture ``x`` is what the module's ``make_x`` returns."""
    test = getattr(module, name)
    (names, cases), *_ = [mark.args for mark in getattr(test, "pytestmark", [])] or [((), [()])]
    names = (names,) if isinstance(names, str) else names
    for case in cases:
        parameters = dict(zip(names, case if isinstance(case, tuple) else (case,), strict=True))
        fixtures = {name: getattr(module, f"make_{name}")() for name in arguments(test) if name not in parameters}
        try:
            test(**parameters, **fixtures)
        except AssertionError:
            return True
    return False


def arguments(test):
    """Returns the names of a test's arguments."""
    return test.__code__.co_varnames[: test.__code__.co_argcount]


@pytest.mark.parametrize(
    ("name", "old", "new", "goldens"),
    [("training.objectives", *change) for change in OBJECTIVES] + [("selector.network", *change) for change in SELECTOR],
)
def test_a_change_is_noticed(monkeypatch, name, old, new, goldens):
    monkeypatch.setitem(sys.modules, f"lever_mlflow.{name}", changed_module(name, old, new))
    files = {FILES[name]: goldens - {GRADIENTS}, "training/test_gradients": goldens & {GRADIENTS}}
    survived = {test for file, tests in files.items() if tests for test in tests if not fails(read_tests(file), test)}
    assert not survived


def test_every_golden_passes_on_the_unchanged_modules():
    for name, changes in (("training.objectives", OBJECTIVES), ("selector.network", SELECTOR)):
        module = read_tests(FILES[name])
        for test in set().union(*(goldens for _, _, goldens in changes)) - {GRADIENTS}:
            assert not fails(module, test), test


def test_every_golden_of_the_objectives_has_been_seen_to_fail():
    goldens = {name for name in vars(read_tests("training/test_objectives")) if name.startswith("test_")}
    assert goldens == set().union(*(goldens for _, _, goldens in OBJECTIVES)) - {GRADIENTS}
