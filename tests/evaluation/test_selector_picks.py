import numpy as np

from lever_mlflow.evaluation.selector_picks import first_logits, greedy_picks
from lever_mlflow.selector.network import PointerSelector


def test_greedy_picks_follow_the_first_logits():
    rng = np.random.default_rng(0)
    train, queries = rng.standard_normal((40, 16)).astype(np.float32), rng.standard_normal((3, 16)).astype(np.float32)
    pools = np.stack([rng.choice(40, 9, replace=False) for _ in range(3)])
    selector = PointerSelector(feature_dim=16).eval()
    logits = first_logits(selector, queries, pools, train)
    by_logits = np.take_along_axis(pools, np.argsort(-logits, axis=1)[:, :4], axis=1)
    assert greedy_picks(selector, queries, pools, train, 4).tolist() == by_logits.tolist()
