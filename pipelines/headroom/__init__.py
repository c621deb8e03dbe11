"""What a retraining would gain, measured: a cheap probe of newer rows beside the champion, on the same rows."""
