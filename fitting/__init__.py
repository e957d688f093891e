"""What is computed with the model: `training` (losses and stages), `star_solver` (the best
parameters of stars), `catalogue` (their columns, covariances, flags and confidences)."""
