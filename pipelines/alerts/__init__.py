"""Alerts: rules on what a drift run found, one alert for what goes on, and the sinks that tell people."""
