"""What each step does inside its MLflow run: call the stage, log what it yields, leave its artifacts."""

from lever_mlflow.steps.comparison import COMPARISON_FILE, compare_betas, compare_results
from lever_mlflow.steps.context import OVERRIDES, Context
from lever_mlflow.steps.data import RL_DATA_FILE, check_data, log_skipped, read_verdict, record_trials
from lever_mlflow.steps.evaluation import evaluate_epochs, read_evaluation
from lever_mlflow.steps.promotion import STATUS_FILE, evaluate_version, promote_beta, roll_back, show_status
from lever_mlflow.steps.registration import register_best
from lever_mlflow.steps.training import (
    STATE_TAG,
    Interrupted,
    Launch,
    Start,
    find_state,
    train_by_grpo,
    train_by_rce,
)

__all__ = [
    "COMPARISON_FILE",
    "OVERRIDES",
    "RL_DATA_FILE",
    "STATE_TAG",
    "STATUS_FILE",
    "Context",
    "Interrupted",
    "Launch",
    "Start",
    "check_data",
    "compare_betas",
    "compare_results",
    "evaluate_epochs",
    "evaluate_version",
    "find_state",
    "log_skipped",
    "promote_beta",
    "read_evaluation",
    "read_verdict",
    "record_trials",
    "register_best",
    "roll_back",
    "show_status",
    "train_by_grpo",
    "train_by_rce",
]
