"""What people look at, computed from records alone, without torch."""
