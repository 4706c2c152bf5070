"""RGB-D salient object detection: GL-DMNet."""
