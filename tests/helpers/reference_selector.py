"""The selector in plain NumPy, written from its formula, for the golden values of other tests."""

import numpy as np


def numpy_logits(selector, query_D, candidates_ND):
    """The selector's formula in plain numpy, one layer, one head."""
    w = {name: tensor.detach().numpy().astype(np.float64) for name, tensor in selector.state_dict().items()}
    h_q, h_NH = w["input_proj.weight"] @ query_D, candidates_ND @ w["input_proj.weight"].T
    H = len(h_q)
    in_w, in_b = w["cross_attn_layers.0.in_proj_weight"], w["cross_attn_layers.0.in_proj_bias"]
    q, k, v = (h @ in_w[i * H : (i + 1) * H].T + in_b[i * H : (i + 1) * H] for i, h in enumerate((h_q, h_NH, h_NH)))
    scores = k @ q / np.sqrt(H)
    attention = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    out = (attention @ v) @ w["cross_attn_layers.0.out_proj.weight"].T + w["cross_attn_layers.0.out_proj.bias"]
    x = h_q + out
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * w["attn_norms.0.weight"] + w["attn_norms.0.bias"]
    z_q, z_N = w["query_proj.weight"] @ x, h_NH @ w["cand_proj.weight"].T
    return (z_N / np.linalg.norm(z_N, axis=1, keepdims=True)) @ (z_q / np.linalg.norm(z_q)) / 0.1
