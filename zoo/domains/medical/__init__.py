"""Medical imaging."""
