"""How well labels are recovered: offsets, scatter and pulls, by group of stars."""

import numpy as np

from pipeline.statistics import robust_width

GIANT_LOGG = 3.5  # log g below it is a giant's
PULL_LIMIT = 3.0


def groups_of(label, labels):
    """{group: rows (N,) bool}: all stars and, where log g is a label, giants and dwarfs."""
    groups = {"all": np.ones(len(label), bool)}
    if "logg" in labels.place:
        giant = label[:, labels.place["logg"]] < GIANT_LOGG
        groups |= {"giants": giant, "dwarfs": ~giant}
    return groups


def scores(est, err, label, label_err, labels):
    """{label name: {"offset", "scatter", "pull_width", "frac_gt3"}} of stars with finite estimates.

    All arrays (N, K), in the stored units; the result is in the units shown. Offset: median of
    estimate - label; scatter: robust width of it; pull: divided by both errors in quadrature.
    """
    residual = np.asarray(est, "f8") - label
    pull = residual / np.hypot(err, label_err)
    shown = residual * labels.array("scale")
    return {
        name: {
            "offset": float(np.median(shown[:, k])),
            "scatter": robust_width(shown[:, k]),
            "pull_width": robust_width(pull[:, k]),
            "frac_gt3": float(np.mean(np.abs(pull[:, k]) > PULL_LIMIT)),
        }
        for k, name in enumerate(labels.texts("name"))
    }


def accuracy(est, err, label, label_err, labels):
    """How labels (N, K) are recovered by est (N, K) with errors err; labels: `LabelSet`.

    Returns {group: {"n": stars, label name: `scores`}}; stars without a finite estimate are counted
    in {"stars", "finite"} only.
    """
    finite = np.isfinite(est).all(1) & np.isfinite(err).all(1)
    out = {"stars": len(est), "finite": int(finite.sum())}
    for group, rows in groups_of(label, labels).items():
        rows = rows & finite
        out[group] = {"n": int(rows.sum())}
        if rows.any():
            out[group] |= scores(est[rows], err[rows], label[rows], label_err[rows], labels)
    return out


def format_accuracy(found, labels):
    """The table of `accuracy` as text."""
    lines = [
        f"{found['stars']} stars, {found['finite']} with finite parameters",
        "group          n             offset  scatter   pull     >3",
    ]
    for group, of_group in found.items():
        for label in labels if isinstance(of_group, dict) else ():
            if label.name in of_group:
                s, unit = of_group[label.name], f" ({label.shown_unit})"
                name = label.title + (unit if label.scale != 1 else "")
                lines.append(
                    f"{group:8s} {of_group['n']:7d}  {name:9s}"
                    f"{s['offset']:8.3f} {s['scatter']:8.3f} {s['pull_width']:6.2f} "
                    f"{s['frac_gt3']:6.3f}"
                )
    return "\n".join(lines)
