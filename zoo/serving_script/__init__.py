"""What travels inside a registered model: scripts that MLflow runs where it loads the model."""
