"""Evidence that travels: bundles of adversarial images, and their verification."""
