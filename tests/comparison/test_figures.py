import io

import numpy as np
from helpers.comparison_samples import compared, right, run
from PIL import Image

from lever_mlflow.comparison.figures import figures as draw_figures


def test_figures_are_drawn_and_read_in_grey():
    figures = draw_figures(compared(*(run(b, right(50), right(60)) for b in (0.05, 0.12, 0.3))))
    assert set(figures) == {
        "intervals.png", "training_curves.png", "accuracy.png", "differences.png", "beta_curve.png", "baselines.png",
    }  # fmt: skip
    for png in figures.values():
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
        assert np.ptp(pixels, axis=2).max() <= 8  # grey, but for rounding
        assert pixels.std() > 5
