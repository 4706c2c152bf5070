"""`her_seg`: HER-Seg for high-resolution medical images, volumes and video."""
