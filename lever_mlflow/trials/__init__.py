"""Records trials by rollouts, keeps them as RL data in files, and turns their scores into rewards."""
