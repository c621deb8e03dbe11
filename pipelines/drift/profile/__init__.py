"""What a window of traffic holds: frozen scales, histograms that add up, days and windows."""
