"""Chest radiograph classification: MEDUSA."""
