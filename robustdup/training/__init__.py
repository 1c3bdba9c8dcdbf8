"""Training: objectives, update rules, and the loop that runs them."""
