"""`fusion_reid`: FusionReID for person re-identification."""
