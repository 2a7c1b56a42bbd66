"""Where frames come from and go to: video files, the sprite world, data sets."""
