"""Remote sensing."""
