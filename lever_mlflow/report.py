"""The comparison in words and tables: Markdown for MLflow, plain text for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["markdown", "summary"]

_CURVES = ("train_loss", "val_loss", "ppo_loss", "kl", "adv_std", "adv_max", "beta", "frac_reward_zero_std")


def summary(comparison: Mapping[str, Any]) -> str:
    """Accuracy in percent at the largest size: a row per baseline and per epoch of each beta, a column per shot count."""
    first = comparison["evaluations"][0]
    size = max(first["settings"]["sizes"])
    shots = [0, *first["settings"]["shots"]]
    epochs = {f"epoch {metrics['epoch']}" for metrics in first["epochs"]}
    rows = [["", *(f"{k} shots" for k in shots)]]
    for policy in dict.fromkeys(row["policy"] for row in first["accuracy"]):
        if policy not in epochs:
            rows.append([_label(first, policy), *_cells(first, policy, size, shots)])
    for evaluation in comparison["evaluations"]:
        for metrics in evaluation["epochs"]:
            policy = f"epoch {metrics['epoch']}"
            best = " *" if metrics["epoch"] == evaluation["best_epoch"] else ""
            rows.append([f"beta {evaluation['kl_beta']:g} {policy}{best}", *_cells(evaluation, policy, size, shots)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    registered = [
        f"* beta {item['kl_beta']:g}: epoch {item['best_epoch']}, chosen on selection questions, is "
        f"{item['registered']['name']} version {item['registered']['version']}, alias {item['registered']['alias']}"
        for item in comparison["evaluations"]
    ]
    title = f"VQA accuracy in percent on {size} questions"
    return "\n".join([title, *(line.rstrip() for line in lines), *_oracle(comparison), *registered, comparison["verdict"]])


def markdown(comparison: Mapping[str, Any]) -> str:
    """The whole comparison as a Markdown page."""
    evaluations = comparison["evaluations"]
    betas = ", ".join(f"{item['kl_beta']:g}" for item in evaluations)
    parts = [
        f"# Comparison of KL betas {betas}",
        comparison["verdict"],
        "## Data and fairness",
        _fairness(comparison),
        _profile(evaluations[0]),
    ]
    parts += ["## Training", *(_training(item) for item in evaluations)]
    parts += ["## Accuracy (percent)", *(_accuracy(item) for item in evaluations)]
    parts += ["\n".join(_oracle(comparison))] if _oracle(comparison) else []
    parts += ["## Overlap of picks", *([_overlap(comparison["overlap"])] if comparison["overlap"] else [])]
    parts += [f"### beta {item['kl_beta']:g}\n\n{_overlap(item['overlap'])}" for item in evaluations]
    parts += ["## Differences between the best epochs", _pairs(comparison), "## Registered models", _registered(evaluations)]
    commands = [line for item in evaluations for line in _commands(item)]
    reproduce = "\n".join([*commands, f"mlflow run . -e compare -P kl_betas={betas.replace(' ', '')}"])
    return "\n\n".join([*parts, "## How to reproduce", f"```\n{reproduce}\n```"]) + "\n"


def _oracle(comparison: Mapping[str, Any]) -> list[str]:
    """What there is to win with one demonstration, as a line; none where that was not measured. It does not depend on beta."""
    found = next(filter(None, (evaluation["best_single"] for evaluation in comparison["evaluations"])), None)
    if found is None:
        return []
    return [
        f"oracle: {100 * found['oracle']:.2f} with the best single demonstration of each pool, on the first "
        f"{found['questions']} questions ({100 * found['random']:.2f} with the mean one; it matters on "
        f"{100 * found['winnable']:.0f} % of them)"
    ]


def _overlap(rows: Sequence[Mapping[str, Any]]) -> str:
    """Share of questions with the same picks, a row per pair; and why, where it is all of them."""
    shown = [
        [row["first"], row["second"], row["shots"], f"{100 * row['ordered']:.1f}", f"{100 * row['unordered']:.1f}"]
        for row in rows
    ]
    reasons = [
        f"- {row['first']} and {row['second']} pick the same for every question at {row['shots']} "
        f"shot{'s' * (row['shots'] > 1)}: {row['reason']}."
        for row in rows
        if "reason" in row
    ]
    table = _table(["first", "second", "shots", "same picks, %", "same in any order, %"], shown)
    return "\n\n".join([table, *(["\n".join(reasons)] if reasons else [])])


def _profile(evaluation: Mapping[str, Any]) -> str:
    """How the VLM was asked."""
    settings = ", ".join(f"{name}={value!r}" for name, value in evaluation["profile"].items())
    return f"The VLM's profile ({evaluation['inputs']['profile_digest']}): {settings}"


def _label(evaluation: Mapping[str, Any], policy: str) -> str:
    """A policy's name; the start checkpoint's says which one it is."""
    return f"start ({evaluation['inputs']['start']})" if policy == "start" else policy


def _cells(evaluation: Mapping[str, Any], policy: str, size: int, shots: Sequence[int]) -> list[str]:
    found = {
        row["shots"]: f"{100 * row['accuracy']:.2f}"
        for row in evaluation["accuracy"]
        if row["policy"] == policy and row["size"] == size
    }
    return [found.get(k, "-") for k in shots]


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _fairness(comparison: Mapping[str, Any]) -> str:
    evaluations = comparison["evaluations"]
    head = ["field", *(f"beta {item['kl_beta']:g}" for item in evaluations)]
    fields = [name for name in evaluations[0]["inputs"] if name not in ("models", "grpo_run", "start_uri", "kl_beta")]
    rows = [[name, *(item["inputs"].get(name, "missing") for item in evaluations)] for name in fields]
    confounders = [[item["field"], *item["values"]] for item in comparison["confounders"]]
    text = "No field but beta differs." if not confounders else "Differ beside beta:\n\n" + _table(head, confounders)
    return f"{_table(head, rows)}\n\n{text}"


def _training(evaluation: Mapping[str, Any]) -> str:
    names = [name for name in _CURVES if all(name in metrics for metrics in evaluation["epochs"])]
    rows = [[metrics["epoch"], *(f"{metrics[name]:.6g}" for name in names)] for metrics in evaluation["epochs"]]
    settings = ", ".join(f"{name}={value}" for name, value in evaluation["training"].items())
    return f"### beta {evaluation['kl_beta']:g}\n\n{settings}\n\n{_table(['epoch', *names], rows)}"


def _accuracy(evaluation: Mapping[str, Any]) -> str:
    sizes, shots = evaluation["settings"]["sizes"], evaluation["settings"]["shots"]
    head = ["policy", "shots", *(f"{size} questions" for size in sizes)]
    rows = []
    for policy in dict.fromkeys(row["policy"] for row in evaluation["accuracy"]):
        for k in (0, *shots):
            cells = [_cells(evaluation, policy, size, [k])[0] for size in sizes]
            if cells[0] != "-":
                best = " (registered)" if policy == f"epoch {evaluation['best_epoch']}" else ""
                rows.append([f"{_label(evaluation, policy)}{best}", k, *cells])
    return f"### beta {evaluation['kl_beta']:g}\n\n{_table(head, rows)}"


def _pairs(comparison: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{pair['second']:g} - {pair['first']:g}",
            pair["shots"],
            f"{pair['points']:+.2f}",
            f"[{pair['low']:+.2f}, {pair['high']:+.2f}]",
            f"{pair['p_value']:.3g}",
            f"{pair['differing_questions']} of {pair['questions']}",
        ]
        for pair in comparison["pairs"]
    ]
    note = (
        "Points of accuracy on the same questions; paired bootstrap intervals that hold together at 95 % "
        f"(Bonferroni over {len(rows)} comparisons); p of a sign-flip permutation test, significant below "
        f"0.05 / {len(rows) or 1}."
    )
    return f"{note}\n\n{_table(['betas', 'shots', 'difference', 'interval', 'p', 'questions that differ'], rows)}"


def _commands(evaluation: Mapping[str, Any]) -> list[str]:
    """The commands that train and evaluate one beta again, on the RL data and with the names given then."""
    inputs, training, settings = (evaluation[name] for name in ("inputs", "training", "settings"))
    train = {**training, "init": inputs["start_uri"], "seed": inputs["training_seed"], "reward_mode": inputs["reward_mode"]}
    lists = {name: ",".join(map(str, value)) if isinstance(value, list) else value for name, value in settings.items()}
    others = {"checkpoints": ",".join(evaluation["checkpoints"])} if evaluation["checkpoints"] else {}
    test = {"kl_beta": evaluation["kl_beta"], "grpo_run": inputs["grpo_run"], "seed": inputs["seed"], **lists, **others}
    return [
        f"# RL data {inputs['rl_data_digest']}",
        *(
            f"mlflow run . -e {step} " + " ".join(f"-P {name}={value}" for name, value in parameters.items())
            for step, parameters in (("grpo", train), ("evaluate", test))
        ),
    ]


def _registered(evaluations: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for item in evaluations:
        model = item["registered"]
        selection = item["selection_accuracy"][str(item["best_epoch"])]
        rows.append(
            [
                f"{item['kl_beta']:g}",
                item["best_epoch"],
                f"{100 * selection:.2f}",
                model["name"],
                model["version"],
                model["alias"],
            ]
        )
    return _table(["beta", "epoch", "selection accuracy", "model", "version", "alias"], rows)
